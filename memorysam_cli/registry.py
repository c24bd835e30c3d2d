"""Registries of encoders, fusions and losses, which recipes choose by name; and the user's own files that add to them.

A registry maps a name to a place (``"package.module:attribute"``). Listing names therefore imports nothing heavy; a
module is imported when one of its names is first used.

A user's own file adds names with :meth:`Registry.register` (docs/extending.md). The file is a program that runs with
all rights of the user; there is no sandbox. It is named on the command line (``--extend``, or ``extensions`` in the
file of ``--recipe``) or by ``$MEMORYSAM_EXTEND``, and runs when a name is first looked up. A file named in a weights
file, a run's folder or a shipped recipe is never loaded (docs/reliability.md).
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
"""Environment variable: absolute paths, separated as in ``$PATH``. Child processes inherit it."""
HINT = "your own recipe comes with its file: memorysam --extend FILE …"
"""End of the error message for an unknown name."""

_registered: list[str] = []
"""The names that were added to any registry, in their order."""
_given: list[Path] = []
"""The files named on this command line or in its recipe. A following command must name them too."""
_errors: dict[Path, UsageError | None] = {}
"""The files that were run, each with the reason if it failed."""
_lock = threading.RLock()


class Registry:
    """Names, and the objects that they refer to.

    Args:
        kind: what is registered, for messages: "encoder".
        known: name -> ``"package.module:attribute"``.
        older: further names that old files need. They are not listed.
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
            name: the name for recipes.
            value: the object itself, or ``"package.module:attribute"``.

        Raises:
            ValueError: the name is taken by something else.
        """
        if name in self._known and self._known[name] is not value:
            raise ValueError(f"{self.kind} '{name}' is registered already (known: {', '.join(self._known)})")
        self._known[name] = value
        _registered.append(name)

    def get(self, name: str) -> Any:
        """The object of a name; its module is imported if necessary.

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
"""``model.fusion`` → a :class:`memorysam_cli.model.fusion.Fusion` class, or a function that creates one."""


def add_files(files: Iterable[str | os.PathLike[str]], *, where: str) -> None:
    """Name files to load when a name is first looked up, in this process and in its child processes.

    Args:
        files: relative to the current folder, or absolute.
        where: the source of these names, for messages.

    Raises:
        UsageError: a file does not exist.
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
    """Options that a suggested command needs before its name to load the same files as this one: ``--extend FILE``."""
    known = _named()
    return [word for path in dict.fromkeys(_given) if path in known for word in ("--extend", path)]


def _run_files() -> None:
    """Run the named files that have not run yet.

    Raises:
        UsageError: a file is missing, cannot be compiled, raises, or registers nothing; also every time after the
            first.
    """
    if not os.environ.get(VARIABLE):
        return
    with _lock:
        for path in _named():
            if path not in _errors:
                _errors[path] = None  # a file that looks up names while it runs must not run again
                _errors[path] = _run(path)
            if (error := _errors[path]) is not None:
                raise error


def _named() -> list[Path]:
    """The files named in the environment."""
    paths = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for path in paths:
        if not path.is_absolute():
            raise UsageError(f"${VARIABLE}: '{path}' must be an absolute path")
    return paths


def _run(path: Path) -> UsageError | None:
    """Run a file as a module; return the reason if it failed."""
    # Two files may have the same name, but pickle finds a class by the name of its module.
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
    """The file, with the line of the error if it is known."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _reason(error: BaseException) -> str:
    """The error on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())
