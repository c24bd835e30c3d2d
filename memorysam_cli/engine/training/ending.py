"""How a training ended, for those whose launcher does not tell: torchrun itself always ends with 1."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from memorysam_cli.engine import launcher
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import EXIT_CODES, FolderInUseError, MemorySamError, environment_fault, most_severe
from memorysam_cli.storage import documents, lock

_INTERRUPTED, _TERMINATED, _BUG = 130, 143, 1


class Ending:
    """Tells it in ``exit.json`` of the run's folder, if a launcher started this process."""

    def __init__(self) -> None:
        self._is_recorded = False

    @contextlib.contextmanager
    def of_command(self, out: Path | None) -> Iterator[None]:
        """What ends before the run's folder is held is told where a run is there already; no folder is made for it.

        Args:
            out: the folder that was asked for.
        """
        try:
            yield
        except BaseException as fault:
            is_ours = out is not None and RunFolder(out).holds_run() and not isinstance(fault, FolderInUseError)
            if out is not None and is_ours and not self._is_recorded:
                with contextlib.suppress(MemorySamError, OSError), lock.hold(out):  # another run may be at work there
                    _record(RunFolder(out), fault)
            raise

    @contextlib.contextmanager
    def of_run(self, run: RunFolder) -> Iterator[None]:
        """However the block ends; to be opened while the folder is held."""
        self._is_recorded = True
        if _is_launched():
            run.exit.unlink(missing_ok=True)  # where there is none, the process was killed
        try:
            yield
        except BaseException as fault:
            with contextlib.suppress(MemorySamError, OSError):  # the first fault is the one to tell
                _record(run, fault)
            raise
        _record(run, None)


def _is_launched() -> bool:
    return launcher.is_launched() and launcher.rank() == 0


def _record(run: RunFolder, fault: BaseException | None) -> None:
    if not _is_launched():
        return
    code, message = (0, "") if fault is None else _code_and_reason(fault)
    meaning = str(EXIT_CODES[code]) if code in EXIT_CODES else ""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    documents.write_json(run.exit, {"code": code, "meaning": meaning, "message": message, "time": now})


def _code_and_reason(fault: BaseException) -> tuple[int, str]:
    """The exit code that the program will end with, and why."""
    if isinstance(fault, KeyboardInterrupt):
        return _INTERRUPTED, "interrupted"
    if isinstance(fault, SystemExit):
        return (fault.code if isinstance(fault.code, int) else _TERMINATED), str(fault)
    known = most_severe(fault) if isinstance(fault, MemorySamError) else environment_fault(fault)
    return (_BUG, f"{type(fault).__name__}: {fault}") if known is None else (known.exit_code, str(known))
