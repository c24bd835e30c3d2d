"""The files of a published data set: one declaration per data set, one implementation for all.

A declaration (``data/datasets/<name>.py``) has templates of whole path components below the data set's folder, for the
files of each modality and for the labels. It also has their meaning, and the text files that list the scenes of each
split. Information is never read from a part of a component or from the user's own folders, because ``rain`` is in every
``train``.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from memorysam_cli.data.listing import (
    Fields,
    Template,
    Tree,
    compiled,
    relative,
    sample_names,
    subfolders,
    walk,
)
from memorysam_cli.data.manifest import SPLITS, Scene
from memorysam_cli.dataset import Color, Crop, DatasetInfo, LabelRule, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import documents
from memorysam_cli.text import counted, shown

MARKER = "memorysam-synthetic.json"
"""File in a folder that ``prepare synthetic`` rendered; it has the arguments of the rendering."""
DEPTH = 3
"""Number of levels below ROOT that are searched for a data set."""
SHOWN_SENSORS = 8
"""Number of sensors in the printed expected tree; UrbanLF has 81."""


@dataclass(frozen=True, kw_only=True)
class Lists:
    """A data set's split lists, and the form of their lines."""

    folder: str = ""
    """Folder of the lists, relative to the data set's; "" for the data set's own."""
    splits: tuple[str, ...] = SPLITS
    lines: tuple[str, ...] = ("{name}",)
    """Templates; the first that matches a line gives its fields."""
    has_columns: bool = False
    """Whether only a line's text up to the first blank or tab is used."""

    @property
    def files(self) -> Mapping[str, str]:
        """Split → its list, relative to the data set's folder."""
        return {split: f"{self.folder}/{split}.txt".lstrip("/") for split in self.splits}

    def read(self, folder: Path) -> list[Fields]:
        """The fields of every line, including ``split``, in the order of the lists.

        Raises:
            DataError: there is no list, or one cannot be read, or a line has an unknown form.
        """
        present = {split: folder / path for split, path in self.files.items() if (folder / path).is_file()}
        if not present:
            *first, last = (f"{split}.txt" for split in self.splits)
            where = folder / self.folder if self.folder else folder
            raise DataError(f"{where}: has no {', '.join(first)} or {last}; unpack the lists too")
        return [{"split": split, **fields} for split, path in present.items() for fields in self._entries(path)]

    def _entries(self, path: Path) -> Iterator[Fields]:
        """The fields of every non-empty line."""
        lines = documents.read_text(path, limit=documents.MAX_JSON_BYTES).split("\n")
        forms = [compiled(text) for text in self.lines]
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if self.has_columns and entry:
                entry = entry.split()[0]
            if not entry:
                continue
            fields = next((found for form in forms if (found := form.match(entry)) is not None), None)
            if fields is None:
                allowed = " or ".join(form.shown for form in forms)
                raise DataError(
                    f"{path}, line {number}: {entry!r} is not a scene's name (allowed: {allowed}; no other folders)"
                )
            yield fields


@dataclass(frozen=True)
class Place:
    """A possible place for the files of a modality, or for the labels."""

    templates: tuple[Template, ...]
    """One template, or an angle's two: sine, cosine."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the :class:`Modality` that are different for files at this place."""
    rule: LabelRule | None = None
    """For labels: how to read those at this place, if different from the layout's own rule."""
    counts: Mapping[str, int] | None = None
    """For labels: the published scenes per split of the data with labels at this place."""

    @property
    def shown(self) -> str:
        """The templates for messages."""
        return " + ".join(template.shown for template in self.templates)

    def is_in(self, tree: Tree) -> bool:
        """Whether any file exists at this place."""
        return any(next(template.found_in(tree), None) is not None for template in self.templates)


def place(
    *templates: str, rule: LabelRule | None = None, counts: Mapping[str, int] | None = None, **reading: Any
) -> Place:
    """Declare a :class:`Place`."""
    return Place(tuple(compiled(text) for text in templates), reading, rule, counts)


@dataclass(frozen=True)
class Sensor:
    """A modality and the possible places of its files, the usual place first."""

    modality: Modality
    places: tuple[Place, ...]
    is_optional: bool = False
    """Whether nothing is reported if it is missing."""

    @property
    def shown(self) -> str:
        """Its places, for messages."""
        return " or ".join(here.shown for here in self.places)


def sensor(modality: Modality, *places: str | Place, is_optional: bool = False) -> Sensor:
    """Declare a :class:`Sensor`; a plain text is a place with one template."""
    listed = tuple(place(each) if isinstance(each, str) else each for each in places)
    return Sensor(modality, listed, is_optional)


class DataNotFound(DataError):
    """The data do not exist; the exception has the expected tree."""

    def __init__(self, message: str, *, expected_tree: str) -> None:
        super().__init__(message)
        self.expected_tree = expected_tree


class DataAmbiguous(DataError):
    """A folder contains the data more than once."""


@dataclass(frozen=True)
class _Chosen:
    """The parts of a layout that a folder has."""

    sensors: tuple[tuple[Modality, Place], ...]
    label: Place


@dataclass(frozen=True, kw_only=True)
class DatasetLayout:
    """A published data set: its description, and the layout of its folder."""

    name: str
    title: str
    published_at: str
    download_gb: float | None = None
    """None if unknown."""
    native_size: tuple[int, int] | None = None
    """Height and width of its frames as published; None if there are several."""
    published_counts: Mapping[str, int]
    """Scenes per split as published."""
    published_groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The same per condition and failure case, if known."""
    other_counts: tuple[Mapping[str, int], ...] = ()
    """The same for other divisions of the same data."""
    folder: str
    """The usual name of the data set's folder."""
    signs: tuple[tuple[str, ...], ...]
    """A folder belongs to the data set if it has one file or folder of each of these groups (templates)."""
    sensors: tuple[Sensor, ...]
    """All sensors that the data set may have; every scene needs the first."""
    labels: tuple[Place, ...]
    rule: LabelRule = field(default_factory=LabelRule)
    classes: Mapping[str, Color]
    """Class → RGB color, in class order."""
    id: str
    """Template of a scene's id; has all fields of the other templates, except the split if lists decide it."""
    lists: Lists | None = None
    """The files that list the scenes of each split; without them ``{split}`` is a part of the paths."""
    unlabeled: tuple[str, ...] = ()
    """Splits whose labels are not published."""
    condition: str | None = None
    """Template of a scene's condition."""
    conditions: tuple[str, ...] = ()
    case: tuple[str, str] | None = None
    """A field, and a pattern for it whose group ``case`` is the failure case."""
    cases: tuple[str, ...] = ()
    crop: Crop | None = None
    antialias: bool = False
    """Whether the published code antialiases when images shrink."""
    notes: tuple[str, ...] = ()
    """Lines to print below the expected tree."""
    is_plain: bool = False
    """Whether the user's own data may have the same folders."""

    def info(self, folder: Path) -> DatasetInfo:
        """The description of the data set, without modalities that have no file in ``folder``, except the first."""
        return self._info(self._choose(Tree(folder)))

    @cached_property
    def published_info(self) -> DatasetInfo:
        """The description with all modalities that the data set may have, without a folder."""
        return self._info(_Chosen(tuple((each.modality, each.places[0]) for each in self.sensors), self.labels[0]))

    @cached_property
    def expected_tree(self) -> str:
        """The expected tree, printed if the data are not found."""
        lines = [
            line
            for sensor in self.sensors[:SHOWN_SENSORS]
            for line in _tree_lines(sensor.places, f'modality "{sensor.modality.name}"')
        ]
        if len(self.sensors) > SHOWN_SENSORS:
            lines.append(("…", f"{counted(len(self.sensors) - SHOWN_SENSORS, 'more modality')}"))
        lines += _tree_lines(self.labels, "labels")
        if self.lists is not None:
            lines.append((", ".join(self.lists.files.values()), "the scenes of each split"))
        width = max(len(path) for path, _ in lines)
        tree = [f"├── {path:{width}}  ({what})" for path, what in lines]
        tree[-1] = tree[-1].replace("├", "└", 1)
        return "\n".join((f"{self.folder}/", *tree, *self.notes))

    def holds(self, folder: Path) -> bool:
        """Whether a folder belongs to the data set; fast, and also true for an incomplete one."""
        tree = Tree(folder)
        return all(any(compiled(text).is_in(tree) for text in group) for group in self.signs)

    def find(self, root: Path) -> Path:
        """The data set's folder: ``root``, or the only such folder at most three levels below it.

        A rendered folder counts only if there is no other, so that synthetic scenes are never mistaken for real ones.

        Raises:
            DataNotFound: there is none; the message says where the data are published.
            DataAmbiguous: there is more than one.
        """
        if not root.is_dir():
            raise self._not_found(root, "is not a folder" if root.exists() else "does not exist")
        candidates = sorted(self._candidates(root, levels=DEPTH))
        real = [path for path in candidates if not is_rendered(path)]
        chosen = real or candidates
        if not chosen:
            seen = ", ".join(map(shown, sample_names(root))) or "no file at all"
            wanted = self.sensors[0].places[0].shown
            raise self._not_found(
                root, f"no {self.title} here or up to {DEPTH} folders below (saw {seen}; looked for {wanted})"
            )
        if len(chosen) > 1:
            names = " and ".join(str(path) for path in chosen[:2])
            raise DataAmbiguous(f"{root}: holds {self.title} more than once: {names}; give one of them as ROOT")
        return chosen[0]

    def survey(self, folder: Path, root: Path) -> list[Scene]:
        """The scenes of a folder with this layout.

        Raises:
            DataError: there is none; the message has the pattern and two existing files.
        """
        scenes = self.scenes(folder, root)
        if not scenes:
            seen = ", ".join(map(shown, sample_names(folder))) or "no file at all"
            wanted = self.sensors[0].places[0].shown
            raise DataNotFound(
                f"{folder}: no scene of {self.title} (saw {seen}; looked for {wanted}); compare with the expected tree",
                expected_tree=self.expected_tree,
            )
        return scenes

    def scenes(self, folder: Path, root: Path) -> list[Scene]:
        """All scenes, paths relative to ``root``, each with every file that it must have, existing or not.

        If folders decide the split, a scene is listed as soon as one of its files exists, sorted by id, so that the
        check finds a label without an image as well as an image without a label. If lists decide, the scenes have the
        lists' order.

        Raises:
            DataError: there is no list, or a list is damaged or leads out of the folder.
        """
        tree = Tree(folder)
        chosen = self._choose(tree)
        found = self.lists.read(folder) if self.lists else self._discover(tree, chosen)
        inside = relative(folder, root)
        prefix = "" if inside.as_posix() == "." else f"{inside.as_posix()}/"
        return [self._scene(fields, tree, chosen, prefix=prefix) for fields in found]

    def strays(self, folder: Path, scenes: Sequence[Scene]) -> list[str]:
        """Files in the layout's own folders that belong to no scene, relative to ``folder``, sorted.

        Args:
            folder: the data set's.
            scenes: all of them, from :meth:`scenes`.
        """
        tree = Tree(folder)
        templates = self._templates(tree)
        fields = [self._fields(scene) for scene in scenes]
        wanted = {template.fill(each) for each in fields for template in templates}
        return sorted(self.files(folder) - wanted)

    def files(self, folder: Path) -> set[str]:
        """All files in the layout's own folders, relative to ``folder``."""
        tree = Tree(folder)
        own = {inside for template in self._templates(tree) for inside in _own_folders(template, tree)}
        return {f"{inside}/{name}" if inside else name for inside in own for name in tree.files(inside)}

    def published(self, scenes: Sequence[Scene]) -> Mapping[str, int]:
        """The published scenes per split for a comparison with these scenes."""
        label = next((scene.label for scene in scenes if scene.label is not None), "")
        for each in self.labels:
            tail = each.templates[0].text.rpartition("/")[2]
            if each.counts is not None and compiled(tail).match(label.rpartition("/")[2]) is not None:
                return each.counts
        splits = {scene.split for scene in scenes}
        same = (counts for counts in (self.published_counts, *self.other_counts) if set(counts) == splits)
        return next(same, self.published_counts)

    def remarks(self, scenes: Sequence[Scene]) -> list[str]:
        """Remarks on the scenes that are not problems.

        Only a part of the published scenes, modalities that are missing everywhere, unknown conditions and cases.
        """
        published = self.published(scenes)
        counts = {split: sum(scene.split == split for scene in scenes) for split in published}
        present = {name for scene in scenes for name in scene.files}
        return [
            *(
                f"{split}: {counts[split]} of the {number} published scenes{self._differing(scenes, split)}"
                for split, number in published.items()
                if counts[split] != number
            ),
            *(
                f"no '{each.modality.name}' (looked for {each.shown}): prepared without it"
                for each in self.sensors
                if not each.is_optional and each.modality.name not in present
            ),
            *(
                f"'{name}' is not a {what} of {self.title}; kept as its own"
                for what, known, there in (
                    ("condition", self.conditions, {scene.condition for scene in scenes}),
                    ("failure case", self.cases, {scene.case for scene in scenes}),
                )
                for name in sorted(filter(None, there - set(known)))
            ),
        ]

    def _differing(self, scenes: Sequence[Scene], split: str) -> str:
        """Conditions and failure cases of a split whose number of scenes differs from the published one."""
        there = Counter(name for scene in scenes if scene.split == split for name in (scene.condition, scene.case))
        published = self.published_groups.get(split, {})
        words = [f"{name} {there[name]} of {number}" for name, number in published.items() if there[name] != number]
        return f" ({', '.join(words)})" if words else ""

    def _info(self, chosen: _Chosen) -> DatasetInfo:
        modalities = [
            Modality.model_validate({**dict(each), "antialias": self.antialias, **here.reading})
            for each, here in chosen.sensors
        ]
        return DatasetInfo(
            name=self.name,
            title=self.title,
            classes=tuple(self.classes),
            palette=tuple(self.classes.values()),
            modalities=tuple(modalities),
            label=chosen.label.rule or self.rule,
            unlabeled=self.unlabeled,
            crop=self.crop,
        )

    def _templates(self, tree: Tree) -> list[Template]:
        """The templates of all sensors and of the labels, for the form of a folder."""
        chosen = self._choose(tree)
        return [each for _, here in chosen.sensors for each in here.templates] + list(chosen.label.templates)

    def _choose(self, tree: Tree) -> _Chosen:
        """For every sensor the first place with a file; sensors without files are left out, except the first."""
        sensors = []
        for each in self.sensors:
            here = next((where for where in each.places if where.is_in(tree)), None)
            if here is None and each is self.sensors[0]:
                here = each.places[0]
            if here is not None:
                sensors.append((each.modality, here))
        label = next((where for where in self.labels if where.is_in(tree)), self.labels[0])
        return _Chosen(tuple(sensors), label)

    def _discover(self, tree: Tree, chosen: _Chosen) -> list[Fields]:
        """The fields of every scene with at least one file, sorted by id."""
        places = [*(here for _, here in chosen.sensors), chosen.label]
        order = compiled(self.id).fields
        found: dict[tuple[str, ...], Fields] = {}
        for here in places:
            for template in here.templates:
                for fields in template.found_in(tree):
                    found[tuple(fields[name] for name in order)] = fields
        return [found[key] for key in sorted(found)]

    def _scene(self, fields: Fields, tree: Tree, chosen: _Chosen, *, prefix: str) -> Scene:
        label: str | None = chosen.label.templates[0].fill(fields)
        if fields["split"] in self.unlabeled and not tree.has(str(label)):
            label = None
        return Scene(
            id=compiled(self.id).fill(fields),
            split=fields["split"],
            condition=None if self.condition is None else compiled(self.condition).fill(fields),
            case=self._case(fields),
            files={
                modality.name: tuple(prefix + template.fill(fields) for template in here.templates)
                for modality, here in chosen.sensors
            },
            label=None if label is None else prefix + label,
        )

    def _case(self, fields: Fields) -> str | None:
        """The failure case; a field of another form is itself the case."""
        if self.case is None:
            return None
        name, pattern = self.case
        match = re.fullmatch(pattern, fields[name])
        return match["case"] if match else fields[name]

    def _fields(self, scene: Scene) -> Fields:
        """The fields of one of our own scenes, from its id."""
        fields = compiled(self.id).match(scene.id)
        assert fields is not None  # the id was made by this template
        return {"split": scene.split, **fields}

    def _not_found(self, root: Path, what: str) -> DataNotFound:
        """The message for missing data: where they are published, and their size."""
        size = "" if self.download_gb is None else f" ({self.download_gb:g} GB)"
        return DataNotFound(
            f"{root}: {what}; {self.title} is published at {self.published_at}{size}: unpack it there, or give the "
            "folder that it is in",
            expected_tree=self.expected_tree,
        )

    def _candidates(self, folder: Path, *, levels: int) -> Iterator[Path]:
        """The folders with this layout; does not search inside those, nor in hidden ones."""
        if self.holds(folder):
            yield folder
        elif levels:
            for below in subfolders(folder):
                if os.access(folder / below, os.R_OK | os.X_OK):  # some neighbors may be unreadable
                    yield from self._candidates(folder / below, levels=levels - 1)


def is_rendered(folder: Path) -> bool:
    """Whether ``prepare synthetic`` created a data set's folder; its marker may be one folder above (MCubeS)."""
    return any((here / MARKER).is_file() for here in (folder, folder.absolute().parent))


def _own_folders(template: Template, tree: Tree) -> Iterator[str]:
    """The folders of a template: all below the fixed start of its path, or those that it matches."""
    fixed = template.text.partition("{")[0].rpartition("/")[0]
    if not fixed:
        yield from template.folders_in(tree)
        return
    for inside, _ in walk(tree.folder / fixed):
        yield f"{fixed}/{inside}" if inside else fixed


def _tree_lines(places: Sequence[Place], what: str) -> list[tuple[str, str]]:
    """Lines of the expected tree: a path, and its content."""
    return [(each.shown, f"or {what}" if number else what) for number, each in enumerate(places)]
