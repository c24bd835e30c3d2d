"""Python files of the user's own that add encoders, fusions and losses: ``memorysam --extend FILE``.

Such a file is a program that the user chooses to run, with all that the user may do; there is no sandbox. It is named
on the command line (``--extend``, or ``extensions`` in the file of ``--recipe``) or by ``$MEMORYSAM_EXTEND``. What a
weights file, a run's folder or a shipped recipe names is never loaded by itself (docs/reliability.md).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path

from memorysam_cli.errors import UsageError

VARIABLE = "MEMORYSAM_EXTEND"
"""Absolute paths, separated as in ``$PATH``; programs that ours starts inherit it."""
HINT = "one of your own comes with its file: memorysam --extend FILE …"
"""What a refusal of an unknown name ends with."""

_faults: dict[Path, UsageError | None] = {}
"""The files that were loaded, and why not."""
_names: list[str] = []
"""What has been registered, in its order."""
_lock = threading.RLock()


def add(files: Iterable[str | os.PathLike[str]], *, where: str) -> None:
    """Name files to be loaded when a name is first looked up, here and in every program that this one starts.

    Args:
        files: relative to the current folder, or absolute.
        where: what named them, for messages.

    Raises:
        UsageError: one is not there.
    """
    known = _named()
    for file in files:
        path = Path(file).expanduser().absolute()
        if not path.is_file():
            raise UsageError(f"{where} {file}: is not a file; give a Python file that registers something")
        if os.pathsep in str(path):
            raise UsageError(f"{where} {file}: its path may not contain '{os.pathsep}'")
        if path not in known:
            known.append(path)
    if known:
        os.environ[VARIABLE] = os.pathsep.join(map(str, known))


def load() -> None:
    """Run the files that were named and have not been run yet.

    Raises:
        UsageError: one is missing, cannot be compiled, raises, or registers nothing; also every time after the first.
    """
    if not os.environ.get(VARIABLE):
        return
    with _lock:
        for path in _named():
            if path not in _faults:
                _faults[path] = None  # a file that looks names up while it runs does not run again
                _faults[path] = _run(path)
            if (fault := _faults[path]) is not None:
                raise fault


def note(name: str) -> None:
    """Remember that something was registered."""
    _names.append(name)


def _named() -> list[Path]:
    """The files that the environment names."""
    paths = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for path in paths:
        if not path.is_absolute():
            raise UsageError(f"${VARIABLE}: '{path}' must be an absolute path")
    return paths


def _run(path: Path) -> UsageError | None:
    """Run one file as a module; why it could not be, if so."""
    # Two files may have one name; a class must be found again by that of its module, as pickle does.
    name = f"memorysam_extension_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    before = len(_names)
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            return UsageError(f"{path}: is no Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        sys.modules.pop(name, None)
        return UsageError(f"{_place(path, fault)}: {_reason(fault)}; fix the file that --extend names")
    if len(_names) == before:
        return UsageError(
            f"{path}: registers nothing; end it with a line such as ENCODERS.register('name', …) (docs/extending.md)"
        )
    return None


def _place(path: Path, fault: BaseException) -> str:
    """The file, with the line that raised where it is known."""
    if isinstance(fault, SyntaxError) and fault.filename == str(path):
        return f"{path}:{fault.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _reason(fault: BaseException) -> str:
    """What was raised, on one line."""
    text = fault.msg if isinstance(fault, SyntaxError) else str(fault)
    return " ".join(f"{type(fault).__name__}: {text}".split())
