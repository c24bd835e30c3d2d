"""Run many command lines in one process that is thrown away: what they register stays there.

python driver.py JOBS.json: each job is a command line, or ["-c", CODE]; prints a JSON list of [exit code, out, err].
python driver.py: does the slow imports once; then each line on stdin, a JSON list of JOBS.json and a folder, is done in
that folder by a fork; the answer is written to JOBS.answer, and the fork's exit code printed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import sys
import traceback
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
SLOW = (
    "cv2",
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


def serve() -> None:
    """Answer the lines on stdin, each in a process that has only imported what comes with the program."""
    codes = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for name in SLOW:
        importlib.import_module(name)
    importlib.import_module("memorysam_cli.model.lora").peft()
    sys.path.append(ROOT)
    importlib.import_module("tests.sketches").use()
    sys.path.remove(ROOT)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        jobs, folder = json.loads(line)
        if (child := os.fork()) == 0:
            _be_child(Path(jobs), folder)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=codes, flush=True)


def _be_child(jobs: Path, folder: str) -> None:
    """Do the jobs, and never go back into the server's loop."""
    try:
        os.chdir(folder)
        jobs.with_suffix(".answer").write_text(done(jobs))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(done(Path(sys.argv[1])))
    else:
        serve()
