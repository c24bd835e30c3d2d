"""Run many command lines in one process that is thrown away: what they register stays there.

Each job is a command line, or ["-c", CODE]; the answer is a JSON list of [exit code, out, err].
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from pathlib import Path

SLOW = (
    "cv2",
    "matplotlib.figure",
    "torch.export",
    "memorysam_cli.engine.evaluate.scoring",
    "memorysam_cli.engine.predict.predictor",
    "memorysam_cli.engine.train.loop",
    "memorysam_cli.engine.weights.portable",
)


def done(jobs: Path) -> str:
    """The answer to a file of jobs."""
    from memorysam_cli import app

    ended = []
    for job in json.loads(jobs.read_text()):
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if job[0] == "-c":
                try:
                    exec(job[1], {"__name__": "job"})
                except Exception as fault:
                    code, _ = 1, err.write(f"{type(fault).__name__}: {fault}")
            else:
                code = app.run(job)
        ended.append([code, out.getvalue(), err.getvalue()])
    return json.dumps(ended)


def warm(kind: str = "") -> None:
    """Import what comes with the program: for :class:`tests.forks.Forks`; if ``light``, what its help needs alone."""
    if kind == "light":
        importlib.import_module("memorysam_cli.app")
        return
    from tests import sketches

    for name in SLOW:
        importlib.import_module(name)
    sketches.use()


def answer(jobs: str, folder: str, environment: dict[str, str]) -> None:
    """Do a file of jobs in a folder; the answer is written beside it."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    Path(jobs).with_suffix(".answer").write_text(done(Path(jobs)))
