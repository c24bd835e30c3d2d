"""The Dockerfile, as far as it can be judged without Docker: what it copies exists, and what it runs is sound."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "RUN", "COPY", "USER", "ENTRYPOINT", "CMD"}
"""No ADD, which unpacks and downloads unasked; no EXPOSE or VOLUME, which nothing here needs."""


def instructions() -> list[tuple[str, str]]:
    """Word and arguments of every instruction, without comments, lines that continue joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


STEPS = instructions()


def of(word: str) -> list[str]:
    return [rest for name, rest in STEPS if name == word]


def test_only_plain_instructions_are_used() -> None:
    assert {word for word, _ in STEPS} == KNOWN


def test_two_stages_on_one_pinned_image_that_the_project_supports() -> None:
    assert of("FROM") == ["python:${PYTHON}-slim-bookworm AS build", "python:${PYTHON}-slim-bookworm"]
    (version,) = (argument.removeprefix("PYTHON=") for argument in of("ARG") if argument.startswith("PYTHON="))
    assert re.fullmatch(r"3\.\d+", version) and int(version.split(".")[1]) >= 11


def test_the_program_is_run_by_a_user_who_is_not_root_in_the_last_stage() -> None:
    last = max(place for place, (word, _) in enumerate(STEPS) if word == "FROM")
    words = [word for word, _ in STEPS[last:]]
    assert of("USER") == ["memorysam"] and "USER" in words and any("useradd" in run for run in of("RUN"))
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert "RUN" not in words[words.index("USER") :]


def test_signals_reach_the_program_itself() -> None:
    """A shell in front of it would keep SIGTERM to itself, and no checkpoint would be saved."""
    assert [json.loads(rest) for rest in (*of("ENTRYPOINT"), *of("CMD"))] == [["memorysam"], ["--help"]]


@pytest.mark.parametrize("run", of("RUN"))
def test_what_it_runs_is_shell_and_installs_within_the_constraints(run: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", run], capture_output=True, check=False).returncode == 0
    words = shlex.split(run)
    if words[:2] == ["pip", "install"]:
        assert words[2:4] == ["-c", "constraints.txt"]
        assert "sudo" not in run and "|" not in run


def test_sam2_is_installed_without_a_cuda_compiler_and_without_a_second_torch() -> None:
    assert any("SAM2_BUILD_CUDA=0" in each for each in of("ENV"))
    assert any(run.endswith("--no-build-isolation .") for run in of("RUN"))
    torch = next(place for place, run in enumerate(of("RUN")) if run.endswith(" torch"))
    assert torch < len(of("RUN")) - 2, "before the package itself"


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [word for copy in of("COPY") if "--from" not in copy for word in copy.split()[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert sorted(sources) == sorted(kept)
    assert not any(fnmatch.fnmatch(name, pattern) for pattern in kept for name in (".git", ".venv", "data", "runs"))


def test_the_build_takes_everything_that_the_wheel_needs() -> None:
    """What pyproject.toml names for the wheel and its metadata is copied before the package is installed."""
    copied = {word for copy in of("COPY") if "--from" not in copy for word in copy.split()[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "recipes", "memorysam_cli"} <= copied
