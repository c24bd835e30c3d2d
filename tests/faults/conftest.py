"""What the fault suite shares: one printed seed, a hard time limit for each test, and the figures that it counts."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.scale import CASES, SHARE, SLOW, SOAK, seconds
from tests.forks import Forks

HERE = Path(__file__).parent
LIMIT_S = 120

Figures = Callable[..., None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies here; a hang is a failure, whatever it waits for. Plain runs try a share of many cases."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)
            own = item.get_closest_marker("timeout")
            limit = own.args[0] if own is not None else LIMIT_S
            item.add_marker(pytest.mark.timeout(seconds(limit)), append=False)
    if not (SLOW or SOAK):
        left_out = set(_not_drawn([item for item in items if HERE in item.path.parents]))
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _not_drawn(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """The cases that the suite's seed does not draw."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for name, cases in tests.items():
        drawn = min(len(cases), max(CASES, round(len(cases) * SHARE)))
        yield from random.Random(f"{os.environ['MEMORYSAM_FAULT_SEED']} {name}").sample(cases, len(cases) - drawn)


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a module's data and runs."""
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2].removeprefix("test_"))


@pytest.fixture(scope="module")
def forks(request: pytest.FixtureRequest, base: Path) -> Iterator[Forks]:
    """The warm server of what a module names as its ``FORKS``."""
    with Forks(request.module.FORKS, str(base)) as server:
        yield server


@dataclass(frozen=True)
class Commands:
    """The program in forks of one that has imported everything, and good inputs to spoil copies of."""

    template: Path
    server: Forks


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """For the blocks O, R and S."""
    template = tmp_path_factory.mktemp("template")
    with Forks("tests.faults.jobs_search:work", str(template)) as server:
        yield Commands(template, server)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that only the suite's seed and the test's name decide."""
    return random.Random(f"{os.environ['MEMORYSAM_FAULT_SEED']} {request.node.nodeid}")


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Takes what a test tried and lost: ``figures("A", kills=200, resumed=200, lost=0)``; shown at the end of the run.

    The block is a letter of RELIABILITY §5. Numbers of the same block and name are added up.
    """

    def note(block: str, **numbers: int) -> None:
        record_property("figures", [block, dict(numbers), SOAK])

    return note
