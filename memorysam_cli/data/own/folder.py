"""The user's own sensors: patterns for the files of each, paired into scenes and divided into splits.

The result is a manifest like that of a published data set. Frames are treated as usual for their kind of sensor, unless
options say otherwise. Warnings about the first few files are printed before all files are checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memorysam_cli.data import decode
from memorysam_cli.data.listing import unpaired
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.own.classes import ClassList, classes_of_values
from memorysam_cli.data.own.clocks import pair_by_time, path_stem, read_time
from memorysam_cli.data.own.patterns import (
    Match,
    Paired,
    Pattern,
    Role,
    Shares,
    notes_on_others,
    pair_by_name,
    pairing_name,
    split_by_lists,
    split_by_shares,
    splits_in_order,
)
from memorysam_cli.data.own.sensors import (
    DEFAULTS,
    LOOKED_AT,
    Measured,
    frames_of,
    guess_kind,
    make_modality,
    names_to_measure,
    notes_on_values,
)
from memorysam_cli.dataset import IGNORE, Color, DatasetInfo, Interpolation, Kind, LabelRule, Layout, Modality
from memorysam_cli.errors import DataError, Laws, UsageError, check_laws
from memorysam_cli.storage import images
from memorysam_cli.text import counted, few, shown

LABEL = "--labels"
NO_LABELS = "test"
"""The only split of a data set without labels."""
NO_CLASSES = ClassList(("unknown",), ((128, 128, 128),), has_colors=False, mapping=())
"""The class of a data set without labels; for prediction, the weights' classes are used."""
SHARES: Shares = (0.8, 0.1, 0.1)
NAMED = 5
"""Number of classes in a message."""


@dataclass(frozen=True)
class FolderRequest:
    """The options of ``memorysam prepare folder``."""

    name: str
    """Name of the data set."""
    modalities: Mapping[str, tuple[Pattern, ...]]
    """Name → one pattern, or two for an angle: sine and cosine."""
    labels: Pattern | None = None
    classes: ClassList | None = None
    """None with labels: classes are named after the labels' values."""
    split: Shares | Mapping[str, Path] | None = None
    """Shares, or a list file for each split; None: SHARES, or the values of ``{split}``."""
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """The kinds given by the user; others are guessed."""
    channels: Mapping[str, Sequence[int]] = field(default_factory=dict)
    bands: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    ignore: tuple[int, ...] | None = None
    """None: 255, unless labels without a class list have only one other value."""
    label_shift: int = 0
    seed: int = 0
    nodata: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Stored values that are not measurements."""
    resize: Mapping[str, Interpolation] = field(default_factory=dict)
    """Resampling of sensors that differs from their kind's default."""
    pair: Literal["name", "nearest"] = "name"
    tolerance_ns: int | None = None
    times: tuple[str, ...] = ()
    """Tables of times, relative to the root."""
    measured: Measured = "others"
    """Sensors that are normalized by their own values, so that their ranges need no remark."""

    def in_frames(self) -> FolderRequest:
        """Sensors with more than three channels as sensors of three each, which share files and options.

        Raises:
            UsageError: one of these has the name of another sensor.
        """
        taken: dict[str, Sequence[int | str]] = {**self.channels, **self.bands}
        frames = {name: frames_of(name, taken.get(name, ())) for name in self.modalities}
        names = [name for each in frames.values() for name in each]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--modality {name}=…: is what a frame of another sensor is called; rename it")

        def spread(values: Mapping[str, Any]) -> dict[str, Any]:
            return {frame: values[name] for name, each in frames.items() if name in values for frame in each}

        return replace(
            self,
            modalities=spread(self.modalities),
            kinds=spread(self.kinds),
            channels={
                key: each for name, chosen in self.channels.items() for key, each in frames_of(name, chosen).items()
            },
            bands={key: each for name, chosen in self.bands.items() for key, each in frames_of(name, chosen).items()},
            scale=spread(self.scale),
            nodata=spread(self.nodata),
            resize=spread(self.resize),
        )

    def layout(self) -> Layout:
        """The layout to store for the next recording."""
        return Layout(
            modalities={name: tuple(pattern.text for pattern in group) for name, group in self.modalities.items()},
            labels=None if self.labels is None else self.labels.text,
            pair=self.pair,
            tolerance_ns=self.tolerance_ns,
            times=self.times,
        )

    def patterns(self) -> dict[Role, Pattern]:
        """All patterns by their role."""
        found = {
            _role(name, part): pattern for name, group in self.modalities.items() for part, pattern in enumerate(group)
        }
        return found if self.labels is None else {**found, LABEL: self.labels}


@dataclass(frozen=True)
class FolderSurvey:
    """The scenes of a folder."""

    manifest: Manifest
    """The manifest, not written yet. Missing files of a scene have their expected names, so that the check reports
    them."""
    notes: tuple[str, ...]
    """Assumptions that were made."""
    laws: Laws
    """The checked law: no file was skipped."""


def survey(root: Path, request: FolderRequest) -> FolderSurvey:
    """List the scenes of a folder; nothing is checked or written yet.

    Args:
        root: the data root.
        request: patterns, classes and splits.

    Returns:
        The manifest; scenes sorted by split and id.

    Raises:
        DataError: no file matches a pattern, a label is also a sensor's file, files do not pair, or a list names
            unknown files.
        UsageError: a kind is unknown, or ``{split}`` is only in some patterns.
    """
    asked, request = request.modalities, request.in_frames()
    patterns = request.patterns()
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file' if root.exists() else 'does not exist'}; ROOT must be a folder")
    _refuse_half_split(patterns, request)
    modalities, notes = _modalities(request)
    notes += _notes_on_frames(asked, request)
    matches = {role: pattern.find(root) for role, pattern in patterns.items()}
    _refuse_labels_as_frames(matches)
    if request.labels is not None and request.classes is None:
        request, class_note = _with_classes_found(root, matches[LABEL], request)
        notes.append(class_note)
    _refuse_miscounted(matches, request)
    paired = _paired(root, matches, request)
    rows = paired.rows
    matched = sum(len(found) for found in matches.values())
    used = sum(len(row) for row in rows) + paired.left_out
    laws = check_laws({"files matched = files of scenes": (matched, used)})
    scenes, unlabeled, split_notes = _divided(
        [_scene(row, request=request) for row in rows],
        labeled={_id(row, request) for row in rows if LABEL in row},
        request=request,
    )
    classes = request.classes or NO_CLASSES
    info = DatasetInfo(
        name=request.name, title=request.name, classes=classes.names, palette=classes.palette, modalities=modalities,
        label=label_rule(root, matches.get(LABEL, []), request), unlabeled=unlabeled, layout=request.layout(),
    )  # fmt: skip
    manifest = Manifest(root=root, info=info, scenes=tuple(scenes))
    return FolderSurvey(
        manifest,
        (
            *notes,
            *notes_on_others(
                root, list(patterns.values()), {match.path for found in matches.values() for match in found}
            ),
            *paired.notes,
            *split_notes,
            *notes_on_values(manifest, measured=names_to_measure(modalities, request.measured)),
            *notes_on_labels(manifest),
        ),
        laws,
    )


def _notes_on_frames(asked: Iterable[str], request: FolderRequest) -> list[str]:
    """Lines on sensors of many channels that become several frames."""
    frames = {name: [each for each in request.modalities if each.startswith(f"{name}-")] for name in asked}
    return [
        f"'{name}' is fed as the frames {', '.join(parts)}"
        for name, parts in frames.items()
        if name not in request.modalities
    ]


def _role(name: str, part: int) -> Role:
    """The role of a modality's n-th file."""
    return f"{name}+{part}" if part else name


def _refuse_half_split(patterns: Mapping[Role, Pattern], request: FolderRequest) -> None:
    """Refuse ``{split}`` in only some of the patterns."""
    with_split = [pattern.text for pattern in patterns.values() if pattern.has_split]
    without = [pattern.text for pattern in patterns.values() if not pattern.has_split]
    if with_split and request.split is not None:
        raise UsageError(f"--split: '{with_split[0]}' already defines the splits; leave one of them out")
    if with_split and without:
        raise UsageError(
            f"pattern '{without[0]}': has no {{split}}, but '{with_split[0]}' has; write it in all or in none"
        )


def _refuse_miscounted(matches: Mapping[Role, Sequence[Match]], request: FolderRequest) -> None:
    """Refuse ``--channels`` (from 0) for rasters and ``--bands`` (from 1) for other files."""
    for name, numbers in request.channels.items():
        raster = next((match.path for match in matches[name] if _is_raster(match.path)), None)
        if raster is not None:
            channels, bands = (",".join(str(number + first) for number in numbers) for first in (0, 1))
            raise UsageError(
                f"--channels {name}={channels}: {shown(raster)} is a raster, whose bands are counted from 1; the same "
                f"are --bands {name}={bands}"
            )
    for name, wanted in request.bands.items():
        other = next((match.path for match in matches[name] if not _is_raster(match.path)), None)
        if other is not None:
            raise UsageError(
                f"--bands {name}={','.join(map(str, wanted))}: {shown(other)} is not a raster (TIFF); "
                f"--channels {name}=… "
                "takes its channels, counted from 0"
            )


def _is_raster(path: str) -> bool:
    """Whether a file is a raster, by its name; the check reads its content."""
    return path.lower().endswith((".tif", ".tiff"))


def _modalities(request: FolderRequest) -> tuple[tuple[Modality, ...], list[str]]:
    """The sensors, and guesses about them."""
    made, notes = [], []
    for name, group in request.modalities.items():
        kind = request.kinds.get(name)
        if kind is None:
            kind = "angle" if len(group) > 1 else guess_kind(name)
            if kind != name:
                notes.append(f"'{name}' is treated as kind '{kind}'; --kind {name}=… overrides this")
        if (kind == "angle") != (len(group) > 1) and not (
            kind == "angle" and name in {**request.channels, **request.bands}
        ):
            raise UsageError(
                f"--modality {name}: an angle has two patterns, of its sine and of its cosine, joined by '+', or "
                f"--channels {name}=0,1,0 of one file; nothing else has two (here: {len(group)} for kind '{kind}')"
            )
        found = make_modality(
            name,
            kind,
            scale=request.scale.get(name),
            channels=request.channels.get(name),
            bands=request.bands.get(name),
        )
        update: dict[str, Any] = {"nodata": tuple(request.nodata.get(name, ()))}
        if name in request.resize:
            update["interpolation"] = request.resize[name]
            if request.resize[name] != "nearest" and DEFAULTS[kind].interpolation == "nearest":
                raise UsageError(
                    f"--resize {name}={request.resize[name]}: '{name}' is of kind {kind}, where a value between two "
                    "neighbors was never measured; leave it at nearest, or give another --kind"
                )
        made.append(found.model_copy(update=update))
    return tuple(made), notes


def _with_classes_found(root: Path, labels: Sequence[Match], request: FolderRequest) -> tuple[FolderRequest, str]:
    """The request with a class for each value of the labels, and a line on it."""
    if request.label_shift:
        raise UsageError("--label-shift: without --classes, the labels' own values are the classes; leave it out")
    found = classes_of_values(root, [label.path for label in labels], ignored=request.ignore)
    given = few(found.names, NAMED)
    return (
        replace(request, classes=found),
        f"no class list: the labels' values are the classes ({given}); --classes FILE names them, one per line",
    )


def _refuse_labels_as_frames(matches: Mapping[Role, Sequence[Match]]) -> None:
    """Refuse labels as a sensor, because the network would see the answer."""
    labels = {match.path for match in matches.get(LABEL, ())}
    for role, found in matches.items():
        both = next((match.path for match in found if role != LABEL and match.path in labels), None)
        if both is not None:
            raise DataError(
                f"{both}: is matched by '{role}' and by --labels; narrow the patterns, such as images/*.png"
            )


def _paired(root: Path, matches: Mapping[Role, Sequence[Match]], request: FolderRequest) -> Paired:
    """One row per scene: the matches of each role; and how they were paired, if not by name."""
    layout = request.layout()
    if layout.pair == "nearest":
        # Lists name scenes, and a whole split may have no labels; the check reports missing labels.
        may_lack = isinstance(request.split, Mapping) or any(
            pattern.has_split for pattern in request.patterns().values()
        )
        return pair_by_time(root, matches, layout, whole=set(matches) - ({LABEL} if may_lack else set()))
    try:
        paired = pair_by_name(matches)
    except DataError:
        sources = {role: {pairing_name(match): match for match in found} for role, found in matches.items()}
        raise _unpaired(sources, request) from None
    lacking = sum(not set(matches) - {LABEL} <= set(row) for row in paired.rows)
    if lacking and _hold_times(match for found in matches.values() for match in found):
        note = f"{lacking} of {counted(len(paired.rows), 'name', 'is')} not in every sensor's folder; {BY_TIME}"
        return replace(paired, notes=[*paired.notes, note])
    return paired


PAIR_BY_TIME = {"--pair": "nearest", "--tolerance": "20ms"}
"""The proposed tolerance if the names have times."""
TOLERANCE_NS = 20_000_000
BY_TIME = f"the names contain times: add {' '.join(word for pair in PAIR_BY_TIME.items() for word in pair)}"


class TimesDifferError(DataError):
    """Files do not pair by name, but all names have times: they may pair by the nearest ones."""


def _hold_times(matches: Iterable[Match]) -> bool:
    return all(read_time(path_stem(match.path)) for match in matches)


def _unpaired(sources: Mapping[Role, Mapping[str, Match]], request: FolderRequest) -> DataError:
    """The files that do not pair, and what to do."""
    lonely = unpaired({role: {name: name for name in found} for role, found in sources.items()})
    assert lonely is not None  # otherwise they pair
    other = next(role for role in sources if role != lonely)
    one, two = (min(sources[role]) for role in (lonely, other))
    names = (
        f"'{lonely}' pairs with nothing: {shown(sources[lonely][one].path)} goes by the name '{shown(one)}', and "
        f"{shown(sources[other][two].path)} of '{other}' by '{shown(two)}' (what the wildcards stand for)"
    )
    typed = _patterns_that_pair(sources, request)
    if _hold_times(match for found in sources.values() for match in found.values()):
        return TimesDifferError(f"{names}; {BY_TIME}")
    rename = (
        "give the files of one scene the same name in every folder, or write what differs into the patterns, such as"
    )
    return DataError(f"{names}; {f'type: {typed}' if typed else f'{rename} depth/*_depth.png'}")


def _patterns_that_pair(sources: Mapping[Role, Mapping[str, Match]], request: FolderRequest) -> str:
    """Options with patterns that include the common part of a folder's names, if the files then pair."""
    patterns = request.patterns()
    narrow = {role: patterns[role].narrowed(found.values()) or patterns[role] for role, found in sources.items()}
    again = {role: [narrow[role].match(match.path) for match in found.values()] for role, found in sources.items()}
    keys = {
        role: {pairing_name(match): pairing_name(match) for match in found if match} for role, found in again.items()
    }
    if unpaired(keys) is not None:
        return ""
    options = {
        name: f"--modality '{name}={'+'.join(narrow[_role(name, part)].text for part, _ in enumerate(group))}'"
        for name, group in request.modalities.items()
    }
    labels = [f"--labels '{narrow[LABEL].text}'"] if LABEL in narrow else []
    return " ".join([*options.values(), *labels])


def _first(row: Mapping[Role, Match], request: FolderRequest) -> Match:
    """The file that gives a scene its name."""
    return next(row[role] for role in request.patterns() if role in row)


def _id(row: Mapping[Role, Match], request: FolderRequest) -> str:
    """A scene's id."""
    return pairing_name(_first(row, request))


def _scene(row: Mapping[Role, Match], *, request: FolderRequest) -> Scene:
    """A scene; missing files have their expected names."""
    first = _first(row, request)

    def path(role: Role, pattern: Pattern) -> str:
        return row[role].path if role in row else pattern.filled(first.parts, first.split)

    files = {
        name: tuple(path(_role(name, part), pattern) for part, pattern in enumerate(group))
        for name, group in request.modalities.items()
    }
    label = None if request.labels is None else path(LABEL, request.labels)
    return Scene(id=pairing_name(first), split=first.split or "", condition=None, case=None, files=files, label=label)


def _divided(
    scenes: Sequence[Scene], *, labeled: set[str], request: FolderRequest
) -> tuple[list[Scene], tuple[str, ...], list[str]]:
    """The scenes with their splits, the splits without labels, and remarks."""
    notes: list[str] = []
    if scenes[0].split:
        splits = {scene.id: scene.split for scene in scenes}
    elif isinstance(request.split, Mapping):
        files = {scene.id: [path for group in scene.files.values() for path in group] for scene in scenes}
        splits = split_by_lists(files, request.split)
        if len(splits) < len(scenes):
            notes.append(
                f"{len(scenes) - len(splits)} of {counted(len(scenes), 'scene', 'is')} in no list and left out"
            )
    elif request.labels is None and request.split is None:
        splits = dict.fromkeys((scene.id for scene in scenes), NO_LABELS)
    else:
        splits = split_by_shares([scene.id for scene in scenes], request.split or SHARES, seed=request.seed)
    # A whole split without labels is intended (a test set); a single missing label is a problem for the check.
    is_chance = request.labels is not None and not isinstance(request.split, Mapping) and not scenes[0].split
    with_labels = {splits[name] for name in labeled if name in splits}
    order = splits_in_order(list(splits.values()))
    unlabeled = () if is_chance else tuple(split for split in order if split not in with_labels)
    if unlabeled and request.labels is not None:
        notes.append(f"split {', '.join(unlabeled)}: has no label at all; its scenes can be predicted, not scored")
    chosen = [
        replace(scene, split=splits[scene.id], label=None if splits[scene.id] in unlabeled else scene.label)
        for scene in scenes
        if scene.id in splits
    ]
    return sorted(chosen, key=lambda scene: (order.index(scene.split), scene.id)), unlabeled, notes


def label_rule(root: Path, labels: Sequence[Match], request: FolderRequest) -> LabelRule:
    """How the label files' values become classes.

    Raises:
        UsageError: they are in color, and the class list has no colors; or values are both listed and shifted, or
            listed and ignored.
    """
    ignored = (IGNORE,) if request.ignore is None else request.ignore
    if request.classes is None or not labels:
        return LabelRule(shift=request.label_shift, ignore=ignored)
    in_color = _first_in_color(root, [label.path for label in labels[:LOOKED_AT]], request.classes)
    is_color, mapping = in_color is not None, request.classes.mapping
    if is_color and not request.classes.has_colors:
        raise UsageError(
            f"{in_color}: is in color; give each class its color in the class list, such as "
            f"'{request.classes.names[0]} 128 64 128', or make labels of class numbers"
        )
    if mapping and request.label_shift:
        raise UsageError(f"--label-shift {request.label_shift}: the class list gives the values already; leave one out")
    listed = {raw for raw, _ in mapping}
    # 255 is ignored by default; any other value was given.
    if both := sorted(listed & set(ignored) - {IGNORE}):
        raise UsageError(f"--ignore {both[0]}: is the value of a class in the class list; leave one out")
    ignore = tuple(value for value in ignored if value not in listed)
    return LabelRule(shift=request.label_shift, ignore=ignore, mapping=() if is_color else mapping, colors=is_color)


def _first_in_color(root: Path, paths: Sequence[str], classes: ClassList) -> str | None:
    """The first label that is a color picture; None if the labels have class numbers.

    A picture with a palette and one with four channels may be either. If the class list has colors, it is a color
    picture if most of its colors are those of classes. Otherwise its values are numbers if that is possible.
    """
    seen: dict[str, set[Color]] = {}
    for path in paths:
        try:
            header = images.header(root / path)
            if header.channels == len("RGB") and not header.has_palette:
                return path
            if classes.has_colors and (header.channels == len("RGBA") or header.has_palette):
                seen[path] = _colors(images.read(root / path))
            elif not decode.is_number(images.read(root / path, as_numbers=True)):
                return path
        except DataError:  # the check reports it
            continue
    found: set[Color] = set().union(*seen.values())
    return next(iter(seen)) if 2 * len(found & set(classes.palette)) > len(found) else None


def _colors(picture: Any) -> set[Color]:
    """All colors of an (H, W), (H, W, 3) or (H, W, 4) picture."""
    channels = np.stack([picture] * 3, axis=-1) if picture.ndim == len("HW") else picture[..., :3]
    return {(red, green, blue) for red, green, blue in np.unique(channels.reshape(-1, 3), axis=0).tolist()}


def notes_on_labels(manifest: Manifest) -> list[str]:
    """Remarks on labels that count from 1, on masks with one class and 'ignored' only (often 0 and 255), and on a class
    whose number is the files' own nodata value."""
    return [*_notes_on_numbers(manifest), *_notes_on_tags(manifest)]


def _notes_on_tags(manifest: Manifest) -> list[str]:
    """Remarks on nodata tags: GIS programs write 0 there by default, which may be a class, so it is kept and
    reported."""
    rule, tags = manifest.info.label, set()
    for path in [scene.label for scene in manifest.scenes if scene.label][:LOOKED_AT]:
        with suppress(DataError):  # the check reports it
            tags.add(images.header(manifest.root / path).nodata)
    counted = {raw for raw, _ in rule.mapping} or {index - rule.shift for index in range(len(manifest.info.classes))}
    kept = sorted(int(tag) for tag in tags if tag is not None and tag in counted - set(rule.ignore))
    return [
        f"the first labels' own tag calls {value} nodata, but it is the number of a class; if these should be "
        f"ignored: --ignore {value}"
        for value in kept
    ]


def _notes_on_numbers(manifest: Manifest) -> list[str]:
    """Remarks on the first labels' values."""
    rule = manifest.info.label
    if rule.mapping or rule.colors:
        return []
    paths = [scene.label for scene in manifest.scenes if scene.label][:LOOKED_AT]
    try:
        found = {int(value) for path in paths for value in np.unique(decode.raw_label(manifest.root / path, rule))}
    except DataError:  # the check reports it
        return []
    given, ignored = found - set(rule.ignore), min(found & set(rule.ignore), default=None)
    if given and rule.shift == 0 and (min(given), max(given)) == (1, len(manifest.info.classes)):
        return [f"the first labels hold 1 to {max(given)}; classes are counted from 0: --label-shift -1 moves them"]
    if len(manifest.info.classes) < 2 or ignored is None or len(given) > 1:
        return []
    one, two = manifest.info.classes[:2]
    return [
        f"the first labels hold {' and '.join(map(str, sorted(found)))} only, and {ignored} counts as 'ignored'; if "
        f"it is a class, give values in the class list, such as '0: {one}' and '{ignored}: {two}'"
    ]
