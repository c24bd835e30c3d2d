"""Pairing by time: every sensor has frames with its own times, and the nearest ones show the same scene.

Times come from the files' names or from a table. They are integers of nanoseconds, so nothing is rounded.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path, PurePosixPath

from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.own.patterns import Match, Paired, Role
from memorysam_cli.dataset import Layout
from memorysam_cli.errors import DataError
from memorysam_cli.storage import documents
from memorysam_cli.storage.images import SUFFIXES
from memorysam_cli.text import counted, shown

UNITS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
"""Of times, in nanoseconds."""
_LENGTHS = {10: "s", 13: "ms", 16: "us", 19: "ns"}
"""Digits of a current Unix time → its unit."""
_DATE = re.compile(
    r"(?<!\d)((?:19[7-9]|20\d)\d)-?(\d\d)-?(\d\d)[T_ -]?(\d\d)[-:._]?(\d\d)[-:._]?(\d\d)(?:[.,_-](\d{1,9}))?(?!\d)"
)
_PARTS = re.compile(r"(?<!\d)(\d{10})[_-](\d{9})(?!\d)")
"""Pattern of ROS's seconds and nanoseconds."""
_SECONDS = re.compile(r"(?<![\d.])(\d+)\.(\d{1,9})(?![\d.])")
_MARKED = re.compile(r"(?<![0-9a-z])(\d+)(ns|us|ms|s)(?![0-9a-z])", re.IGNORECASE)
_UNIX = re.compile(r"(?<!\d)([1-9](?:\d{18}|\d{15}|\d{12}|\d{9}))(?!\d)")
SINCE_1970 = 10**18
"""Nanoseconds: a larger time is a date (of 2001 or later), a smaller one counts from some start."""
Clock = tuple[str, int]
"""The notation of a time, and the nanoseconds."""


def read_time(text: str) -> Clock | None:
    """The time in a name, in nanoseconds; None if there is none.

    A date (``2023-11-14T22-13-20.123``, in UTC), seconds with a fraction (``1699999999.123456789``, ``12.5``), a number
    with its unit (``120ms``), ROS's seconds and nanoseconds (``1699999999_123456789``), or Unix time of 10, 13, 16 or
    19 digits: s, ms, µs, ns.
    """
    if match := _DATE.search(text):
        try:
            year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
            moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None
        return "a date", int(moment.timestamp()) * UNITS["s"] + int((match[7] or "").ljust(9, "0"))
    if match := _PARTS.search(text):
        return "s and ns", int(match[1]) * UNITS["s"] + int(match[2])
    if match := _SECONDS.search(text):
        return "s", int(match[1]) * UNITS["s"] + int(match[2].ljust(9, "0"))
    if match := _MARKED.search(text):
        return match[2].lower(), int(match[1]) * UNITS[match[2].lower()]
    if match := _UNIX.search(text):
        unit = _LENGTHS[len(match[1])]
        return unit, int(match[1]) * UNITS[unit]
    return None


def one_clock(folder: str, times: Mapping[str, Clock | None]) -> dict[str, int]:
    """File → nanoseconds, for times with the same notation.

    Raises:
        DataError: a file has no time, or the notations differ; the message names two files.
    """
    first: tuple[str, str] | None = None
    for name, clock in times.items():
        if clock is None:
            raise DataError(
                f"{folder}: {shown(name)} contains no time that can be read (known: 2023-11-14T22-13-20.123, "
                "1699999999.123456789, Unix time in s, ms, µs or ns, 120ms); give a table with --times FILE.csv"
            )
        first = first or (name, clock[0])
        if clock[0] != first[1]:
            raise DataError(
                f"{folder}: times are written in {first[1]} ({shown(first[0])}) and in {clock[0]} ({shown(name)}); "
                "write all in one unit, or give a table with --times FILE.csv"
            )
    return {name: clock[1] for name, clock in times.items() if clock is not None}


def assign(first: Sequence[int], second: Sequence[int], tolerance: int) -> list[tuple[int, int]]:
    """Pair two sorted lists of times, one to one: as many pairs as possible, and of these the smallest sum of offsets.

    Times are on a line, so there is a best pairing without crossings, and dynamic programming over prefixes finds it:
    best(i, j) of the first i and j times leaves out one of the two last ones or pairs them. Only pairs within the
    tolerance are considered.

    Returns:
        Pairs of indices, ascending.
    """
    ranges, choices = [], []
    low, best = 0, [(0, 0)]  # (-pairs, sum of offsets) of j = low, low + 1, … times of ``second``
    for time in first:
        start, end = bisect_left(second, time - tolerance), bisect_right(second, time + tolerance)
        row: list[tuple[int, int]] = []
        choice = bytearray()
        for j in range(start, end + 1):
            found, how = best[min(j - low, len(best) - 1)], 0
            if j > start:
                if row[-1] < found:
                    found, how = row[-1], 1
                pairs, total = best[min(j - 1 - low, len(best) - 1)]
                paired = (pairs - 1, total + abs(second[j - 1] - time))
                if paired < found:
                    found, how = paired, 2
            row.append(found)
            choice.append(how)
        low, best = start, row
        ranges.append((start, end))
        choices.append(choice)
    found_pairs = []
    i, j = len(first) - 1, len(second)
    while i >= 0:
        start, end = ranges[i]
        j = min(j, end)
        how = choices[i][j - start]
        if how == 2:
            found_pairs.append((i, j - 1))
        i, j = i - (how != 1), j - (how != 0)
    return found_pairs[::-1]


def pair_by_time(
    root: Path, matches: Mapping[Role, Sequence[Match]], layout: Layout, *, whole: Container[Role]
) -> Paired:
    """Pair each role's files one to one with the first role's by the nearest time, within one recording (folder).

    There are as many pairs within the tolerance as possible, and of all such pairings the sum of offsets is the
    smallest.

    Args:
        root: the data root, for tables of times.
        matches: role → its files; the first role's are the scenes.
        layout: the patterns, the tolerance and the tables.
        whole: roles without which a scene is left out.

    Raises:
        DataError: files without a time, or with times in several units; times that cannot be compared; nothing pairs.
    """
    first, *others = matches
    times = clocks(root, {role: [match.path for match in found] for role, found in matches.items()}, layout)
    tolerance = layout.tolerance_ns or 0
    rows = {match.path: {first: match} for match in matches[first] if match.path in times[first]}
    notes = []
    for role in others:
        pairs = _pairs_in_time(matches[first], matches[role], times[first], times[role], tolerance)
        for one, other in pairs:
            rows[one.path][role] = other
        if not pairs:
            raise DataError(_too_far(root, first, role, times, tolerance))
        alone = len(matches[role]) - len(pairs)
        name = role.lstrip("-")
        notes.append(
            f"'{name}' pairs by time with '{first}': {counted(len(pairs), 'pair')} within {span(tolerance)}; "
            f"without a partner: {len(matches[first]) - len(pairs)} of '{first}', {alone} of '{name}'"
        )
    kept = [row for row in rows.values() if all(role in row or role not in whole for role in others)]
    if not kept:
        raise DataError(f"{shown(root)}: no frame of '{first}' has a partner of every other sensor; widen --tolerance")
    if len(kept) < len(matches[first]):
        notes.append(
            f"{len(matches[first]) - len(kept)} of {counted(len(matches[first]), 'frame')} of '{first}' left out"
        )
    total = sum(len(found) for found in matches.values())
    return Paired(kept, notes, total - sum(len(row) for row in kept))


def _pairs_in_time(
    first: Sequence[Match], second: Sequence[Match], one: Mapping[str, int], other: Mapping[str, int], tolerance: int
) -> list[tuple[Match, Match]]:
    """The pairs of two roles; files of different recordings, by their folders, never pair."""
    recordings: dict[tuple[str | None, tuple[str, ...]], tuple[list[Match], list[Match]]] = defaultdict(
        lambda: ([], [])
    )
    for index, (found, times) in enumerate(((first, one), (second, other))):
        for match in found:
            if match.path in times:
                recordings[match.split, match.places][index].append(match)
    pairs = []
    for left, right in recordings.values():
        for found, times in ((left, one), (right, other)):
            found.sort(key=lambda match: times[match.path])
            _refuse_one_time([match.path for match in found], times)
        chosen = assign([one[match.path] for match in left], [other[match.path] for match in right], tolerance)
        pairs += [(left[i], right[j]) for i, j in chosen]
    return pairs


def _refuse_one_time(paths: Sequence[str], times: Mapping[str, int]) -> None:
    """Refuse files with the same time, because either could belong to the scene.

    Args:
        paths: of one sensor and one recording, by their times.
        times: path → nanoseconds.

    Raises:
        DataError: there are such files; the message names two.
    """
    for path, after in pairwise(paths):
        if times[path] == times[after]:
            raise DataError(
                f"{shown(path)} and {shown(after)}: are of one time ({span(times[path])}), so that they cannot pair "
                "by it; give the frames' own times with --times FILE.csv"
            )


def _one_table(root: Path, names: Sequence[str]) -> dict[str, Clock]:
    """File → its time, from all tables.

    Raises:
        DataError: as :func:`read_times`, or two tables give a file different times.
    """
    table: dict[str, Clock] = {}
    owners: dict[str, str] = {}
    for name in names:
        for file, clock in read_times(root / name).items():
            if table.setdefault(file, clock) != clock:
                raise DataError(
                    f"{shown(root / name)}: '{shown(file)}' has another time in {shown(owners[file])}; in both, write "
                    "files as paths below ROOT"
                )
            owners.setdefault(file, name)
    return table


def clocks(root: Path, paths: Mapping[Role, Sequence[str]], layout: Layout) -> dict[Role, dict[str, int]]:
    """Role → path → nanoseconds, from the files' names or the layout's tables, without files that are in no table.

    Raises:
        DataError: as :func:`pair_by_time`.
    """
    if layout.times:
        table = _one_table(root, layout.times)
        found = {role: _looked_up(role, each, table, layout) for role, each in paths.items()}
    else:
        named = {role: {path: read_time(path_stem(path)) for path in each} for role, each in paths.items()}
        found = {role: one_clock(f"'{role.lstrip('-')}'", each) for role, each in named.items()}
    starts = {role: next(iter(times)) for role, times in found.items() if times}
    dated = {role: found[role][path] >= SINCE_1970 for role, path in starts.items()}
    if len(set(dated.values())) > 1:
        one, other = (next(role for role, is_date in dated.items() if is_date == wanted) for wanted in (True, False))
        raise DataError(
            f"{shown(root)}: '{one}' contains dates ({shown(starts[one])}), '{other}' counts from some start "
            f"({shown(starts[other])}); give one clock for all with --times FILE.csv"
        )
    return found


def offsets(root: Path, scenes: Sequence[Scene], layout: Layout | None) -> dict[str, tuple[int, ...]]:
    """Nanoseconds of each sensor's and the labels' times after the first sensor's; a number per scene.

    Empty if files do not pair by time, or their times are no longer known.
    """
    if layout is None or layout.pair != "nearest":
        return {}
    first, *others = layout.modalities
    paths = {
        name: {scene.id: scene.files[name][0] for scene in scenes if name in scene.files} for name in (first, *others)
    }
    paths["labels"] = {scene.id: scene.label for scene in scenes if scene.label is not None}
    try:
        times = clocks(root, {role: list(each.values()) for role, each in paths.items() if each}, layout)
    except DataError:
        return {}
    start = {name: times[first][path] for name, path in paths[first].items() if path in times[first]}
    found = {
        role: tuple(times[role][path] - start[name] for name, path in paths[role].items() if name in start)
        for role in (*others, "labels")
        if role in times
    }
    return {role: each for role, each in found.items() if each}


def path_stem(path: str) -> str:
    """The last name without an image's suffix; a fraction of a second is not a suffix."""
    name = PurePosixPath(path).name
    suffix = PurePosixPath(path).suffix
    return name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name


def _looked_up(role: Role, paths: Sequence[str], table: Mapping[str, Clock], layout: Layout) -> dict[str, int]:
    """Path → nanoseconds, for files in a table: by path, by last name, or without suffix."""
    found: dict[str, Clock | None] = {}
    for path in paths:
        name = PurePosixPath(path).name
        clock = table.get(path) or table.get(name) or table.get(path_stem(path))
        if clock is not None:
            found[path] = clock
    if not found:
        raise DataError(
            f"{', '.join(layout.times)}: has no time of any file of '{role}' (such as {shown(paths[0])}); its rows are "
            "file and time, the file as a path below ROOT or its last name"
        )
    return one_clock(f"'{role.lstrip('-')}'", found)


_TIME_COLUMN = re.compile(r"(?:time|timestamp|stamp|t)(?:[_ (\[]*(s|sec|seconds|ms|us|ns)[)\]]?)?")
_FILE_COLUMN = re.compile(r"file|filename|file_name|name|path|image|frame")


def read_times(path: Path) -> dict[str, Clock]:
    """File → its time, from a table.

    It has columns ``file`` and ``time`` (or ``time_ns``, ``time_ms``, ``time_s``), or two columns without a header, as
    TUM's ``rgb.txt``. Columns are separated by commas, semicolons, tabs or blanks; ``#`` starts a comment.

    Raises:
        DataError: it cannot be read, a row has no file or no time, or a file has two times; ``file:line``.
    """
    lines = documents.read_text(path, limit=documents.MAX_JSON_BYTES, option="--times").splitlines()
    rows = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    rows = [(number, line) for number, line in rows if line and not line.startswith("#")]
    if not rows:
        raise DataError(f"{shown(path)}: has no row; it needs columns file and time")
    head = [cell.lower() for cell in _table_cells(rows[0][1])]
    columns = [index for index, cell in enumerate(head) if _TIME_COLUMN.fullmatch(cell)]
    files = [index for index, cell in enumerate(head) if _FILE_COLUMN.fullmatch(cell)]
    unit = None
    if columns and files:
        match = _TIME_COLUMN.fullmatch(head[columns[0]])
        unit = {"sec": "s", "seconds": "s"}.get(str(match and match[1]), match and match[1])
        rows = rows[1:]
    found: dict[str, Clock] = {}
    for number, line in rows:
        where, cells = f"{shown(path)}:{number}", _table_cells(line)
        at = (files[0], columns[0]) if columns and files else _columns_of(cells)
        if max(at) >= len(cells) or at[0] == at[1]:
            raise DataError(f"{where}: '{shown(line, most=60)}' is not a file and its time")
        name, clock = cells[at[0]].removeprefix("./"), _table_time(cells[at[1]], unit)
        if clock is None:
            raise DataError(
                f"{where}: '{shown(cells[at[1]], most=40)}' has no time; name the column time_ns, time_ms or time_s"
            )
        if found.setdefault(name, clock) != clock:
            raise DataError(f"{where}: '{shown(name)}' has another time before; keep one row")
    return found


def _table_cells(line: str) -> list[str]:
    """A row's cells, separated by commas, semicolons or tabs, otherwise by blanks."""
    delimiter = next((each for each in ",;\t" if each in line), None)
    return [cell.strip(' "') for cell in line.split(delimiter)]


def _columns_of(cells: Sequence[str]) -> tuple[int, int]:
    """Which of two cells is the file and which the time; the same twice if unknown."""
    files = [index for index, cell in enumerate(cells) if cell.lower().endswith(SUFFIXES)]
    return (files[0], 1 - files[0]) if len(cells) == len("ft") and len(files) == 1 else (0, 0)


def _table_time(text: str, unit: str | None) -> Clock | None:
    """A cell's time; a bare number has the unit of its column, with a fraction seconds."""
    if unit is None or not re.fullmatch(r"\d+(?:\.\d+)?", text):
        return read_time(text)
    whole, _, rest = text.partition(".")
    digits = len(str(UNITS[unit])) - 1
    return unit, int(whole) * UNITS[unit] + int(rest[:digits].ljust(digits, "0") or 0)


def _too_far(root: Path, first: Role, role: Role, times: Mapping[Role, Mapping[str, int]], tolerance: int) -> str:
    """Why no frames of two sensors pair, with the smallest offset."""
    known = sorted(times[first].values())
    least = min((abs(time - near) for time in times[role].values() for near in _neighbors(known, time)), default=None)
    nearest = "" if least is None else f"; the nearest two are {span(least)} apart"
    return (
        f"{shown(root)}: no frame of '{role.lstrip('-')}' is within {span(tolerance)} of one of '{first}' in the same "
        f"folder{nearest}; widen --tolerance, or check that both clocks agree"
    )


def _neighbors(times: Sequence[int], time: int) -> Sequence[int]:
    """The neighbors of a time among sorted ones."""
    at = bisect_left(times, time)
    return times[max(0, at - 1) : at + 1]


def span(nanoseconds: int) -> str:
    """A duration as text: ``20 ms``, ``1.5 s``, ``300 ns``."""
    unit = next((name for name in ("s", "ms", "us") if abs(nanoseconds) >= UNITS[name]), "ns")
    return f"{nanoseconds / UNITS[unit]:.4g} {unit.replace('u', 'µ')}"
