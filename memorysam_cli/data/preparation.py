"""The steps of ``memorysam prepare``: find or render a data set, list its scenes, check them, write the manifest.

``memorysam check`` takes the first steps too, of a data set that is prepared, or of a published one that is only there.
People may have edited what a new preparation replaces, so what differs is kept beside the new files and reported.
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
"""Beside the manifest: the scenes that ``--drop-incomplete`` left out, and why."""
FOUND_KEYS = frozenset({"counts", "content_hash", "statistics", "ranges", "layout"})
"""Keys of ``dataset.json`` that say what was found, not what is to be done."""
FEWEST = 5
"""Validation scenes that mean something."""
NAMED = 5
"""Keys that a message names."""


def survey(name: str, root: Path, *, inside: Path | None = None) -> Manifest:
    """Find a published data set in or below ``root`` and list its scenes; nothing is checked or written yet.

    Args:
        name: of the data set.
        root: the data root.
        inside: look only in this folder of it, such as an unpacked archive.

    Raises:
        DataError: it is not there (see :class:`~memorysam_cli.data.layout.DataNotFound`), there twice, or
            without a scene.
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
    """List the scenes that :func:`render_synthetic` made, as the data set ``synthetic`` or ``synthetic-mcubes``."""
    name = synthetic_name(layout)
    real = replace(layout_of(layout), antialias=False)  # of no published code; the demo's figures are without
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
    """The listed scenes of a data set in or below a folder; nothing of them is read.

    Args:
        root: a data root, or the folder of a published data set or of a manifest.
        dataset: its name; none: the only one that is there.

    Raises:
        UsageError: more than one; says which, and what to type.
        DataError: none; likewise.
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
    """Where rendered scenes lie."""
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
    """Render scenes into ``root/mini-<layout>``, whole or not at all; the marker is written last.

    Scenes that are there already, whole and by the same arguments, are kept.

    Args:
        root: the data root.
        layout: in whose files.
        scenes: how many in all.
        size: of a picture, in pixels.
        seed: other worlds.
        advance: called after each scene.

    Returns:
        False if whole scenes of the same arguments are there already.

    Raises:
        UsageError: the folder is not ours, or holds scenes of other arguments; it is left untouched.
        FolderInUseError: somebody else is rendering them.
        EnvironmentFault: the disk is full or read-only.
    """
    from memorysam_cli.streetworld.scenes import render

    folder = synthetic_folder(root, layout=layout)
    arguments = {"layout": layout, "scenes": scenes, "size": size, "seed": seed}
    if _is_rendered_whole(folder, arguments):
        return False
    with lock.hold(manifests.folder(root, synthetic_name(layout))):
        if _is_rendered_whole(folder, arguments):  # another one was quicker
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
    """Whether scenes of the same arguments are there, and nothing is missing."""
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
    """Arguments as they are typed."""
    known = arguments if isinstance(arguments, dict) else {}
    return " ".join(f"--{name} {value}" for name, value in known.items() if name != "layout") or "other arguments"


def _marker(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the marker of a whole folder says."""
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
    """What came of a preparation."""

    report: CheckReport
    manifest: Path | None
    """The folder of the manifest; none if the check found problems, and no manifest was written."""
    info: DatasetInfo | None = None
    """As it was written."""

    def to_json(self) -> dict[str, Any]:
        """The one object of ``memorysam prepare --json``."""
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
        """The error that the problems amount to, if there are any."""
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
    """Check a listed data set, and write its manifest if nothing is wrong.

    Args:
        manifest: from :func:`survey` or :func:`survey_synthetic`, or made in another way.
        drop_incomplete: write a manifest of the scenes that can be used, and list the others in ``dropped.jsonl``.
        headers_only: see :func:`~memorysam_cli.data.check.check`.
        max_pixels: larger pictures are refused.
        measure: gets the data set as it will be written and returns what its ``dataset.json`` should say.
        notes: what was assumed in listing it, for the report.
        laws: conservation laws that its listing kept, for the report.
        accepts_edits: the manifest was read from the files that are now replaced.
        advance: called after each scene.

    Raises:
        EnvironmentFault: the manifest cannot be written; told before anything is read, where that can be known.
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
    """Check a listed data set, and hear what its published layout has to say; no manifest is written.

    Args:
        manifest: as of :func:`check_and_write`, as are the others.
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
    """Add what a published data set's layout has to say; rendered scenes under its name are called what they are."""
    if manifest.info.name not in DATASETS:
        apart = offsets(manifest.root, report.scenes, manifest.info.layout)
        return replace(report, warnings=(*report.warnings, *_few_to_validate(report)), offsets=apart)
    layout = layout_of(manifest.info.name)
    folder = manifest.root / manifest.info.root
    about = [f"{folder}: these are rendered scenes, not {layout.title}"] if is_rendered(folder) else []
    seen = layout.files(folder)
    prefix = "" if manifest.info.root == "." else f"{manifest.info.root}/"
    used = {path.removeprefix(prefix) for scene in manifest.scenes for path in scene.paths} & seen
    # By its name a file may be a scene's which the scene does not take: told as well, or it would go unseen.
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
    """A line on a validation split of one's own that is too small to choose a network by."""
    count = report.splits.get("val", 0)
    if report.dataset.startswith("synthetic") or not 0 < count < FEWEST:
        return []
    return [
        f"split val has {counted(count, 'scene')}: its mIoU is mostly chance, and 'best' is chosen by it; label "
        "more, or give it a larger share, such as --split 0.7/0.2/0.1"
    ]


def _list_dropped(path: Path, dropped: Sequence[Dropped]) -> None:
    """Write the list of the scenes that are left out; without any, no list of an earlier run stays."""
    if dropped:
        atomic.write_text(path, "".join(documents.to_json(scene.to_json()) + "\n" for scene in dropped))
    else:
        with atomic.faults(path):
            path.unlink(missing_ok=True)


def keep_superseded(root: Path, info: DatasetInfo, scenes: Sequence[Scene]) -> list[str]:
    """Copy the files of an earlier preparation that the new ones would change to ``….bak``.

    Args:
        root: the data root.
        info: what ``dataset.json`` will say.
        scenes: what ``scenes.jsonl`` will list.

    Returns:
        A line per file that was kept, with what is different.

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
    """How the earlier ``dataset.json`` differs, apart from what was found."""
    if not (place / INFO).is_file():
        return None
    try:
        old = DatasetInfo.model_validate(documents.read_json(place / INFO))
    except (DataError, ValidationError):
        return "was damaged"
    keys = list(_differences(_settings(old), _settings(info)))
    return f"{few(keys, NAMED)} had other values before" if keys else None


def _settings(info: DatasetInfo) -> dict[str, Any]:
    """What ``dataset.json`` says is to be done; modalities by their names, so that they are compared one by one."""
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
    """How the earlier ``scenes.jsonl`` differs, apart from the sizes of files."""
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
    """A scene as JSON gives it back."""
    return {**asdict(scene), "files": {name: list(paths) for name, paths in scene.files.items()}}


def _copied(path: Path) -> str:
    """Copy a file to the first free name; gives the name."""
    data = path.read_bytes()
    for number in range(1, 1000):
        copy = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        if not copy.exists():
            atomic.write_bytes(copy, data)
            return copy.name
        if copy.read_bytes() == data:
            return copy.name
    raise DataError(f"{shown(path)}: has 999 earlier copies (….bak) already; remove some")
