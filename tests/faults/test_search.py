"""Block S: every command in every hostile environment, and every path that names something hostile."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from memorysam_cli.errors import EXIT_CODES
from tests.faults import disks
from tests.faults.conftest import Commands, Figures
from tests.faults.scale import amount, seconds
from tests.faults.search_lines import COMMANDS, HERE, LINES, path_parameters, spots
from tests.faults.search_tries import NOT_TRIED, Try, attempt, combination, everything, fitting
from tests.faults.search_worlds import THINGS, WORLDS
from tests.forks import Forks

PARTS = amount(4, soak=40, few=2)
"""Tests that share the tries, so that two workers may take them."""
QUICK, SLOW, FRESH, MIXED = amount(40, soak=60, few=10), amount(0, soak=4), amount(1, soak=3), amount(8, soak=16, few=4)
"""Tries of a part: of lines of a moment, of lines that take seconds, in an interpreter of their own, and of two worlds
at once."""


@pytest.fixture(scope="module")
def template(commands: Commands) -> Path:
    return commands.template


@pytest.fixture(scope="module")
def forks(commands: Commands) -> Forks:
    return commands.server


def drawn(part: int, rng: random.Random) -> list[Try]:
    """What a part tries: its share of everything, in an order that the seed decides, and combinations."""
    kinds: dict[str, list[Try]] = {"quick": [], "slow": [], "fresh": []}
    for one in everything():
        kinds["slow" if one.typed.is_slow else "fresh" if one.is_fresh else "quick"].append(one)
    for each in kinds.values():
        random.Random(os.environ["MEMORYSAM_FAULT_SEED"]).shuffle(each)
    found = [
        kinds["quick"][part::PARTS][:QUICK],
        kinds["slow"][part::PARTS][:SLOW],
        kinds["fresh"][part::PARTS][:FRESH],
    ]
    mixed = (combination(rng) for _ in range(100 * MIXED))
    found.append([one for one in mixed if not one.is_fresh and not one.typed.is_slow][:MIXED])
    return [one for each in found for one in each]


@pytest.mark.timeout(seconds(240))
@pytest.mark.parametrize("part", range(PARTS))
def test_no_command_in_no_environment_ends_with_1(
    part: int, tmp_path: Path, template: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    wrong = tried(drawn(part, rng), tmp_path, template, forks, figures)
    assert not wrong, "\n".join(wrong)


def tried(tries: Sequence[Try], folder: Path, template: Path, forks: Forks, figures: Figures) -> list[str]:
    """What went wrong in these tries."""
    wrong = []
    for number, one in enumerate(tries):
        place = folder / str(number)
        found = attempt(one, place, template, forks)
        if found is NOT_TRIED:
            figures("S", left_out=1)
        else:
            wrong += ["; ".join(found)] if found else []
            figures("S", tries=1, interpreters=int(one.is_fresh), violations=int(bool(found)))
        subprocess.run(["chmod", "-R", "u+rwX", str(place)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(place)
    return wrong


def line_of(*words: str) -> int:
    """The first line that begins so."""
    return next(number for number, line in enumerate(LINES) if line.words[: len(words)] == words)


INFO, MERGE, CHECK = line_of("weights", "info"), line_of("weights", "merge"), line_of("recipes", "check")
HARM = {
    "a missing file": (Try(INFO, spot=0, thing="missing"), "exit code 1, not of"),
    "a folder": (Try(INFO, spot=0, thing="empty folder"), "a traceback"),
    "a full stdout": (Try(INFO, ("stdout full",)), "exit code 1"),
    "nobody reads": (Try(INFO, ("stdout unread",)), "exit code 1"),
    "no descriptor": (Try(INFO, ("8 descriptors",), spot=0, thing="/dev/fd/99"), "exit code 1"),
    "not ASCII": (Try(INFO, ("ascii strict",), spot=0, thing="not UTF-8"), "exit code 1"),
    "no recipe": (Try(CHECK, spot=0, thing="missing"), "exit code 0, not of"),
    "what it says": (Try(CHECK, spot=0, thing="dangling link"), "not ours: 'no recipe, I take the default'"),
    "a name that paints": (Try(INFO, spot=0, thing="escape"), "control characters"),
    "its input": (Try(MERGE), "changed: here/w.safetensors"),
    "small files": (Try(MERGE, ("files of 4 KB",)), "a temporary stays: tmp/"),
    "no JSON": (Try(INFO, output_mode=3), "no JSON object"),
}
"""What a program without our care does, in words of the judge."""


def plain_files(template: Path) -> Path:
    """What the naive program takes: it does not look inside."""
    template.mkdir()
    (template / "w.safetensors").write_bytes(bytes(10_000))
    (template / "tiny.yaml").write_text("train: {}")
    return template


def test_the_same_tries_find_a_naive_program_out(tmp_path: Path, figures: Figures) -> None:
    template = plain_files(tmp_path / "template")
    with Forks("tests.faults.jobs_search:work") as naive:
        for number, (name, (one, harm)) in enumerate(HARM.items()):
            wrong = attempt(one, tmp_path / str(number), template, naive, is_naive=True)
            assert any(text.startswith(harm) for text in wrong), (name, wrong)
            figures("S", naive=1, naive_caught=1)


def test_a_program_that_waits_for_a_fifo_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for ever, so that the length of the limit decides nothing."""
    monkeypatch.setenv("MEMORYSAM_FORK_LIMIT", "0.3")
    template = plain_files(tmp_path / "template")
    with Forks("tests.faults.jobs_search:work") as naive:
        wrong = attempt(Try(CHECK, spot=0, thing="FIFO"), tmp_path / "fifo", template, naive, is_naive=True)
    assert wrong[0] == "it hangs"


def reach(place: str, outside: str) -> int:
    """In a child: 1 if what is tried could write outside its place; where there is no fence, root gets no devices."""
    if not disks.fence(Path(place)):
        return 0
    Path(place, "inside").write_text("mine")
    try:
        Path(outside).write_text("changed")
    except OSError:
        return 0
    return 1


def test_a_try_writes_nowhere_but_in_its_own_place(tmp_path: Path) -> None:
    """As root it could take the machine's devices away: a report once lay where /dev/zero had been."""
    with tempfile.TemporaryDirectory() as elsewhere, Forks("tests.faults.test_search:reach") as child:
        outside = Path(elsewhere, "outside")
        outside.write_text("as it was")
        assert child.run(str(tmp_path), str(outside)).code == 0
        assert outside.read_text() == "as it was"


def test_every_command_has_a_line_that_works() -> None:
    assert {line.command for line in LINES} == set(COMMANDS)


def test_every_path_parameter_of_every_command_is_a_spot() -> None:
    for line in LINES:
        names = {each.name for each in path_parameters(COMMANDS[line.command])}
        assert names == {spot.name for spot in spots(line)}, line.command
        for word in line.words:  # a path that stands there belongs to a parameter that was found
            at = line.words.index(word)
            assert not word.startswith(HERE) or at in {spot.at for spot in spots(line)} or word == "@runs/second", line


def test_nothing_that_is_tried_may_end_with_1_or_by_a_signal() -> None:
    codes = {code for one in everything() for code in fitting(one)}
    assert codes <= set(EXIT_CODES) - {1, 8, 130, 143}
    assert all(0 not in fitting(one) for one in everything() if one.thing == "missing" and not one.where.is_output)  # type: ignore[union-attr]


def test_there_are_more_than_two_thousand_tries() -> None:
    assert len(list(everything())) > 2000
    assert len(WORLDS) > 40 and len(THINGS) > 20
