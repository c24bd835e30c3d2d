"""From what the user asks for to a job; reads no pixel and loads no weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from memorysam_cli.data import inputs
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine.infer.inference import choose_modalities
from memorysam_cli.engine.infer.views import View
from memorysam_cli.engine.prediction import folder
from memorysam_cli.engine.prediction.job import Job
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.model.weights import read_card
from memorysam_cli.report import console
from memorysam_cli.storage import images, tensors


def plan(
    weights: Path,
    *,
    out: Path,
    overwrite: bool = False,
    scenes: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    renames: Sequence[str] | None = None,
    limit: int | None = None,
    view: View | None = None,
    extras: Sequence[str] = (),
    batch: int = 4,
    precision: str = "fp32",
    is_compiled: bool = False,
) -> Job:
    """Find the scenes, and say what is odd about them.

    Args:
        weights: a weights file.
        out: the output folder.
        overwrite: whether it may hold something else.
        scenes: SCENES, if they were given.
        data: the data root, if one was given; it is looked into where there are no SCENES.
        split: only this split of a prepared data set.
        modalities: names, if some were chosen.
        renames: of ``--map``.
        limit: only the first so many scenes.
        view: how scenes are shown to the network.
        extras: pictures beside the masks.
        batch: scenes that share a forward pass, at most.
        precision: of the computing.
        is_compiled: whether the network's blocks are compiled.

    Raises:
        WeightsError: the weights are refused.
        UsageError: an unknown modality, a wrong ``--map``, a split of scenes that are not prepared, or ``out`` holds
            something else.
        DataError: no scenes, an ambiguous tree, or scenes whose outputs would meet in one file.
    """
    card = read_card(weights)
    chosen = choose_modalities(card.modalities, modalities)
    names = [modality.name for modality in chosen]
    aliases = read_aliases(renames, names)
    where = scenes or manifests.prepared_root(data, dataset=card.dataset.name)
    found = inputs.discover(where, modalities=names, aliases=aliases, split=split, dataset=card.dataset.name)
    wanted = found.scenes[:limit]
    folder.refuse_collisions(wanted)
    folder.refuse_foreign(out, overwrite=overwrite)
    for text in (*found.notes, *doubts(wanted, root=found.root, modalities=chosen)):
        console.note(text)
    return Job(
        weights, tensors.sha256(weights), card, wanted, found.root, str(where), chosen, tuple(extras), view or View(),
        batch, precision, is_compiled,
    )  # fmt: skip


def read_aliases(texts: Sequence[str] | None, known: Sequence[str]) -> dict[str, str]:
    """What the user's files call the modalities, from ``--map MODALITY=NAME``.

    Raises:
        UsageError: no ``=``, a modality that is not wanted, one that is mapped twice, or two that share a name.
    """
    aliases: dict[str, str] = {}
    for text in texts or ():
        modality, equals, name = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise UsageError(f"--map {text}: must be MODALITY=NAME, for example {known[0]}=rgb")
        if modality not in known:
            turned = f"; did you mean --map {name}={modality}?" if name in known else did_you_mean(modality, known)
            raise UsageError(f"--map {text}: the weights know no modality '{modality}'{turned}")
        if modality in aliases:
            raise UsageError(f"--map {text}: '{modality}' is mapped to '{aliases[modality]}' already")
        aliases[modality] = name
    owners: dict[str, str] = {}
    for modality in known:
        name = aliases.get(modality, modality)
        other = owners.setdefault(name.casefold(), modality)
        if other != modality:
            raise UsageError(
                f"--map: '{name}' would be both '{other}' and '{modality}'; map each to a name of its own, or leave "
                "one out with --modalities"
            )
    return aliases


def doubts(scenes: Sequence[Scene], *, root: Path, modalities: Sequence[Modality]) -> list[str]:
    """What can be read and yet may not be what the weights were trained on; looks at the first scene's headers.

    Args:
        scenes: what is to be segmented.
        root: what the scenes' paths are relative to.
        modalities: those that the model may be shown.
    """
    found = []
    for modality in modalities:
        path = next((scene.files[modality.name][0] for scene in scenes if modality.name in scene.files), None)
        if modality.kind != "hha" or path is None:
            continue
        with contextlib.suppress(DataError):  # reading the scene will say what is wrong with it
            if images.header(root / path).channels == 1:
                found.append(
                    f"{path}: has one channel, and the weights' '{modality.name}' is depth encoded as HHA, which has "
                    "three; expect poor masks, or make HHA with memorysam prepare hha"
                )
    return found
