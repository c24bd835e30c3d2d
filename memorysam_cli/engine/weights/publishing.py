"""What goes to the Hugging Face Hub with weights: their card and their recipe."""

from __future__ import annotations

from pathlib import Path

from memorysam_cli.engine.weights import card as cards
from memorysam_cli.model.weights import load_unmerged
from memorysam_cli.report import console
from memorysam_cli.storage.hub import CARD, Upload

RECIPE = "recipe.yaml"


def plan(repo: str, path: Path, *, license: str, with_card: bool, private: bool, replaces_card: bool) -> Upload:
    """The files of a repository for weights; the weights are read whole first, for nobody should get damaged ones.

    Args:
        repo: ``owner/name``.
        path: a weights file of ours.
        license: an identifier of the Hub's.
        with_card: whether a README.md goes along.
        private: of a repository that is made.
        replaces_card: whether another README.md that is there may be replaced.

    Raises:
        WeightsError: they are damaged, not ours, or their base is not to be had.
    """
    load_unmerged(path)
    facts = cards.gather(path)
    if facts.card.kind == "trained" and facts.card.base.source.startswith("file:"):
        console.warn(
            f"{path}: needs base weights that only this machine has; others cannot use it: send what "
            "`memorysam weights merge` makes of it"
        )
    text = {CARD: cards.render(facts, license=license, repo=repo).encode()} if with_card else {}
    recipe = cards.public_recipe(facts.card).encode()
    return Upload(repo, {path.name: path, **text, RECIPE: recipe}, private=private, replaces_card=replaces_card)


def sizes(upload: Upload) -> dict[str, int]:
    """Name → bytes of what will be sent."""
    return {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in upload.files.items()
    }
