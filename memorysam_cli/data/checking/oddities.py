"""What is readable and yet worth a word: gathered over all scenes of a check."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from memorysam_cli.data.checking.findings import Facts
from memorysam_cli.data.checking.report import Stored
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality
from memorysam_cli.text import shown

BYTE = 255


class Oddities:
    """Gathers what scenes hold, and says what is strange about it.

    Args:
        info: of the data set.
        max_pixels: what other commands take.
    """

    def __init__(self, info: DatasetInfo, *, max_pixels: int) -> None:
        self.info, self.max_pixels = info, max_pixels
        self._forms: dict[str, dict[tuple[str, int], Stored]] = defaultdict(dict)
        self._pictures: dict[str, list[Scene]] = defaultdict(list)
        self._empty: list[str] = []
        self._turned: list[str] = []
        self._large: dict[str, int] = {}
        self._strangers: Counter[str] = Counter()

    def add(self, scene: Scene, frames: Mapping[str, Facts], label: Facts | None) -> None:
        """Take in one scene: its modalities' facts, and its label's."""
        for name, facts in frames.items():
            self._add_form(name, facts)
            self._add_size(scene.files[name][0], facts)
            if facts.is_turned:
                self._turned.append(scene.files[name][0])
            if facts.digest:
                self._pictures[facts.digest].append(scene)
        if label is not None and scene.label is not None:
            self._add_size(scene.label, label)
            if set(label.pixels) == {IGNORE}:
                self._empty.append(scene.label)
            if self.info.label.colours and IGNORE in label.pixels:
                self._strangers[scene.label] = label.pixels[IGNORE]

    def stored(self) -> dict[str, tuple[Stored, ...]]:
        """Modality → the forms of its files, the commonest first."""
        return {
            modality.name: tuple(sorted(self._forms[modality.name].values(), key=lambda form: -form.scenes))
            for modality in self.info.modalities
        }

    def lines(self) -> Iterator[str]:
        """All that is odd, a line each."""
        for modality in self.info.modalities:
            yield from _of_modality(modality, self.stored()[modality.name])
        if self._turned:
            yield f"{_some(self._turned)} an EXIF rotation, which is ignored: labels are drawn on the stored pixels"
        if self._empty:
            yield f"{_some(self._empty)} no class at all: every pixel of these labels is ignored"
        if self._strangers:
            pixels = sum(self._strangers.values())
            yield f"{_some(list(self._strangers))} colours of no class ({pixels} pixels in all), which are ignored"
        if self._large:
            yield (
                f"{_some(list(self._large))} more pixels than the other commands take; let them with "
                f"MEMORYSAM_MAX_PIXELS={max(self._large.values())}"
            )
        yield from self._twins()

    def _add_size(self, path: str, facts: Facts) -> None:
        """Note a picture that was read because ``--max-pixels`` allows it here."""
        if facts.height * facts.width > self.max_pixels:
            self._large[path] = facts.height * facts.width

    def _add_form(self, name: str, facts: Facts) -> None:
        """Count a file's form and widen its range."""
        key = (facts.dtype, facts.channels)
        old = self._forms[name].get(key, Stored(*key, scenes=0, low=facts.low, high=facts.high))
        lows = [end for end in (old.low, facts.low) if end is not None]
        highs = [end for end in (old.high, facts.high) if end is not None]
        self._forms[name][key] = Stored(
            *key, scenes=old.scenes + 1, low=min(lows, default=None), high=max(highs, default=None)
        )

    def _twins(self) -> Iterator[str]:
        """One picture in two splits, under two names."""
        found = [scenes for scenes in self._pictures.values() if len({scene.split for scene in scenes}) > 1]
        if found:
            first = " and ".join(f"{shown(scene.id)} ({scene.split})" for scene in found[0][:2])
            name = self.info.modalities[0].name
            yield f"{len(found)} pictures ('{name}') occur in more than one split, such as {first}"


def _of_modality(modality: Modality, forms: tuple[Stored, ...]) -> Iterator[str]:
    """What is odd about one modality's files."""
    name = modality.name
    if len(forms) > 1:
        counts = ", ".join(f"{form.scenes} of {form.dtype} in {form.channels} channel(s)" for form in forms)
        scaled = "each is scaled by its own dtype" if modality.scale is None else "all are scaled alike"
        yield f"'{name}' is stored in several ways ({counts}); {scaled}"
    elif any(form.channels == 4 for form in forms) and modality.channels is None:
        yield f"'{name}' has an alpha channel, which is dropped"
    for form in forms:
        if form.low is None or form.high is None:
            continue
        if form.low == form.high:
            yield f"'{name}' holds nothing but {form.low:g}"
        elif form.dtype == "uint16" and form.high <= BYTE and modality.scale is None:
            yield (
                f"'{name}' is stored in 16 bits, but no value is above {form.high:g}: divided by 65535 it is nearly "
                "black; set its 'scale' in dataset.json"
            )


def _some(paths: list[str]) -> str:
    """``3 files (such as a.png) have`` or ``a.png has``."""
    return f"{shown(paths[0])} has" if len(paths) == 1 else f"{len(paths)} files (such as {shown(paths[0])}) have"
