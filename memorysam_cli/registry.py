"""What recipes choose by name: encoders, fusions, losses; and files of the user's own that add to them.

A registry is a plain table from a name to where the thing stands (``"package.module:attribute"``), so that listing
names imports nothing heavy; a module is imported when one of its names is first used.

A file of the user's own adds to the tables with :meth:`Registry.register` (docs/extending.md). It is a program that the
user chooses to run, with all that the user may do; there is no sandbox. It is named on the command line (``--extend``,
or ``extensions`` in the file of ``--recipe``) or by ``$MEMORYSAM_EXTEND``, and runs when a name is first looked up.
What a weights file, a run's folder or a shipped recipe names is never loaded by itself (docs/reliability.md).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from memorysam_cli.errors import UsageError
from memorysam_cli.text import typed_path

VARIABLE = "MEMORYSAM_EXTEND"
"""Absolute paths, separated as in ``$PATH``; programs that ours starts inherit it."""
HINT = "your own recipe comes with its file: memorysam --extend FILE …"
"""What a refusal of an unknown name ends with."""

_registered: list[str] = []
"""The names that were added to any registry, in their order."""
_given: list[Path] = []
"""The files that this command line or its recipe named: the next command line must name them, too."""
_errors: dict[Path, UsageError | None] = {}
"""The files that were run, and why one could not be."""
_lock = threading.RLock()


class Registry:
    """Names and what they stand for.

    Args:
        kind: what is registered, for messages: "encoder".
        known: name -> ``"package.module:attribute"``.
        older: more of them, which files of before need and no list shows.
    """

    def __init__(self, kind: str, known: dict[str, str], *, older: Mapping[str, str] = MappingProxyType({})) -> None:
        self.kind = kind
        self.built_in = tuple(known)
        self._older = frozenset(older)
        self._known: dict[str, Any] = {**known, **older}

    def __contains__(self, name: object) -> bool:
        _run_files()
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        _run_files()
        return iter(tuple(name for name in self._known if name not in self._older))

    def register(self, name: str, value: Any) -> None:
        """Add a name.

        Args:
            name: how recipes call it.
            value: the thing itself, or ``"package.module:attribute"``.

        Raises:
            ValueError: the name is taken by something else.
        """
        if name in self._known and self._known[name] is not value:
            raise ValueError(f"{self.kind} '{name}' is registered already (known: {', '.join(self._known)})")
        self._known[name] = value
        _registered.append(name)

    def get(self, name: str) -> Any:
        """What a name stands for; its module is imported if need be.

        Raises:
            KeyError: nothing is registered under this name.
        """
        _run_files()
        value = self._known[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._known[name] = getattr(importlib.import_module(module), attribute)
        return value


_REGIONS = "memorysam_cli.losses.regions"
LOSSES = Registry(
    "loss",
    {
        "ohem": "memorysam_cli.losses.ohem:OhemLoss",
        "spmm": "memorysam_cli.losses.spmm:SpmmLoss",
        "dice": f"{_REGIONS}:DiceLoss",
        "focal": f"{_REGIONS}:FocalLoss",
        "lovasz": f"{_REGIONS}:LovaszLoss",
        "single": "memorysam_cli.losses.robust:SingleLoss",
        "teacher": "memorysam_cli.losses.robust:TeacherLoss",
        "prefix": "memorysam_cli.losses.robust:PrefixLoss",
    },
)
"""Losses by name: classes such as :class:`memorysam_cli.losses.loss.Loss`."""
_HIERA = "memorysam_cli.encoders.hiera"
ENCODERS = Registry(
    "encoder",
    {
        "nano": f"{_HIERA}:NANO",
        "sam2-hiera-tiny": f"{_HIERA}:SAM2_TINY",
        "sam2-hiera-small": f"{_HIERA}:SAM2_SMALL",
        "sam2-hiera-base-plus": f"{_HIERA}:SAM2_BASE_PLUS",
        "sam2-hiera-large": f"{_HIERA}:SAM2_LARGE",
        "sam2.1-hiera-tiny": f"{_HIERA}:SAM21_TINY",
        "sam2.1-hiera-small": f"{_HIERA}:SAM21_SMALL",
        "sam2.1-hiera-base-plus": f"{_HIERA}:SAM21_BASE_PLUS",
        "sam2.1-hiera-large": f"{_HIERA}:SAM21_LARGE",
    },
    older={"nano-1": f"{_HIERA}:NANO_1"},
)
"""``model.backbone`` → a :class:`memorysam_cli.encoders.base.Backbone`."""
_FUSION = "memorysam_cli.model.fusion"
FUSIONS = Registry(
    "fusion",
    {"mean": f"{_FUSION}:Mean", "two_pass": f"{_FUSION}:TwoPass", "two_pass_alone": f"{_FUSION}:TwoPassAlone"},
)
"""``model.fusion`` → a :class:`memorysam_cli.model.fusion.Fusion`, the class or what else makes one."""


def add_files(files: Iterable[str | os.PathLike[str]], *, where: str) -> None:
    """Name files to be loaded when a name is first looked up, here and in every program that this one starts.

    Args:
        files: relative to the current folder, or absolute.
        where: what named them, for messages.

    Raises:
        UsageError: one is not there.
    """
    known = _named()
    for file in files:
        path = typed_path(file).absolute()
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise UsageError(f"{where} {file}: {what}; give a Python file that registers something")
        if os.pathsep in str(path):
            raise UsageError(f"{where} {file}: its path may not contain '{os.pathsep}'")
        if path not in known:
            known.append(path)
            _given.append(path)
    if known:
        os.environ[VARIABLE] = os.pathsep.join(map(str, known))


def options() -> list[object]:
    """What a command to type needs before its name, so that it knows what this one knows: ``--extend FILE``."""
    known = _named()
    return [word for path in dict.fromkeys(_given) if path in known for word in ("--extend", path)]


def _run_files() -> None:
    """Run the files that were named and have not been run yet.

    Raises:
        UsageError: one is missing, cannot be compiled, raises, or registers nothing; also every time after the first.
    """
    if not os.environ.get(VARIABLE):
        return
    with _lock:
        for path in _named():
            if path not in _errors:
                _errors[path] = None  # a file that looks names up while it runs does not run again
                _errors[path] = _run(path)
            if (error := _errors[path]) is not None:
                raise error


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
    before = len(_registered)
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            return UsageError(f"{path}: is not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        return UsageError(f"{_place(path, error)}: {_reason(error)}; fix the file that --extend names")
    if len(_registered) == before:
        return UsageError(
            f"{path}: registers nothing; end it with a line such as ENCODERS.register('name', …) (docs/extending.md)"
        )
    return None


def _place(path: Path, error: BaseException) -> str:
    """The file, with the line that raised where it is known."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _reason(error: BaseException) -> str:
    """What was raised, on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())
