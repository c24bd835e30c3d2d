"""What ``memorysam predict SCENES`` means: four ways to lay out scenes, none of them guessed.

(a) a prepared data set: the data root, or the data set's folder;
(b) a folder with one sub-folder per modality, the same file names inside, at any depth;
(c) a folder with one sub-folder per scene, at any depth, holding one file per modality, named as the modality;
(d) one such scene folder.

A tree that can be read in two ways is refused, and both are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memorysam_cli.data import DATASETS, layout_of
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.decode import Reading, readings
from memorysam_cli.data.listing import sample_names
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.errors import DataError, UsageError, did_you_mean

NAMED = 6
"""Unknown names that a message lists."""


@dataclass(frozen=True)
class PredictionInputs:
    """The scenes to predict."""

    root: Path
    """What the scenes' paths are relative to."""
    scenes: tuple[Scene, ...]
    """Each has at least one modality; ids are unique, and name the outputs."""
    notes: tuple[str, ...]
    """What must be said once, such as a modality that is missing."""


def discover(
    path: Path,
    *,
    modalities: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    split: str | None = None,
    dataset: str | None = None,
) -> PredictionInputs:
    """Find the scenes of ``memorysam predict SCENES``.

    Args:
        path: SCENES.
        modalities: those wanted, in the order of the memory.
        aliases: modality → the name that its files or folder have here (``--map img=rgb``).
        split: only this split of a prepared data set.
        dataset: the weights' data set, preferred where several are prepared.

    Raises:
        DataError: nothing to predict, an ambiguous tree, files that do not pair, unknown names where a modality is
            missing, two scenes with one id.
        UsageError: an alias for a modality that is not wanted, or a split of scenes that are not prepared.
    """
    aliases = dict(aliases or {})
    for name in aliases:
        if name not in modalities:
            raise UsageError(
                f"--map {name}={aliases[name]}: '{name}' is no modality in use{did_you_mean(name, modalities)}"
            )
    if not path.is_dir():
        raise DataError(f"{path}: {'is a file' if path.exists() else 'does not exist'}; SCENES must be a folder")
    wanted = {name: aliases.get(name, name) for name in modalities}
    prepared = _prepared(path, dataset=dataset)
    if prepared is not None:
        return _of_manifest(prepared, wanted, split=split, dataset=dataset)
    if split is not None:
        raise UsageError(f"--split {split}: {path} is no prepared data set; leave --split out, or prepare it first")
    if not aliases:
        _refuse_unprepared(path)
    reading = _only_reading(path, wanted)
    scenes = tuple(
        Scene(id=name, split="", condition=None, case=None, files=files, label=None)
        for name, files in reading.scenes.items()
    )
    _refuse_unknown(path, reading, wanted)
    manifests.refuse_shared_ids(scenes)
    unknown = [f"not used: {_listed(reading.unknown)}"] if reading.unknown else []
    return PredictionInputs(path, scenes, (*_missing_notes(scenes, modalities), *unknown))


def _prepared(path: Path, *, dataset: str | None) -> Manifest | None:
    """The prepared data set that ``path`` is the root or the folder of."""
    here = manifests.prepared(path)
    if here:
        if dataset not in here and len(here) > 1:
            raise DataError(
                f"{path}: holds {', '.join(here)}, but not the weights' '{dataset}'; give the folder of one of them"
            )
        return manifests.read(path, dataset if dataset in here else here[0])
    for place in (path.absolute(), path.resolve()):
        for root in place.parents:
            inside = [name for name in manifests.prepared(root) if _covers(place, root=root, dataset=name)]
            if inside:
                return manifests.read(root, dataset if dataset in inside else inside[0])
    return None


def _covers(path: Path, *, root: Path, dataset: str) -> bool:
    """Whether ``path`` is a prepared data set's folder, or holds nothing but it (below the data root)."""
    try:
        return (root / manifests.read_info(root, dataset).root).is_relative_to(path)
    except DataError:  # somewhere above lies a broken manifest that nobody asked for
        return False


def _of_manifest(
    manifest: Manifest, wanted: Mapping[str, str], *, split: str | None, dataset: str | None
) -> PredictionInputs:
    """A prepared data set's scenes with the wanted modalities."""
    chosen = manifest.scenes if split is None else manifest.of_split(split)
    scenes = tuple(
        replace(scene, files={name: scene.files[here] for name, here in wanted.items() if here in scene.files})
        for scene in chosen
    )
    if not any(scene.files for scene in scenes):
        have = ", ".join(modality.name for modality in manifest.info.modalities)
        raise DataError(f"{manifest.info.name}: has none of {', '.join(wanted.values())} (it has: {have}); use --map")
    other = dataset is not None and dataset != manifest.info.name
    about = [f"the weights were trained on '{dataset}', these scenes are of '{manifest.info.name}'"] if other else []
    return PredictionInputs(manifest.root, scenes, (*about, *_missing_notes(scenes, list(wanted))))


def _refuse_unprepared(path: Path) -> None:
    """Refuse a known data set that is not prepared: its folders are not named as its modalities."""
    for name in DATASETS:
        layout = layout_of(name)
        if layout.holds(path):
            line = manifests.prepare_line(path, name)
            raise DataError(
                f"{path}: is {layout.title}, whose folders are not named as its modalities; type: {line} (or say with "
                "--map which folder is which modality)"
            )


def _only_reading(path: Path, wanted: Mapping[str, str]) -> Reading:
    """The one way in which the tree can be read."""
    found = readings(path, wanted)
    if len(found) > 1:
        ways = " or as ".join(reading.what for reading in found)
        raise DataError(f"{path}: can be read as {ways}; give one of them, or rename what is not meant")
    if not found:
        seen = ", ".join(sample_names(path)) or "no file at all"
        names = ", ".join(wanted.values())
        raise DataError(
            f"{path}: no scene found: looked for folders or image files named {names} (saw {seen}); name them with "
            f"--map {next(iter(wanted))}=NAME"
        )
    return found[0]


def _refuse_unknown(path: Path, reading: Reading, wanted: Mapping[str, str]) -> None:
    """Refuse unknown names where a modality is missing everywhere: one may be the other."""
    found = {name for files in reading.scenes.values() for name in files}
    missing = [name for name in wanted if name not in found]
    if missing and reading.unknown:
        have = ",".join(name for name in wanted if name in found)
        raise DataError(
            f"{path}: no {_listed(missing)}, but there is {_listed(reading.unknown)}; say what is what, such as "
            f"--map {missing[0]}={reading.unknown[0].rstrip('/')}, or take what is there with --modalities {have}"
        )


def _missing_notes(scenes: Sequence[Scene], modalities: Sequence[str]) -> list[str]:
    """One note per modality that is missing in some scenes or in all."""
    notes = []
    for name in modalities:
        count = sum(name not in scene.files for scene in scenes)
        if count:
            where = "no scene has" if count == len(scenes) else f"{count} of {len(scenes)} scenes lack"
            notes.append(f"{where} '{name}'; predicting with the modalities that are there")
    return notes


def _listed(names: Sequence[str]) -> str:
    """The first few of some names."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
