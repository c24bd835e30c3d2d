"""The options of ``memorysam prepare``: those that several commands share, and the parsing of the others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from memorysam_cli.commands.options import is_missing, must_exist
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.text import shown

Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Folder of the data sets; the manifest goes to ROOT/memorysam/.")
]
ExistingRoot = Annotated[
    Path,
    typer.Argument(
        metavar="ROOT",
        help="Folder of the data; the manifest goes to ROOT/memorysam/.",
        callback=must_exist(DataError),
    ),
]
DropIncomplete = Annotated[
    bool, typer.Option("--drop-incomplete", help="Leave out scenes with problems, list them, and end with exit code 4.")
]
HeadersOnly = Annotated[
    bool,
    typer.Option(
        "--headers-only", help="Read only the headers of pictures (labels whole): fast, but misses damaged files."
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=1, metavar="N", help="Refuse larger pictures (100 million, or $MEMORYSAM_MAX_PIXELS)."
    ),
]
Pair = Annotated[
    Literal["name", "nearest"],
    typer.Option(help="Files of one scene have the same name or number, or the nearest times (in names, or --times)."),
]
Tolerance = Annotated[
    str | None, typer.Option("--tolerance", metavar="SPAN", help="Largest time difference within a pair, such as 20ms.")
]
Times = Annotated[
    list[Path] | None,
    typer.Option("--times", metavar="FILE", help="A CSV of file and time below ROOT, for --pair nearest (repeatable)."),
]


if TYPE_CHECKING:
    from memorysam_cli.data.own.patterns import Pattern, Shares
    from memorysam_cli.data.own.proposal import Proposal
    from memorysam_cli.dataset import Interpolation, Kind, Layout


def pairs(option: str, texts: Iterable[str] | None, *, known: Iterable[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` words; with ``known``, the names must be modalities.

    Raises:
        UsageError: another form, an unknown name, a name twice.
    """
    from memorysam_cli.dataset import is_word

    names = None if known is None else list(known)
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not value or not is_word(key):
            raise UsageError(f"{option} {text}: must be NAME=VALUE, the name of letters, digits, '.', '_' and '-'")
        if key in found:
            raise UsageError(f"{option} {text}: '{key}' is given twice; give it once")
        if names is not None and key not in names:
            raise UsageError(f"{option} {text}: '{key}' is not a --modality{did_you_mean(key, names)}")
        found[key] = value
    return found


def patterns(texts: Iterable[str]) -> dict[str, tuple[Pattern, ...]]:
    """Modality → its pattern, or both of an angle.

    Raises:
        UsageError: another form, an impossible pattern, or more than two.
    """
    from memorysam_cli.data.own.patterns import Pattern
    from memorysam_cli.recipe import ALL

    found = {
        name: tuple(Pattern(part) for part in value.split("+"))
        for name, value in pairs("--modality", texts, known=None).items()
    }
    for name, group in found.items():
        if name == ALL:
            raise UsageError(f"--modality {name}=…: 'all' means all modalities in a recipe; give another name")
        if len(group) > 2:
            raise UsageError(f"--modality {name}=…: {len(group)} patterns; one, or sine+cosine of an angle")
    return found


def proposed(root: Path, *, labels: str | None, classes: Path | None, kind: Sequence[str] | None) -> Proposal:
    """The proposal for a tree without patterns.

    Raises:
        UsageError: it is a published data set; or as :func:`~memorysam_cli.data.own.proposal.propose`.
        DataError: as that function.
    """
    from memorysam_cli.data import manifest as manifests
    from memorysam_cli.data import published_below
    from memorysam_cli.data.own.proposal import propose
    from memorysam_cli.report import console

    for place, layout in published_below(root):
        line = manifests.prepare_line(root, layout.name)
        if layout.is_plain:
            console.note(f"{shown(place)}: looks like {layout.title}; if it is, type: {line}")
        else:
            raise UsageError(
                f"{shown(place)}: is {layout.title}; type: {line} (or say which files are which of your sensors with "
                "--modality NAME=PATTERN)"
            )
    return propose(root, labels=labels, classes=classes, kinds=kinds(pairs("--kind", kind, known=None)))


def beside(found: Mapping[str, str], typed: Sequence[str] | None) -> list[str]:
    """``NAME=VALUE`` words of the user, and those found for other names."""
    names = {text.partition("=")[0] for text in typed or ()}
    return [*(typed or ()), *(f"{name}={value}" for name, value in found.items() if name not in names)]


def options(flag: str, values: Sequence[str] | None) -> list[str]:
    """A repeatable option in the form for a command line."""
    return [word for value in values or () for word in (flag, value)]


def given(context: typer.Context, *, but: Sequence[str]) -> list[str]:
    """The options of this command line, for a suggested command.

    Args:
        context: of the command.
        but: names of parameters that are left out.
    """
    found: list[str] = []
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        source = context.get_parameter_source(name)
        if name in but or source is None or source.name != "COMMANDLINE" or not parameter.opts[0].startswith("-"):
            continue
        flag = parameter.opts[0]
        if value is True:
            found.append(flag)
        else:
            found += options(flag, [str(each) for each in (value if isinstance(value, list | tuple) else [value])])
    return found


def dataset_name(name: str | None, root: Path) -> str:
    """The data set's name: the given one, or the root folder's, or one derived from it, which a line reports.

    Raises:
        UsageError: it is not a valid name, or another data set's.
    """
    from memorysam_cli.data import DATASETS
    from memorysam_cli.dataset import is_word, word_of
    from memorysam_cli.recipe import AUTO
    from memorysam_cli.report import console

    chosen = root.resolve().name if name is None else name
    if name is None and not is_word(chosen) and word_of(chosen):
        console.note(f"the data set is named '{word_of(chosen)}' after the folder '{shown(chosen)}'; or give --name")
        chosen = word_of(chosen)
    taken = chosen == AUTO or chosen in DATASETS or chosen.startswith("synthetic")
    if is_word(chosen) and not taken:
        return chosen
    why = "is the name of another data set" if taken else "must be letters, digits, '.', '_' and '-'"
    refusal = f"--name {chosen}: {why}" if name is not None else f"{root}: '{chosen}' cannot name the data set: {why}"
    raise UsageError(f"{refusal}; give --name NAME")


def existing(option: str, path: Path, root: Path) -> Path:
    """A file as given, or else below the root.

    Args:
        option: the option, for messages.
        path: as given.
        root: the data root.

    Raises:
        UsageError: neither exists.
    """
    found = root / path if is_missing(path) else path
    if is_missing(found):
        raise UsageError(f"{option}{shown(path)}: does not exist, neither here nor in {shown(root)}; check the path")
    return found


def split(texts: Sequence[str], root: Path) -> Shares | dict[str, Path] | None:
    """Shares, or a list file for each split; None without the option.

    Raises:
        UsageError: shares and lists, or shares twice, or another form.
    """
    from memorysam_cli.data.own.patterns import read_shares

    if any("=" in text for text in texts):
        files = pairs("--split", texts, known=None)
        return {name: existing(f"--split {name}=", Path(file), root) for name, file in files.items()}
    if len(texts) > 1:
        raise UsageError(f"--split {texts[1]}: shares are given once, such as --split 0.8/0.1/0.1")
    return read_shares(texts[0]) if texts else None


def kinds(words: Mapping[str, str]) -> dict[str, Kind]:
    """Modality → kind.

    Raises:
        UsageError: unknown kind.
    """
    from memorysam_cli.data.own.sensors import KINDS

    for name, word in words.items():
        if word not in KINDS:
            raise UsageError(f"--kind {name}={word}: '{word}' is not a kind{did_you_mean(word, KINDS)}")
    return {name: cast("Kind", word) for name, word in words.items()}


def channels(words: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Modality → three stored channels, from 0; a single one is used three times, more than three become frames.

    Raises:
        UsageError: another form.
    """
    found = {}
    for name, word in words.items():
        numbers = _counted(word)
        if len(numbers) in (0, 2) or not all(number.isdecimal() for number in numbers):
            raise UsageError(
                f"--channels {name}={word}: give one or three channels, counted from 0, such as 3,2,1, or more, as 0-5"
            )
        found[name] = tuple(int(number) for number in numbers)
    return found


def _counted(word: str) -> list[str]:
    """The parts between commas; ``2-4`` is 2, 3, 4."""
    parts: list[str] = []
    for part in word.split(","):
        span = re.fullmatch(r"\s*(\d{1,4})-(\d{1,4})\s*", part)
        parts += map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part.strip()]
    return parts


def bands(words: Mapping[str, str], *, channels: Iterable[str]) -> dict[str, tuple[int | str, ...]]:
    """Modality → three bands of rasters, from 1 or by description; one is used three times, more become frames.

    Args:
        words: modality → as given.
        channels: modalities with ``--channels``.

    Raises:
        UsageError: another form, a band 0, or a modality that also has ``--channels``.
    """
    found: dict[str, tuple[int | str, ...]] = {}
    for name, word in words.items():
        if name in channels:
            raise UsageError(f"--bands {name}={word}: --channels {name}=… is given as well; leave one of them out")
        wanted = _counted(word)
        if len(wanted) in (0, 2) or "" in wanted:
            raise UsageError(
                f"--bands {name}={word}: give one or three bands, such as 4,3,2 or B4,B3,B2, or more, such as 1-6"
            )
        numbers = tuple(int(each) if each.isdecimal() else each for each in wanted)
        if 0 in numbers:
            raise UsageError(f"--bands {name}={word}: bands are counted from 1, as GDAL does; there is no band 0")
        found[name] = numbers
    return found


def scales(words: Mapping[str, str]) -> dict[str, float]:
    """Modality → factor.

    Raises:
        UsageError: not a number, 0, or not finite.
    """
    return {name: number(f"--scale {name}={word}", word) for name, word in words.items()}


def nodata(texts: Iterable[str] | None, *, known: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Modality → its nodata values, besides NaN and infinity.

    Raises:
        UsageError: another form, an unknown name, or not a number.
    """
    names = list(known)
    found: dict[str, tuple[float, ...]] = {}
    for text in texts or ():
        ((name, word),) = pairs("--nodata", [text], known=names).items()
        try:
            value = float(word)
        except ValueError:
            raise UsageError(f"--nodata {text}: '{word}' must be a number such as 65535, nan or inf") from None
        if math.isfinite(value) and value not in found.get(name, ()):
            found[name] = tuple(sorted((*found.get(name, ()), value)))  # the same manifest for any notation
    return found


def recording(
    modality: Sequence[str] | None,
    scenes: Path | None,
    *,
    pair: Literal["name", "nearest"],
    tolerance: str | None,
    times: Sequence[Path],
    renames: Sequence[str] | None,
) -> Layout | None:
    """The layout for ``predict``; None without options.

    Raises:
        UsageError: a wrong pattern, tolerance or table; ``--pair`` without ``--modality``; ``--map`` with it.
    """
    if not modality:
        if pair != "name" or tolerance is not None or times:
            raise UsageError(
                "--pair, --tolerance, --times: are for --modality NAME=PATTERN; give the sensors' patterns"
            )
        return None
    if scenes is None or renames:
        raise UsageError(
            f"--modality: {'give SCENES, the folder' if scenes is None else '--map names it already; leave one out'}"
        )
    span = nanoseconds(tolerance, pair=pair, times=times)
    from memorysam_cli.dataset import Layout

    return Layout(
        modalities={name: tuple(each.text for each in group) for name, group in patterns(modality).items()},
        pair=pair,
        tolerance_ns=span,
        times=tables(times, scenes),
    )


def resize(words: Mapping[str, str]) -> dict[str, Interpolation]:
    """Modality → its resampling.

    Raises:
        UsageError: unknown method.
    """
    for name, word in words.items():
        if word not in ("nearest", "bilinear"):
            raise UsageError(f"--resize {name}={word}: must be nearest or bilinear")
    return {name: cast("Interpolation", word) for name, word in words.items()}


def nanoseconds(text: str | None, *, pair: str, times: Sequence[Path]) -> int | None:
    """Nanoseconds of ``--tolerance``; None if files pair by name.

    Raises:
        UsageError: no unit, not a number above 0, or only one of ``--pair nearest`` and ``--tolerance``.
    """
    if pair != "nearest":
        for option, given in (("--tolerance", text), ("--times", times)):
            if given:
                raise UsageError(f"{option}: is for --pair nearest; give both, or neither to pair by name")
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(ns|us|µs|ms|s)", text or "")
    if match is None:
        given = "--pair nearest: needs --tolerance" if text is None else f"--tolerance {text}"
        raise UsageError(
            f"{given}: give the largest time difference of two frames, with a unit (s, ms, us, ns), such as 20ms"
        )
    found = int(Decimal(match[1]) * {"s": 10**9, "ms": 10**6, "ns": 1}.get(match[2], 1000))
    if not 0 < found <= 10**12:
        raise UsageError(f"--tolerance {text}: must be above 0 and at most 1000s")
    return found


def tables(paths: Sequence[Path], root: Path) -> tuple[str, ...]:
    """The files of ``--times``, relative to the data root, so that the next recording can have its own.

    Raises:
        UsageError: one does not exist, or is not below the root.
    """
    found = []
    for path in paths:
        place = root / path if (root / path).is_file() else existing("--times ", path, root)
        try:
            found.append(place.resolve().relative_to(root.resolve()).as_posix())
        except ValueError:
            raise UsageError(f"--times {shown(path)}: must lie below {shown(root)}; copy it there") from None
    return tuple(found)


def number(option: str, word: str) -> float:
    """A number that float32 can represent and that is not 0.

    Raises:
        UsageError: anything else.
    """
    from memorysam_cli.dataset import LARGEST, SMALLEST

    try:
        found = float(word)
    except ValueError:
        found = math.nan
    if not SMALLEST <= abs(found) <= LARGEST:
        raise UsageError(f"{option}: '{word}' must be a number other than 0, such as 0.001")
    return found
