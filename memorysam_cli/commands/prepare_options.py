"""The options of ``memorysam prepare``: those that several commands share, and what the words of the others mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

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
    typer.Option("--headers-only", help="Read the headers of pictures alone (labels whole): fast, misses torn files."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=1, metavar="N", help="Refuse larger pictures (100 million, or $MEMORYSAM_MAX_PIXELS)."
    ),
]


if TYPE_CHECKING:
    from memorysam_cli.data.own.patterns import Pattern, Shares
    from memorysam_cli.data.own.proposal import Proposal
    from memorysam_cli.dataset import Kind


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
            raise UsageError(f"{option} {text}: '{key}' is no --modality{did_you_mean(key, names)}")
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
    """What is understood of a tree without patterns.

    Raises:
        UsageError, DataError: see :func:`~memorysam_cli.data.own.proposal.propose`.
    """
    from memorysam_cli.data.own.proposal import propose

    return propose(root, labels=labels, classes=classes, kinds=kinds(pairs("--kind", kind, known=None)))


def beside(found: Mapping[str, str], typed: Sequence[str] | None) -> list[str]:
    """``NAME=VALUE`` words as typed, and those found for other names."""
    names = {text.partition("=")[0] for text in typed or ()}
    return [*(typed or ()), *(f"{name}={value}" for name, value in found.items() if name not in names)]


def options(flag: str, values: Sequence[str] | None) -> list[str]:
    """A repeatable option as it is typed."""
    return [word for value in values or () for word in (flag, value)]


def given(context: typer.Context, *, but: Sequence[str]) -> list[str]:
    """The options of the command line that was typed, to be typed again.

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
    """The data set's name: the one given, or the root folder's, or what can be made of that, which a line says.

    Raises:
        UsageError: it is no word, or another data set's.
    """
    from memorysam_cli.data import DATASETS
    from memorysam_cli.dataset import is_word, word_of
    from memorysam_cli.recipe import AUTO
    from memorysam_cli.report import console

    chosen = root.resolve().name if name is None else name
    if name is None and not is_word(chosen) and word_of(chosen):
        console.note(f"the data set is called '{word_of(chosen)}', after the folder '{shown(chosen)}'; or give --name")
        chosen = word_of(chosen)
    taken = chosen == AUTO or chosen in DATASETS or chosen.startswith("synthetic")
    if is_word(chosen) and not taken:
        return chosen
    why = "is the name of another data set" if taken else "must be letters, digits, '.', '_' and '-'"
    refusal = f"--name {chosen}: {why}" if name is not None else f"{root}: '{chosen}' cannot name the data set: {why}"
    raise UsageError(f"{refusal}; give --name NAME")


def existing(option: str, path: Path, root: Path) -> Path:
    """A file as typed, or else below the root.

    Args:
        option: what stands before it on the command line.
        path: as typed.
        root: the data root.

    Raises:
        UsageError: neither is there.
    """
    found = root / path if is_missing(path) else path
    if is_missing(found):
        raise UsageError(f"{option}{shown(path)}: does not exist, neither here nor in {shown(root)}; check the path")
    return found


def split(texts: Sequence[str], root: Path) -> Shares | dict[str, Path] | None:
    """Shares, or a list file for each split; None where nothing is said.

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
        UsageError: no such kind.
    """
    from memorysam_cli.data.own.sensors import KINDS

    for name, word in words.items():
        if word not in KINDS:
            raise UsageError(f"--kind {name}={word}: '{word}' is no kind{did_you_mean(word, KINDS)}")
    return {name: cast("Kind", word) for name, word in words.items()}


def channels(words: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Modality → three stored channels, from 0; one counts three times.

    Raises:
        UsageError: another form.
    """
    found = {}
    for name, word in words.items():
        numbers = word.split(",")
        if len(numbers) not in (1, 3) or not all(number.strip().isdecimal() for number in numbers):
            raise UsageError(f"--channels {name}={word}: give one or three channels, counted from 0, such as 3,2,1")
        found[name] = tuple(int(number) for number in numbers)
    return found


def bands(words: Mapping[str, str], *, channels: Iterable[str]) -> dict[str, tuple[int | str, ...]]:
    """Modality → three bands of rasters, from 1 or by description; one counts three times.

    Args:
        words: modality → as typed.
        channels: modalities whose channels are given.

    Raises:
        UsageError: another form, a band 0, or a modality whose channels are given as well.
    """
    found: dict[str, tuple[int | str, ...]] = {}
    for name, word in words.items():
        if name in channels:
            raise UsageError(f"--bands {name}={word}: --channels {name}=… is given as well; leave one of them out")
        wanted = [each.strip() for each in word.split(",")]
        if len(wanted) not in (1, 3) or "" in wanted:
            raise UsageError(f"--bands {name}={word}: give one or three bands, such as 4,3,2 or B4,B3,B2")
        numbers = tuple(int(each) if each.isdecimal() else each for each in wanted)
        if 0 in numbers:
            raise UsageError(f"--bands {name}={word}: bands are counted from 1, as GDAL does; there is no band 0")
        found[name] = numbers
    return found


def scales(words: Mapping[str, str]) -> dict[str, float]:
    """Modality → factor.

    Raises:
        UsageError: no number, 0, or not finite.
    """
    return {name: number(f"--scale {name}={word}", word) for name, word in words.items()}


def nodata(texts: Iterable[str] | None, *, known: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Modality → its values that are no measurement; NaN and infinity always are, and need not be stored.

    Raises:
        UsageError: another form, an unknown name, or no number.
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
            found[name] = (*found.get(name, ()), value)
    return found


def number(option: str, word: str) -> float:
    """A number that float32 holds and that is not 0.

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
