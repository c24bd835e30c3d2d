"""Run many command lines in one process that is thrown away: what they register stays there.

python driver.py JOBS.json: each job is a command line, or ["-c", CODE]; prints a JSON list of [exit code, out, err].
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path


def main() -> None:
    from memorysam_cli import app

    ended = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
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
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
