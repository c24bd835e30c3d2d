"""Strict reading and writing of YAML and JSON.

YAML is read strictly, in the sense of YAML 1.2: ``1e-4`` is a number, ``on`` and ``no`` are words, ``010`` is refused
(octal in some programs, decimal in others), keys are always text and never occur twice; tags, anchors and aliases are
refused. Text that looks like another type needs quotes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import yaml

from memorysam_cli.errors import DataError, MemorySamError, UsageError, raise_shortage
from memorysam_cli.storage import atomic
from memorysam_cli.text import megabytes, shown

MAX_DEPTH = 20
MAX_VALUES = 5000
"""Largest number of keys and values of a YAML document; a recipe has two hundred, and PyYAML reads ten thousand per
second."""
MAX_BYTES = 1_000_000
"""Largest number of bytes of a text written by people."""
MAX_JSON_BYTES = 100_000_000
"""Largest number of bytes of a JSON document, and of a line of JSON."""

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.IGNORECASE)
_MAX_DIGITS = 18
_TAIL_BYTES = 4096
_WORDS_SHOWN = 200


class _Refused(Exception):
    """One of our rules is broken on ``line`` (from 1)."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Builds only plain nodes, and stops at the first one that is too deep or uses refused features."""

    # No implicit types: _scalar decides, so that YAML 1.1's octal, sexagesimal and on/off never happen.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own shape)
    depth = count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Refused(line, "anchors and aliases (& and *) are not allowed; repeat the value or quote the text")
        if getattr(event, "tag", None) is not None:
            raise _Refused(line, f"the tag {shown(str(event.tag))!r} is not allowed; write a plain value or quote it")
        if self.depth >= MAX_DEPTH:
            raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels; write it flatter, or quote the text")
        self.count += 1
        if self.count > MAX_VALUES:
            raise _Refused(line, f"more than {MAX_VALUES:,} keys and values; check that this is the file you mean")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def parse_yaml(text: str, *, where: str) -> Any:
    """Read one YAML document.

    Args:
        text: the document, at most 1 MB.
        where: its name in messages: a path, or an option such as ``--set``.

    Returns:
        None, bool, int, float (always finite), str, list, or dict with text keys in the document's order.

    Raises:
        UsageError: ``where:line: reason``.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where}: {_too_large(len(text), MAX_BYTES)}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _value(node)
    except _Refused as error:
        line, reason = error.line, str(error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        reason = f"the character U+{ord(text[int(error.position)]):04X} is not allowed; remove it"
    except yaml.MarkedYAMLError as error:
        line, reason = _marked(error, text)
    raise UsageError(f"{where}:{line}: {reason}")


def _marked(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Line (from 1) and reason of a syntax error."""
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    lines = text.splitlines()
    content = lines[line - 1] if line <= len(lines) else ""
    if "\t" in content[: len(content) - len(content.lstrip())] or "'\\t'" in str(error.problem):
        return line, "a tab in the indentation; use spaces"
    context = f"{error.context}: " if error.context else ""
    return line, " ".join(f"not valid YAML: {context}{error.problem}; fix the line, or quote the text".split())


def _value(node: yaml.Node) -> Any:
    """The plain value of a node."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    assert isinstance(node, yaml.ScalarNode)  # PyYAML has no other kind
    return node.value if node.style else _scalar(node)


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    first_lines: dict[str, int] = {}
    values: dict[str, Any] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused(line, "a key must be a word, not a list or a section; quote the text if it is one")
        if key.value in values:
            raise _Refused(
                line, f"the key '{key.value}' is given twice (first on line {first_lines[key.value]}); keep one"
            )
        first_lines[key.value] = line
        values[key.value] = _value(child)
    return values


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of an unquoted word."""
    text, line = node.value, node.start_mark.line + 1
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise _Refused(line, f"{text} is not a finite number; quote it if it is text")
    if not _NUMBER.fullmatch(text):
        return text
    if _LEADING_ZERO.match(text):
        raise _Refused(line, f"{text} has a leading zero; write the number without it, or '{text}' if it is text")
    if not _INTEGER.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return number
    elif len(text) <= _MAX_DIGITS:
        return int(text)
    raise _Refused(line, f"{text[:40]} is too large a number; quote it if it is text")


def read_yaml(path: Path) -> Any:
    """Read a YAML file; see :func:`parse_yaml`.

    Raises:
        UsageError: missing, not a file, larger than 1 MB, not UTF-8, or refused by :func:`parse_yaml`.
    """
    return parse_yaml(read_text(path, kind=UsageError), where=shown(path))


def read_text(path: Path, *, kind: type[MemorySamError] = DataError, limit: int = MAX_BYTES, option: str = "") -> str:
    """Read a file of UTF-8 text; a byte order mark is skipped.

    Args:
        path: the file.
        kind: as for :func:`read_bytes`.
        limit: as for :func:`read_bytes`.
        option: the option that named the file, for messages, such as ``--classes``.

    Raises:
        MemorySamError: as :func:`read_bytes`; or it is not UTF-8, with the line.
    """
    data = read_bytes(path, kind=kind, limit=limit, option=option)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise kind(f"{_named(path, option)}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _too_large(size: int, limit: int) -> str:
    allowed = megabytes(limit, decimals=0)
    return f"{megabytes(size)} is more than the {allowed} allowed; check that this is the file you mean"


def _named(path: Path, option: str) -> str:
    return f"{option} {shown(path)}".lstrip()


def read_bytes(
    path: Path, *, kind: type[MemorySamError] = DataError, limit: int = MAX_JSON_BYTES, option: str = ""
) -> bytes:
    """All bytes of a regular file; reading a device, a FIFO or a socket might never end or start.

    Args:
        path: the file.
        kind: the class of exceptions to raise.
        limit: largest number of bytes.
        option: the option that named the file, for messages.

    Raises:
        MemorySamError: of that class: missing, not a regular file, too large, or it cannot be read.
    """
    name = _named(path, option)
    try:
        if not path.is_file():
            raise kind(f"{name}: {'not a file' if path.exists() else 'no such file'}; check the path")
        size = path.stat().st_size
        if size > limit:
            raise kind(f"{name}: {_too_large(size, limit)}")
        return path.read_bytes()
    except OSError as error:
        raise_shortage(error)
        raise kind(f"{name}: cannot read: {error.strerror}; fix that and run the same command again") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: missing, too large, not UTF-8, not JSON, a number that is not finite, or a duplicate key.
    """
    return parse_json(read_bytes(path), where=shown(path))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object written by memorysam.

    Raises:
        DataError: as :func:`read_json`, or it contains something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{shown(path)}: holds no JSON object; run the command that wrote it again")
    return found


_NOT_AS_WRITTEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, StopIteration)
"""Exceptions that occur when code reads content of an unexpected form; an empty list has no first item."""


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Report a file with unexpected content as damaged, instead of Python's error.

    For files that only memorysam writes, and that differ only if somebody edited them or the disk is damaged. The block
    should only read the content, because a bug in it would be blamed on the file.

    Raises:
        DataError: instead of the block's exception.
    """
    try:
        yield
    except _NOT_AS_WRITTEN as error:
        raise DataError(
            f"{shown(path)}: is not as this version of memorysam writes it ({type(error).__name__}: "
            f"{shown(' '.join(str(error).split()), most=_WORDS_SHOWN)}); run the command that wrote it again"
        ) from error


def parse_json(data: bytes, *, where: str) -> Any:
    """Read JSON from bytes; messages begin with ``where``.

    Raises:
        DataError: not UTF-8, not JSON, a number that is not finite, or a duplicate key.
    """
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = " ".join(str(error).split()) if isinstance(error, ValueError) else "nested too deeply"
        raise DataError(f"{where}: not valid JSON ({shown(reason)}); restore or remake the file") from error


def _finite(word: str) -> float:
    """A finite number of JSON; ``1e999`` is valid in its grammar but refused here."""
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:40]} is too large a number")
    return value


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError(f"a key is given twice among {', '.join(key for key, _ in pairs)[:200]}")
    return values


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_distinct)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text, keys in their order, UTF-8 not escaped.

    Raises:
        ValueError: NaN or infinity, which JSON does not have; use None instead.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name with undecodable bytes: escapes keep it readable, and exact
        return json.dumps(value, allow_nan=False, indent=indent)
    return text


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, all or nothing.

    Raises:
        EnvironmentFault: it cannot be written.
        ValueError: NaN or infinity in ``value``.
    """
    atomic.write_text(path, to_json(value, indent=2) + "\n")


def append_json_line(path: Path, value: Any, *, fsync: bool = False) -> None:
    """Add one line to a JSON-lines file; parents are created, and an incomplete last line is removed first.

    Only one writer at a time (hold the folder's lock). With ``fsync`` the line survives a power loss.

    Raises:
        EnvironmentFault: it cannot be written.
        ValueError: NaN or infinity in ``value``.
    """
    line = to_json(value).encode() + b"\n"
    atomic.make_folder(path.parent)
    with atomic.faults(path, needed_bytes=len(line)), path.open("ab+", buffering=0) as stream:
        _end_last_line(stream)
        start = stream.seek(0, os.SEEK_END)
        left = line
        while left:  # a full disk may write a part before it reports an error
            left = left[stream.write(left) :]
        stream.seek(start)
        if stream.read() != line:  # a disk that reports success but writes less
            stream.truncate(start)
            raise OSError(errno.EIO, "what was read back differs from what was written")
        if fsync:
            os.fsync(stream.fileno())


def _end_last_line(stream: FileIO) -> None:
    """Make the file empty or end in a newline: remove an incomplete last line, complete one that only lacks its
    newline."""
    start = size = stream.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and b"\n" not in tail:
        stream.seek(max(0, start - _TAIL_BYTES))
        tail = stream.read(start - stream.tell()) + tail
        start = size - len(tail)
        if tail.endswith(b"\n"):
            return
    last = tail.rpartition(b"\n")[2]
    if _is_torn(last):
        stream.truncate(size - len(last))
    else:
        stream.write(b"\n")


def _is_torn(line: bytes) -> bool:
    """Whether a last line without its newline is not a complete value; a number may have lost its last digits."""
    try:
        return not isinstance(parse_json(line, where=""), dict | list)
    except DataError:
        return True


def read_json_lines(path: Path) -> list[Any]:
    """Read a JSON-lines file, without an incomplete last line.

    Raises:
        DataError: missing, or ``file:line`` is not JSON.
    """
    return list(each_json_line(path))


def each_json_line(path: Path, *, may_be_torn: bool = True) -> Iterator[Any]:
    """As :func:`read_json_lines`, one line at a time, so that memory does not grow with the file.

    Args:
        path: the file.
        may_be_torn: the file grows in place, so an incomplete last line is skipped; in other files it is refused.

    Raises:
        DataError: missing, or ``file:line`` is not JSON.
    """
    name = shown(path)
    if not path.is_file():
        raise DataError(f"{name}: {'not a file' if path.exists() else 'no such file'}; check the path")
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_JSON_BYTES + 1), b""), 1):
                if len(line) > MAX_JSON_BYTES:
                    raise DataError(f"{name}:{number}: a line of more than {megabytes(MAX_JSON_BYTES, decimals=0)}")
                is_last = not line.endswith(b"\n")  # only the last line can lack it
                if line.strip() and not (may_be_torn and is_last and _is_torn(line)):
                    yield parse_json(line, where=f"{name}:{number}")
    except OSError as error:
        raise_shortage(error)
        raise DataError(f"{name}: cannot read: {error.strerror}; fix that and run the same command again") from error
