"""The process of one tracker: it reads what the training logs from its stdin, line by line, until that ends.

It answers with lines of JSON: a ``note`` for people, the first ``trouble`` with what was handed on, or why all of it
``failed``.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memorysam_cli.storage import children

if TYPE_CHECKING:
    from memorysam_cli.engine.training import trackers
    from memorysam_cli.engine.training.trackers import Counts

LAST_S = 300
"""Until a tracker that nobody waits for any more is ended by the system."""


def main(arguments: list[str]) -> None:
    """Track: the tracker's name."""
    (name,) = arguments
    # Ctrl-C and a scheduler's SIGTERM reach all processes; the training decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    with children.claim_stdout() as answers:
        serve(name, sys.stdin.buffer, answers)


def serve(name: str, lines: IO[bytes], answers: IO[bytes]) -> None:
    """Track what comes until it ends.

    Args:
        name: of the tracker.
        lines: JSON: first ``folder``, ``recipe`` and ``step``, then what :class:`Tracking` sends.
        answers: where to tell it.
    """
    try:
        _track(name, (json.loads(line) for line in lines), answers)
    except Exception as fault:
        # Whatever a tracker raises: the training is told in a line.
        _say(answers, failed=_one_line(fault))
        for _ in lines:  # the training must not find a closed pipe
            pass


def _track(name: str, messages: Iterator[dict[str, Any]], answers: IO[bytes]) -> None:
    from memorysam_cli.engine.training import trackers

    begin = next(messages)
    tracker = trackers.start(name, Path(begin["folder"]), recipe=begin["recipe"], step=begin["step"])
    _say(answers, note=tracker.where)
    has_warned = False
    for message in messages:
        if "end" in message:  # not the end of the pipe: readers that the training forked may hold it open
            break
        try:
            _hand_on(message, tracker)
        except Exception as fault:  # a server may be away for an hour of three days
            if not has_warned:
                _say(answers, trouble=f"step {message['step']}: {_one_line(fault)}")
            has_warned = True
    if hasattr(signal, "alarm"):
        signal.alarm(LAST_S)
    tracker.finish()


def _hand_on(message: dict[str, Any], tracker: trackers.Tracker) -> None:
    """What the training logged, to the tracker."""
    if "values" in message:
        tracker.log(message["values"], message["step"])
    else:
        counts = (tuple(message["classes"]), message["confusion"])
        tracker.show(_pictures(Path(message["picture"]), counts, tracker.own), counts, message["step"])


def _one_line(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]}".removesuffix(": ")


def _pictures(samples: Path, counts: Counts, folder: Path) -> dict[str, Path]:
    """The pictures of a validation by title; the confusions are drawn here, where the training waits for nobody."""
    from memorysam_cli.report import figures
    from memorysam_cli.storage import atomic

    drawn = folder / "confusion.png"
    atomic.write_bytes(drawn, figures.confusion_matrix(counts[1], classes=counts[0]), fsync=False)
    found = {"validation/samples": samples, "validation/confusion": drawn}
    return {title: path for title, path in found.items() if path.is_file()}


def _say(answers: IO[bytes], **words: str) -> None:
    answers.write(json.dumps(words).encode() + b"\n")
    answers.flush()
