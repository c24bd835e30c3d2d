"""The manifest: the list of scenes and their files.

``ROOT/memorysam/<dataset>/scenes.jsonl`` has one line per scene; ``dataset.json`` beside it describes the data set.
``memorysam prepare`` writes both. Every other command reads them and does not search for files.
"""

from __future__ import annotations

import hashlib
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_validator

from memorysam_cli.data import DATASETS, layout_of
from memorysam_cli.dataset import DatasetInfo, Modality, Strict, is_inside
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import command, few, is_text, requirement, shown, typed

if TYPE_CHECKING:
    from memorysam_cli.storage.images import Stored

PLACE = "memorysam"
"""The folder of all manifests in a data root."""
INFO = "dataset.json"
SCENES = "scenes.jsonl"
NEAR = 3
"""Number of folders named in the message for a missing data set."""
OUTPUT = ".png"
"""The ending of the files that are named after a scene."""
NAME_BYTES = 255
"""Largest number of bytes in the name of a file or a folder."""
SURELY_SHORT = (NAME_BYTES - len(OUTPUT)) // 4
"""Number of letters that never have more bytes."""
SPLITS = ("train", "val", "test")
"""The usual splits, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene: one view from several sensors. All paths are relative to the data root, with forward slashes."""

    id: str
    """Unique in the data set, also on a file system that ignores case; gives the outputs their names."""
    split: str
    condition: str | None
    """The weather or light, if the data set has it."""
    case: str | None
    """The sensor failure, or None for a normal scene."""
    files: dict[str, tuple[str, ...]]
    """Modality name → its files (MCubeS's ``aolp`` has two: sine, cosine)."""
    label: str | None

    @property
    def paths(self) -> list[str]:
        """All its files, those of the modalities in their order, the label last."""
        return [*(path for group in self.files.values() for path in group), *([self.label] if self.label else [])]

    def sources(self, root: Path, modality: str) -> Sequence[Stored]:
        """The files of a modality; ``KeyError`` if the scene lacks it.

        Args:
            root: the data root.
            modality: its name.
        """
        return [root / path for path in self.files[modality]]


@dataclass(frozen=True)
class Manifest:
    """A prepared data set."""

    root: Path
    """The data root, to which all scene paths are relative."""
    info: DatasetInfo
    scenes: tuple[Scene, ...]

    def of_split(self, split: str) -> tuple[Scene, ...]:
        """The scenes of one split, in the manifest's order.

        Raises:
            DataError: the split is unknown or empty.
        """
        chosen = tuple(scene for scene in self.scenes if scene.split == split)
        if not chosen:
            known = ", ".join(f"{name} ({count})" for name, count in self.info.counts.items() if count)
            raise DataError(f"{self.info.name}: no scene in split '{split}' (known: {known or 'none'})")
        return chosen


def data_root(option: Path | None) -> Path:
    """The data root: ``--data``, else ``$MEMORYSAM_DATA``, else ``./data``."""
    return option or Path(os.environ.get("MEMORYSAM_DATA") or "data")


def prepared_root(option: Path | None, *, dataset: str) -> Path:
    """The data root, which must have prepared data.

    Args:
        option: ``--data``.
        dataset: the needed data set, for the message.

    Raises:
        DataError: nothing is prepared there; the message has the command to prepare it.
    """
    root = data_root(option)
    if not prepared(root):
        read_info(root, dataset)
    return root


def only_prepared(root: Path) -> str:
    """The only data set prepared below a root, for a recipe that names none.

    Raises:
        DataError: there is none; the message has the command to prepare one.
        UsageError: there are several.
    """
    datasets = prepared(root)
    if not datasets:
        near = few([f"--data {typed(place)}" for place in _near(root)], NEAR, separator=" or ", is_counted=False)
        remedy = f"give {near}" if near else f"type {own_line(root)}, or give --data ROOT"
        raise DataError(f"{root}: no data set is prepared there; {remedy}")
    if len(datasets) > 1:
        raise UsageError(
            f"{root}: {len(datasets)} data sets are prepared there ({', '.join(datasets)}); choose one with --set "
            f"data.dataset={datasets[0]}, or with --recipe (see {command('recipes', 'list')})"
        )
    return datasets[0]


def _near(root: Path) -> list[Path]:
    """Other folders in the current one with a prepared data set, sorted."""
    return sorted({path.parents[2] for path in Path().glob(f"*/memorysam/*/{INFO}")} - {root})


def folder(root: Path, dataset: str) -> Path:
    """The folder of a data set's manifest."""
    return root / PLACE / dataset


def prepare_line(root: Path, dataset: str) -> str:
    """The command that prepares a data set."""
    if dataset == "synthetic":
        return command("prepare", "synthetic", root)
    if dataset.startswith("synthetic-"):
        return command("prepare", "synthetic", root, "--layout", dataset.removeprefix("synthetic-"))
    if dataset in DATASETS:
        return command("prepare", dataset, root)
    return own_line(root, "--name", dataset)


def own_line(root: Path, *options: str) -> str:
    """The command for the user's own sensors: it looks at the folder, and proposes sensors and labels."""
    return command("prepare", "folder", root, *options)


def sign_line(root: Path, dataset: str) -> str:
    """The command that accepts an edited manifest."""
    return command("prepare", "manifest", root, dataset)


def is_prepared(root: Path, dataset: str) -> bool:
    """Whether a data set is prepared below a data root."""
    return (folder(root, dataset) / INFO).is_file()


def named_by(path: Path) -> tuple[Path, str] | None:
    """The data root and the data set, if a path is the folder of a manifest, as ``prepare`` prints it."""
    place = path if path.parent.name == PLACE else path.absolute()
    is_manifest = place.parent.name == PLACE and (place / INFO).is_file()
    return (place.parents[1], place.name) if is_manifest else None


def prepared(root: Path) -> list[str]:
    """The names of the data sets that are prepared below a data root, sorted."""
    return sorted(path.parent.name for path in (root / PLACE).glob(f"*/{INFO}"))


def write(root: Path, info: DatasetInfo, scenes: Sequence[Scene]) -> Manifest:
    """Write a manifest, ``dataset.json`` last, so that an interrupted write is never mistaken for a complete one.

    Args:
        root: the data root.
        info: its ``counts`` and ``content_hash`` are filled in here.
        scenes: all their files exist.

    Raises:
        DataError: two scenes share an id, or a name cannot be written as text.
        EnvironmentFault: the disk is full or read-only.
    """
    refuse_shared_ids(scenes)
    text = "".join(documents.to_json(_line(root, scene)) + "\n" for scene in scenes)
    filled = info.model_copy(
        update={
            "counts": count_splits(scenes),
            "content_hash": hashlib.sha256(text.encode()).hexdigest(),
        }
    )
    place = folder(root, info.name)
    atomic.write_text(place / SCENES, text)
    documents.write_json(place / INFO, filled.model_dump(mode="json"))
    return Manifest(root=root, info=filled, scenes=tuple(scenes))


def read(root: Path, dataset: str) -> Manifest:
    """Read a data set's manifest and check that its two files belong together.

    Raises:
        DataError: it is missing (the message names the prepared data sets and the command), damaged, or from a version
            of memorysam that this one does not support.
    """
    info = read_info(root, dataset)
    path = folder(root, dataset) / SCENES
    if hashlib.sha256(_content(path, again=prepare_line(root, dataset))).hexdigest() != info.content_hash:
        raise DataError(
            f"{path}: was changed since it was prepared, or is torn; if you edited it, type: "
            f"{sign_line(root, dataset)}; else prepare it again: {prepare_line(root, dataset)}"
        )
    found = _read_scenes(root, info)
    refuse_shared_ids(found.scenes, where=f"{path}: ")
    return found


def read_unsigned(root: Path, dataset: str) -> Manifest:
    """Read a manifest that may have been edited: its hash is not compared, and scenes may share ids.

    Raises:
        DataError: otherwise as :func:`read`.
    """
    return _read_scenes(root, read_info(root, dataset))


def _content(path: Path, *, again: str) -> bytes:
    """All bytes of a list of scenes, of any length."""
    try:
        return documents.read_bytes(path, limit=sys.maxsize)
    except DataError as error:
        raise DataError(f"{error}; or prepare it again: {again}") from None


def _read_scenes(root: Path, info: DatasetInfo) -> Manifest:
    """The only reader of ``scenes.jsonl``, for all commands; everything is checked.

    Raises:
        DataError: a line is not a scene of this data set; the message has ``file:line`` and the key.
    """
    path = folder(root, info.name) / SCENES
    wanted = {modality.name for modality in info.modalities}
    scenes = []
    for number, value in enumerate(documents.each_json_line(path, may_be_torn=False), 1):
        try:
            line = _Line.model_validate(value)
        except ValidationError as error:
            raise DataError(f"{path}:{number}: {_first_fault(error)}; fix the line or remove it") from None
        if line.files.keys() != wanted:
            missing, unknown = sorted(wanted - set(line.files)), sorted(set(line.files) - wanted)
            what = f"has no '{missing[0]}'" if missing else f"has '{unknown[0]}', which {INFO} does not know"
            raise DataError(f"{path}:{number}: scene {line.id} {what}; every scene has all modalities of {INFO}")
        scenes.append(Scene(line.id, line.split, line.condition, line.case, line.files, line.label))
    # From the lines, because no hash covers the counts in dataset.json.
    return Manifest(root, info.model_copy(update={"counts": count_splits(scenes)}), tuple(scenes))


def read_info(root: Path, dataset: str) -> DatasetInfo:
    """The description of a prepared data set, without its scenes.

    Raises:
        DataError: as :func:`read`.
    """
    path, line = folder(root, dataset) / INFO, prepare_line(root, dataset)
    if not path.is_file():
        here = ", ".join(prepared(root)) or "nothing"
        raise DataError(f"{root}: data set '{dataset}' is not prepared (prepared there: {here}); type: {line}")
    try:
        info = DatasetInfo.model_validate_json(documents.to_json(documents.read_json(path)), strict=True)
    except ValidationError as error:
        raise DataError(f"{path}: {_first_fault(error)}; fix it or prepare it again: {line}") from None
    if info.name != dataset:
        raise DataError(f"{path}: name: is '{info.name}', but its folder is '{dataset}'; write the folder's name there")
    return info


def count_splits(scenes: Iterable[Scene]) -> dict[str, int]:
    """Scenes per split: train, val, test, then others by name."""
    counts = Counter(scene.split for scene in scenes)
    return {name: counts[name] for name in sorted(counts, key=split_rank)}


def split_rank(split: str) -> tuple[int, str]:
    """Sort key for splits: train, val, test, then others by name."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def refuse_shared_ids(scenes: Sequence[Scene], *, where: str = "") -> None:
    """Refuse scenes whose outputs would be the same file on some file system; the message begins with ``where``.

    Raises:
        DataError: two ids are equal, or differ only in case or Unicode form; or a name is not valid UTF-8.
    """
    for scene in scenes:
        for name in (scene.id, *scene.paths):
            if not is_text(name):
                raise DataError(f"{where}{name!r}: is not valid UTF-8; rename it")
    for first, second in shared_ids(scenes):
        raise DataError(
            f"{where}scenes {scenes[first].id!r} and {scenes[second].id!r} would share one output file; rename one "
            "(case and file suffix alone do not tell two scenes apart)"
        )


def shared_ids(scenes: Sequence[Scene]) -> Iterator[tuple[int, int]]:
    """Pairs of scenes, as indices, whose outputs would be the same file on some file system."""
    seen: dict[str, int] = {}
    for index, scene in enumerate(scenes):
        first = seen.setdefault(unicodedata.normalize("NFC", scene.id).casefold(), index)
        if first != index:
            yield first, index


class _Line(Strict):
    """A line of ``scenes.jsonl``, possibly written by a person."""

    id: str
    split: str
    condition: str | None = None
    case: str | None = None
    files: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    label: str | None = None
    bytes: Any = None
    """The files' sizes, which only the hash uses."""

    @field_validator("id", "split", "label")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path is not None and not is_inside(path):
            raise ValueError(
                f"{path!r} is not a path below the data root, with single forward slashes and without '..'"
            )
        return path if path is None else _refuse_long(path)

    @field_validator("id")
    @classmethod
    def _names_outputs(cls, name: str) -> str:
        return _refuse_long(name, ending=OUTPUT)

    @field_validator("files")
    @classmethod
    def _all_stay_inside(cls, files: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for path in (path for paths in files.values() for path in paths):
            cls._stays_inside(path)
        return files


def _refuse_long(path: str, *, ending: str = "") -> str:
    """The path; refused if a name in it is too long for file systems."""
    if len(path) > SURELY_SHORT:
        longest = max(len(name.encode("utf-8", "surrogateescape")) for name in f"{path}{ending}".split("/"))
        if longest > NAME_BYTES:
            what = f" with the {ending} of its outputs" if ending else ""
            raise ValueError(
                f"'{shown(path, most=SURELY_SHORT)}' has a name of {longest} bytes{what}, and file systems take "
                f"{NAME_BYTES}; rename it"
            )
    return path


def _first_fault(error: ValidationError) -> str:
    """The first error of pydantic: ``key: reason``."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}{': ' if key else ''}{requirement(first['msg'])}"


def _line(root: Path, scene: Scene) -> dict[str, Any]:
    """A scene as a line: its fields, and the sizes of its files, so that the content hash covers them."""
    try:
        sizes = [(root / path).stat().st_size for path in scene.paths]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}, though it was there a moment ago; try again") from None
    return {**asdict(scene), "bytes": sizes}


def modalities_of(info: DatasetInfo, names: Sequence[str], *, antialias: bool | None = None) -> tuple[Modality, ...]:
    """The modalities with these names, in this order, from :meth:`DatasetInfo.chosen`.

    Raises:
        DataError: the data set has no such modality; if a published one was prepared without it, the message names its
            files.
    """
    known = [modality.name for modality in info.modalities]
    for name in names:
        if name in known:
            continue
        published = layout_of(info.name).sensors if info.name in DATASETS else ()
        for sensor in published:
            if sensor.modality.name == name:
                raise DataError(
                    f"{info.name}: was prepared without '{name}' (looked for {sensor.shown}); add the files and "
                    f"prepare it again, or choose from {', '.join(known)}"
                )
        raise DataError(f"{info.name}: has no modality '{name}'{did_you_mean(name, known)}")
    return info.chosen(names, antialias=antialias)
