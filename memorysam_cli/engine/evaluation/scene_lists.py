"""Which scenes a result is about, and whether the weights have met them before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from memorysam_cli import recipe
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import documents

ALL = "all"


def labelled_splits(manifest: Manifest, text: str) -> tuple[str, ...]:
    """The splits of ``--split``, such as ``val``, ``val,test`` or ``all``, which takes those that have labels.

    Raises:
        UsageError: a name is missing.
        DataError: a split is unknown or empty, or its labels are not published.
    """
    if text.strip() == ALL:
        known = {split: manifest.of_split(split) for split in manifest.info.counts}
        bare = [split for split, scenes in known.items() if _without_label(scenes)]
        if bare:
            console.note(f"{manifest.info.name}: left out, for lack of labels: {', '.join(bare)}")
        found = tuple(split for split in known if split not in bare)
        if not found:
            raise DataError(f"{manifest.info.name}: has no labels to score against; 'predict' works without")
        return found
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if "" in names:
        raise UsageError(f"--split '{text}': a name is missing; give one such as val, several as val,test, or all")
    for split in names:
        scenes = manifest.of_split(split)
        bare_count = _without_label(scenes)
        if bare_count:
            raise DataError(
                f"{manifest.info.name}: {bare_count} of {len(scenes)} scenes in split '{split}' have no label to "
                f"score against; score another split, or segment it with memorysam predict --split {split}"
            )
    return names


def digest(scenes: Iterable[Scene]) -> str:
    """SHA-256 of a list of scenes: ids and labels' paths, in the order of the ids.

    Two results are of the same scenes if and only if they say the same here, whatever their splits are called.
    """
    lines = sorted(documents.to_json([scene.id, scene.label]) for scene in scenes)
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def flattery(manifest: Manifest, data: recipe.Data, *, splits: Sequence[str]) -> list[str]:
    """Why a result on these splits flatters the weights: they were trained or chosen on the same scenes.

    Args:
        manifest: the data set.
        data: of the weights' recipe.
        splits: those that are scored.

    Returns:
        A line per reason, none for a result that is free of it.
    """
    unbiased = "a split that training never saw gives the unbiased figure"
    found = []
    for split in splits:
        if split == data.train_split:
            found.append(f"'{split}' also trained these weights; {unbiased}")
            continue
        if split == data.selection_split:
            found.append(f"'{split}' also chose these weights among the epochs, which flatters them; {unbiased}")
        else:
            found += _shared(manifest, split, data.selection_split, "chose these weights among the epochs", unbiased)
        found += _shared(manifest, split, data.train_split, "trained these weights", unbiased)
    return found


def _shared(manifest: Manifest, split: str, other: str, did: str, unbiased: str) -> list[str]:
    """What to say of labels that a scored split shares with another (several data sets' val is their test list)."""
    labels = {scene.label for scene in manifest.scenes if scene.split == other and scene.label is not None}
    scenes = [scene for scene in manifest.scenes if scene.split == split]
    count = sum(scene.label in labels for scene in scenes)
    return [f"{count} of {len(scenes)} scenes of '{split}' are also in '{other}', which {did}; {unbiased}"] * bool(
        count
    )


def _without_label(scenes: Sequence[Scene]) -> int:
    """How many scenes have none."""
    return sum(scene.label is None for scene in scenes)
