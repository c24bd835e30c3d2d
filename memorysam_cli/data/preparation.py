"""The steps of ``memorysam prepare``: find or render a data set, list its scenes, check them, write the manifest.

``memorysam check`` uses the first steps, for a prepared data set or a published one. The user may have edited files
that a new preparation replaces, so changed files are kept beside the new ones and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from memorysam_cli import __version__
from memorysam_cli.data import DATASETS, layout_of
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.check import check
from memorysam_cli.data.findings import CheckReport, Dropped, Problem
from memorysam_cli.data.layout import MARKER, DataAmbiguous, DataNotFound, DatasetLayout, is_rendered
from memorysam_cli.data.listing import by_suffix, relative, walk
from memorysam_cli.data.manifest import INFO, SCENES, Manifest, Scene
from memorysam_cli.data.own.clocks import offsets
from memorysam_cli.data.statistics import measured_scenes, value_ranges
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.errors import DataError, Laws, PartialError, UsageError, check_laws, did_you_mean
from memorysam_cli.storage import atomic, documents, lock
from memorysam_cli.storage.archive import archives_in
from memorysam_cli.text import command, counted, few, shown, typed

SyntheticLayout = Literal["deliver", "mcubes"]
SCHEMA_VERSION = 1
DROPPED = "dropped.jsonl"
"""File beside the manifest: the scenes that ``--drop-incomplete`` left out, with reasons."""
FOUND_KEYS = frozenset({"counts", "content_hash", "statistics", "ranges", "layout"})
"""Keys of ``dataset.json`` that are results, not settings."""
FEWEST = 5
"""Smallest useful number of validation scenes."""
NAMED = 5
"""Number of keys in a message."""


def survey(name: str, root: Path, *, inside: Path | None = None) -> Manifest:
    """Find a published data set in or below ``root`` and list its scenes; nothing is checked or written yet.

    Args:
        name: of the data set.
        root: the data root.
        inside: look only in this folder of it, such as an unpacked archive.

    Raises:
        DataError: it does not exist (see :class:`~memorysam_cli.data.layout.DataNotFound`), exists twice, or has no
            scene.
    """
    layout = layout_of(name)
    try:
        folder = layout.find(inside or root)
    except DataNotFound as fault:
        packed = archives_in(root, named=(layout.name, layout.folder)) or archives_in(root)
        if not packed or inside is not None:
            raise
        line = command("prepare", layout.name, packed[0])
        raise DataNotFound(
            f"{fault}; to unpack {shown(packed[0].name)}: {line}", expected_tree=fault.expected_tree
        ) from None
    return _listed(layout, folder=folder, root=root)


def synthetic_name(layout: SyntheticLayout) -> str:
    """The name of the data set of rendered scenes."""
    return "synthetic" if layout == "deliver" else f"synthetic-{layout}"


def survey_synthetic(root: Path, *, layout: SyntheticLayout) -> Manifest:
    """List the scenes of :func:`render_synthetic`, as the data set ``synthetic`` or ``synthetic-mcubes``."""
    name = synthetic_name(layout)
    real = replace(layout_of(layout), antialias=False)  # not in any published code; the demo's scores are without it
    manifest = _listed(real, folder=real.find(synthetic_folder(root, layout=layout)), root=root)
    info = manifest.info.model_copy(update={"name": name, "title": f"mini-{real.title}"})
    return replace(manifest, info=info)


def _listed(layout: DatasetLayout, *, folder: Path, root: Path) -> Manifest:
    """The unwritten manifest of a folder."""
    scenes = tuple(layout.survey(folder, root))
    info = layout.info(folder)
    labeled = {scene.split for scene in scenes if scene.label is not None}
    # Labels that a layout calls hidden may have been published since.
    hidden = tuple(split for split in info.unlabeled if split not in labeled)
    update = {"root": relative(folder, root).as_posix(), "unlabeled": hidden}
    return Manifest(root=root, info=info.model_copy(update=update), scenes=scenes)


def find_target(root: Path, *, dataset: str | None = None) -> Manifest:
    """The listed scenes of a data set in or below a folder; no file is read.

    Args:
        root: a data root, or the folder of a published data set or of a manifest.
        dataset: its name; None: the only one there.

    Raises:
        UsageError: more than one; the message names them and the command.
        DataError: none; the message names the command.
    """
    named = manifests.named_by(root)
    if named is not None and dataset in {None, named[1]}:
        root, dataset = named
    if not root.is_dir():
        raise DataError(
            f"{root}: {'is not a folder' if root.exists() else 'does not exist'}; name the folder of the data"
        )
    prepared = manifests.prepared(root)
    if dataset in prepared or (dataset is None and len(prepared) == 1):
        return manifests.read_unsigned(root, dataset or prepared[0])
    if dataset is not None and dataset not in DATASETS:
        raise DataError(
            f"{root}: no data set '{dataset}' is prepared there, and none of that name is published"
            f"{did_you_mean(dataset, [*prepared, *DATASETS])}"
        )
    if dataset is not None:
        return survey(dataset, root)
    if prepared:
        others = ", ".join(f"--dataset {typed(name)}" for name in prepared[1:])
        raise UsageError(
            f"{root}: {len(prepared)} data sets are prepared there; type: "
            f"{command('check', root, '--dataset', prepared[0])} (or {others})"
        )
    found = [name for name in DATASETS if _is_there(name, root)]
    if len(found) == 1:
        return survey(found[0], root)
    if found:
        raise DataError(f"{root}: looks like {' and like '.join(found)}; name one with --dataset")
    raise DataError(
        f"{root}: holds no prepared data set and none that is known (known: {', '.join(DATASETS)}); for sensors "
        f"of your own type: {manifests.own_line(root)}"
    )


def _is_there(name: str, root: Path) -> bool:
    try:
        layout_of(name).find(root)
    except DataNotFound:
        return False
    except DataAmbiguous:  # survey then says where
        return True
    return True


def synthetic_folder(root: Path, *, layout: SyntheticLayout) -> Path:
    """The folder of rendered scenes."""
    return root / f"mini-{layout}"


def render_synthetic(
    root: Path,
    *,
    layout: SyntheticLayout,
    scenes: int,
    size: int,
    seed: int,
    advance: Callable[[], None] | None = None,
) -> bool:
    """Render scenes into ``root/mini-<layout>``, completely or not at all; the marker is written last.

    Complete scenes with the same arguments are kept.

    Args:
        root: the data root.
        layout: of the files.
        scenes: number of scenes.
        size: of a picture, in pixels.
        seed: of the scenes.
        advance: called after each scene.

    Returns:
        False if complete scenes with the same arguments already exist.

    Raises:
        UsageError: the folder is not ours, or has scenes with other arguments; it does not change.
        FolderInUseError: another process is rendering them.
        EnvironmentFault: the disk is full or read-only.
    """
    from memorysam_cli.streetworld.scenes import render

    folder = synthetic_folder(root, layout=layout)
    arguments = {"layout": layout, "scenes": scenes, "size": size, "seed": seed}
    if _is_rendered_whole(folder, arguments):
        return False
    with lock.hold(manifests.folder(root, synthetic_name(layout))):
        if _is_rendered_whole(folder, arguments):  # another process was faster
            return False
        if folder.exists():
            # The same scenes, but files are missing or another version rendered them: replaced one by one.
            render(folder, layout=layout, scenes=scenes, size=size, seed=seed, advance=advance)
            _mark(folder, arguments)
        else:
            with atomic.new_folder(folder) as unfinished:
                render(unfinished, layout=layout, scenes=scenes, size=size, seed=seed, advance=advance)
                _mark(unfinished, arguments)
    return True


def _is_rendered_whole(folder: Path, arguments: dict[str, Any]) -> bool:
    """Whether complete scenes with the same arguments exist."""
    return folder.exists() and _marker_of_the_same(folder, arguments) == _marker(folder, arguments)


def _marker_of_the_same(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """The marker of a folder that is ours and was rendered with the same arguments."""
    if not (folder / MARKER).is_file():
        raise UsageError(f"{folder}: exists and was not made by 'prepare synthetic'; move it or choose another ROOT")
    marker = documents.read_json(folder / MARKER)
    before = marker.get("arguments") if isinstance(marker, dict) else None
    if before != arguments:
        raise UsageError(
            f"{folder}: was rendered with {_as_options(before)}, not {_as_options(arguments)}; give the first to "
            "keep it, or remove it, or choose another ROOT"
        )
    return dict(marker)


def _as_options(arguments: Any) -> str:
    """Arguments in the form of options."""
    known = arguments if isinstance(arguments, dict) else {}
    return " ".join(f"--{name} {value}" for name, value in known.items() if name != "layout") or "other arguments"


def _marker(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """The content of a complete folder's marker."""
    sizes = [
        (folder / inside / name).stat().st_size
        for inside, names in walk(folder)
        for name in names
        if name != MARKER and inside.split("/")[0] != "memorysam"
    ]
    return {"arguments": arguments, "made_by": f"memorysam {__version__}", "files": len(sizes), "bytes": sum(sizes)}


def _mark(folder: Path, arguments: dict[str, Any]) -> None:
    """Write the marker."""
    documents.write_json(folder / MARKER, _marker(folder, arguments))


@dataclass(frozen=True)
class Prepared:
    """The result of a preparation."""

    report: CheckReport
    manifest: Path | None
    """The folder of the manifest; None if the check found problems, and no manifest was written."""
    info: DatasetInfo | None = None
    """The manifest as written."""

    def to_json(self) -> dict[str, Any]:
        """The object of ``memorysam prepare --json``."""
        found = self.report.to_json()
        place = None if self.manifest is None else str(self.manifest.absolute())
        first = {"schema_version": SCHEMA_VERSION, "dataset": found.pop("dataset"), "root": found.pop("root")}
        sensors = (
            {} if self.info is None else {each.name: self._sensor(each, self.info) for each in self.info.modalities}
        )
        return {**first, "manifest": place, **found, "sensors": sensors}

    def _sensor(self, modality: Modality, info: DatasetInfo) -> dict[str, Any]:
        """How a sensor's values are stored and normalized."""
        values = info.ranges.get(modality.name)
        return {
            "kind": modality.kind,
            "dtypes": [] if values is None else list(values.dtypes),
            "low": None if values is None else values.low,
            "high": None if values is None else values.high,
            "nodata": list(modality.nodata if values is None else values.nodata),
            "scale": modality.scale,
            "offset": modality.offset,
            "mean": modality.mean,
            "std": modality.std,
        }

    def fault(self) -> DataError | PartialError | None:
        """The error for the problems, if there are any."""
        report = self.report
        if not report.problems:
            return None
        kinds = ", ".join(f"{problem.count} × {problem.kind}" for problem in report.problems)
        if self.manifest is not None:
            return PartialError(
                f"{report.root}: data set '{report.dataset}' is prepared without {len(report.dropped)} of "
                f"{counted(len(report.dropped) + len(report.scenes), 'scene')} ({kinds}); they are listed in "
                f"{self.manifest / DROPPED}"
            )
        remedy = "no scene is left; fix the files" if report.dropped else "fix the files, or leave such scenes out"
        return DataError(
            f"{report.root}: data set '{report.dataset}' has problems ({kinds}), first "
            f"{report.problems[0].first[0]}; no manifest was written; {remedy}"
            f"{'' if report.dropped else ' with --drop-incomplete'}, and prepare again"
        )


def check_and_write(
    manifest: Manifest,
    *,
    drop_incomplete: bool = False,
    headers_only: bool = False,
    max_pixels: int | None = None,
    measure: Callable[[Manifest], DatasetInfo] | None = None,
    notes: Sequence[str] = (),
    laws: Laws | None = None,
    accepts_edits: bool = False,
    advance: Callable[[], object] | None = None,
) -> Prepared:
    """Check a listed data set, and write its manifest if there are no problems.

    Args:
        manifest: from :func:`survey` or :func:`survey_synthetic`, or created in another way.
        drop_incomplete: write a manifest of the usable scenes, and list the others in ``dropped.jsonl``.
        headers_only: see :func:`~memorysam_cli.data.check.check`.
        max_pixels: larger pictures are refused.
        measure: called with the data set; returns the data set to write.
        notes: assumptions made in listing it, for the report.
        laws: laws checked in listing it, for the report.
        accepts_edits: the manifest was read from the files that are now replaced.
        advance: called after each scene.

    Raises:
        EnvironmentFault: the manifest cannot be written; if possible, raised before anything is read.
    """
    place = manifests.folder(manifest.root, manifest.info.name)
    atomic.refuse_unwritable(place)
    report = examine(
        manifest, drop_incomplete=drop_incomplete, headers_only=headers_only, max_pixels=max_pixels, advance=advance
    )
    report = replace(report, notes=tuple(notes))
    report = replace(report, laws=(laws or {}) | report.laws)
    if (report.problems and not report.dropped) or not report.scenes:
        return Prepared(report, manifest=None)
    info = manifest.info.model_copy(update={"counts": report.splits})
    if measure is not None:
        info = measure(replace(manifest, info=info, scenes=report.scenes))
    ranges = value_ranges(
        manifest.root, measured_scenes(replace(manifest, scenes=report.scenes)), info.modalities, max_pixels=max_pixels
    )
    info = info.model_copy(update={"ranges": ranges})
    if not accepts_edits:
        kept = keep_superseded(manifest.root, info, report.scenes)
        report = replace(report, warnings=(*report.warnings, *kept))
    _list_dropped(place / DROPPED, report.dropped)
    manifests.write(manifest.root, info, report.scenes)
    return Prepared(report, manifest=place, info=info)


def examine(
    manifest: Manifest,
    *,
    drop_incomplete: bool = False,
    headers_only: bool = False,
    max_pixels: int | None = None,
    advance: Callable[[], object] | None = None,
) -> CheckReport:
    """Check a listed data set, with the remarks of its published layout; no manifest is written.

    Args:
        manifest: as for :func:`check_and_write`, as are the others.
        drop_incomplete: leave scenes with problems out of the figures.
        headers_only: see :func:`~memorysam_cli.data.check.check`.
        max_pixels: larger pictures are refused.
        advance: called after each scene.
    """
    report = check(
        manifest, drop_incomplete=drop_incomplete, headers_only=headers_only, max_pixels=max_pixels, advance=advance
    )
    return _with_layout(report, manifest)


def _with_layout(report: CheckReport, manifest: Manifest) -> CheckReport:
    """Add the remarks of a published data set's layout; rendered scenes under its name are reported."""
    if manifest.info.name not in DATASETS:
        apart = offsets(manifest.root, report.scenes, manifest.info.layout)
        return replace(report, warnings=(*report.warnings, *_few_to_validate(report)), offsets=apart)
    layout = layout_of(manifest.info.name)
    folder = manifest.root / manifest.info.root
    about = [f"{folder}: these are rendered scenes, not {layout.title}"] if is_rendered(folder) else []
    seen = layout.files(folder)
    prefix = "" if manifest.info.root == "." else f"{manifest.info.root}/"
    used = {path.removeprefix(prefix) for scene in manifest.scenes for path in scene.paths} & seen
    # A file may have a scene's name but not be used by it; it is reported as well.
    ignored = sorted({*layout.strays(folder, manifest.scenes), *(seen - used)})
    strays = Problem.of("stray", ignored)
    if strays.count:
        files = counted(strays.count, "file", "belongs")
        about.append(f"{files} to no scene ({by_suffix(ignored)}), such as {shown(strays.first[0])}")
    return replace(
        report,
        warnings=(*report.warnings, *about, *layout.remarks(report.scenes)),
        published=dict(layout.published(manifest.scenes)),
        strays=strays,
        laws=report.laws | check_laws({"files seen = of scenes + strays": (len(seen), len(used) + len(ignored))}),
    )


def _few_to_validate(report: CheckReport) -> list[str]:
    """A line on a validation split that is too small to choose the best weights."""
    count = report.splits.get("val", 0)
    if report.dataset.startswith("synthetic") or not 0 < count < FEWEST:
        return []
    return [
        f"split val has {counted(count, 'scene')}: its mIoU is mostly chance, and 'best' is chosen by it; label "
        "more, or give it a larger share, such as --split 0.7/0.2/0.1"
    ]


def _list_dropped(path: Path, dropped: Sequence[Dropped]) -> None:
    """Write the list of left-out scenes; without any, the list of an earlier run is removed."""
    if dropped:
        atomic.write_text(path, "".join(documents.to_json(scene.to_json()) + "\n" for scene in dropped))
    else:
        with atomic.faults(path):
            path.unlink(missing_ok=True)


def keep_superseded(root: Path, info: DatasetInfo, scenes: Sequence[Scene]) -> list[str]:
    """Copy the files of an earlier preparation that will change to ``….bak``.

    Args:
        root: the data root.
        info: the new content of ``dataset.json``.
        scenes: the new content of ``scenes.jsonl``.

    Returns:
        A line per file that was kept, with the differences.

    Raises:
        EnvironmentFault: the copy cannot be written.
    """
    place = manifests.folder(root, info.name)
    notes = []
    for path, difference in ((place / INFO, _of_info(place, info)), (place / SCENES, _of_scenes(place, scenes))):
        if difference:
            again = f"to use it, put it back and type: {manifests.sign_line(root, info.name)}"
            notes.append(f"{shown(path)}: {difference}; the earlier one is kept as {_copied(path)} ({again})")
    return notes


def _of_info(place: Path, info: DatasetInfo) -> str | None:
    """How the earlier ``dataset.json`` differs, without results."""
    if not (place / INFO).is_file():
        return None
    try:
        old = DatasetInfo.model_validate(documents.read_json(place / INFO))
    except (DataError, ValidationError):
        return "was damaged"
    keys = list(_differences(_settings(old), _settings(info)))
    return f"{few(keys, NAMED)} had other values before" if keys else None


def _settings(info: DatasetInfo) -> dict[str, Any]:
    """The settings in ``dataset.json``; modalities by name, so that they are compared one by one."""
    settings = info.model_dump(mode="json", exclude=set(FOUND_KEYS))
    return {**settings, "modalities": {each["name"]: each for each in settings["modalities"]}}


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """The keys that are different, such as ``modalities.img.scale``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key


def _of_scenes(place: Path, scenes: Sequence[Scene]) -> str | None:
    """How the earlier ``scenes.jsonl`` differs, without the sizes of files."""
    if not (place / SCENES).is_file():
        return None
    try:
        lines = documents.read_json_lines(place / SCENES)
        old = {line["id"]: {key: value for key, value in line.items() if key != "bytes"} for line in lines}
    except (DataError, AttributeError, KeyError, TypeError):
        return "was damaged"
    new = {scene.id: _plain(scene) for scene in scenes}
    changed = [name for name in old if name in new and old[name] != new[name]]
    counts = {"more": len(new.keys() - old.keys()), "fewer": len(old.keys() - new.keys()), "changed": len(changed)}
    if not any(counts.values()):
        return None
    such = f" (e.g. {shown(changed[0])})" if changed else ""
    return f"scenes differ from before: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}{such}"


def _plain(scene: Scene) -> dict[str, Any]:
    """A scene as plain JSON values."""
    return {**asdict(scene), "files": {name: list(paths) for name, paths in scene.files.items()}}


def _copied(path: Path) -> str:
    """Copy a file to the first free name; returns the name."""
    data = path.read_bytes()
    for number in range(1, 1000):
        copy = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        if not copy.exists():
            atomic.write_bytes(copy, data)
            return copy.name
        if copy.read_bytes() == data:
            return copy.name
    raise DataError(f"{shown(path)}: has 999 earlier copies (….bak) already; remove some")
