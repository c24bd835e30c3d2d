"""Block Q: our own parsers under coverage-guided fuzzing, from the seeds in ``corpus/``."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.faults.scale import amount
from tests.forks import ROOT

CORPUS = Path(__file__).parent / "corpus"
TARGETS = sorted(path.name for path in CORPUS.iterdir() if path.name != "naive")
SECONDS = amount(3, soak=170, few=60)
"""For each target; a soak's twenty minutes in all. In plain runs inputs are counted, however slow the machine is."""
RUNS = amount(-1, soak=-1, few=2000)
"""After which it ends before its time; -1 is for ever."""


def fuzz(target: str, folder: Path, seed: int) -> subprocess.CompletedProcess[str]:
    """Fuzz a target; a crash leaves its input in ``folder``."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no build for this Python or machine")
    shutil.copytree(CORPUS / target, folder / "seeds")
    options = [
        f"-max_total_time={SECONDS}",
        f"-runs={RUNS}",
        f"-seed={seed}",
        "-timeout=10",
        "-rss_limit_mb=3000",
        "-max_len=8192",
    ]
    line = [sys.executable, "-m", "tests.faults.fuzz", target, *options, "seeds"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_the_bytes_a_parser_gives_a_value_or_one_of_our_errors(
    target: str, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    ended = fuzz(target, tmp_path, rng.randrange(1, 2**31))
    found = re.search(r"Done (\d+) runs", ended.stderr)
    crashes = [path.name for path in tmp_path.iterdir() if path.name != "seeds"]
    assert ended.returncode == 0 and found is not None and crashes == [], ended.stderr[-3000:]
    figures("Q", inputs=int(found[1]), crashes=0)
    assert int(found[1]) > 1000


def test_a_parser_that_believes_its_input_is_caught(tmp_path: Path, rng: random.Random, figures: Figures) -> None:
    ended = fuzz("naive", tmp_path, rng.randrange(1, 2**31))
    assert ended.returncode != 0 and "unpack_from requires a buffer" in ended.stdout
    figures("Q", naive_crashes=1)
