"""What all tests share: a quiet environment, no network, no skip that goes unseen, and the fault suite's seed."""

from __future__ import annotations

import atexit
import gc
import json
import os
import secrets
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import hypothesis
import pytest

gc.disable()  # until all tests are collected
sys.dont_write_bytecode = False  # hundreds of processes are started; none need compile what another one has
for name in (
    "CI", "GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TQDM_DISABLE", "MEMORYSAM_DATA", "MEMORYSAM_DEBUG",
    "PYTHONDONTWRITEBYTECODE",
):  # fmt: skip
    os.environ.pop(name, None)
os.environ |= {
    "COLUMNS": "120",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # One thread: sums do not depend on the machine, and workers do not fight for cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

# What a shell ignores on behalf of its children is inherited: Ctrl-C and Ctrl-\\ by what a script begins with "&", a
# hangup under nohup. Tests send these signals to processes that they start. A handler is not inherited, so that those
# processes have the default again, and a hangup still ends no test run under nohup.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)

# What these processes write need not survive a power loss; waiting for the disk takes a tenth of the time. That the
# program asks for it is tried on processes of their own (tests/faults) and on calls written down (tests/storage).
os.fsync = lambda _descriptor: None  # type: ignore[assignment]

# The first call of some of PyTorch's engines takes half a second, whichever test it falls into.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# The first process draws it, the workers of pytest-xdist inherit it.
FAULT_SEED = os.environ.setdefault("MEMORYSAM_FAULT_SEED", str(secrets.randbelow(2**31)))
NO_SKIPS = os.environ.get("MEMORYSAM_NO_SKIPS") == "1"
SLOW = os.environ.get("MEMORYSAM_SLOW") == "1"


def refuse_other_hosts(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: a test that reaches for another machine fails."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in {None, "", "localhost"} and not _is_loopback(host):
        raise PermissionError(f"a test tried to reach {host}; tests use loopback only")


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(refuse_other_hosts)


def pytest_report_header() -> str:
    """The seed with which ``MEMORYSAM_FAULT_SEED=…`` repeats this run."""
    return f"MEMORYSAM_FAULT_SEED={FAULT_SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the fault suite tried and lost, block by block; ``MEMORYSAM_FAULT_FIGURES=FILE`` keeps it as JSON."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "figures":
                totals[value[0]].update(value[1])
    if not totals:
        return
    terminalreporter.section(f"faults (MEMORYSAM_FAULT_SEED={FAULT_SEED})")
    for block in sorted(totals):
        terminalreporter.line(f"{block}  " + ", ".join(f"{name} {count:,}" for name, count in totals[block].items()))
    if path := os.environ.get("MEMORYSAM_FAULT_FIGURES"):
        Path(path).write_text(json.dumps({"seed": FAULT_SEED, "blocks": totals}, indent=2, sort_keys=True) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests, and gpu tests without a GPU, unless ``-m`` says what to run."""
    if config.getoption("markexpr"):
        return
    unwanted = set() if SLOW else {"slow"}
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        unwanted.add("gpu")
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Python need not look again and again for garbage in what importing has left, which stays until Python ends; what
    is frozen then would count as leaked."""
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under MEMORYSAM_NO_SKIPS=1 a skipped test has failed."""
    report = yield
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped under MEMORYSAM_NO_SKIPS=1: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    if NO_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: skipped under MEMORYSAM_NO_SKIPS=1: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: object) -> str:
    return longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Figures are rendered where a test, or what it shares with others, looks at them."""
    from tests import sketches

    with sketches.drawn_by(sketches.REAL if item.get_closest_marker("rendered") else sketches.blank):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def forked_children() -> Iterator[None]:
    """What opens other people's weights, asks the Hub or tries a size is forked from a process with torch imported."""
    from memorysam_cli.storage import children
    from tests import forked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "start", forked.start)
        yield


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of how such a process starts, of what confines it and of what it takes: it starts from nothing."""
    from memorysam_cli.storage import children
    from tests import forked

    monkeypatch.setattr(children, "start", forked.honest_start)


@pytest.fixture(autouse=True)
def default_console() -> Iterator[None]:
    """A test that sets the console up leaves no trace."""
    yield
    console = sys.modules.get("memorysam_cli.report.console")
    if console is not None:
        console.setup()
