"""Block J: files of others run nothing, write nothing, call nobody, and end nobody but their own process."""

from __future__ import annotations

import random
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memorysam_cli.errors import WeightsError
from memorysam_cli.storage.foreign import read_torch
from tests.faults import malice
from tests.faults.conftest import Figures
from tests.faults.jobs_weights import ACCEPTED, REFUSED
from tests.faults.scale import amount
from tests.forks import Forks

THROUGH_ALL = (
    "system in a zip", "socket in a zip", "deflated tensors", "4 GB text in a zip", "list of lists of lists",
    "a thousand names", "dtype of objects", "work without end",
)  # fmt: skip


@dataclass
class Harm:
    """What hostile files can do to the world: leave something in a folder, or call at a port."""

    canary: Path
    port: int = 0
    calls: list[object] = field(default_factory=list)

    def done(self) -> list[str]:
        return [path.name for path in self.canary.iterdir()] + [str(call) for call in self.calls]


@pytest.fixture
def harm(tmp_path: Path) -> Iterator[Harm]:
    found = Harm(tmp_path / "canary")
    found.canary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        found.port = server.getsockname()[1]
        is_over = threading.Event()

        def listen() -> None:
            server.settimeout(0.05)
            while not is_over.is_set():
                try:
                    connection, address = server.accept()
                except TimeoutError:
                    continue
                connection.close()
                found.calls.append(address)

        thread = threading.Thread(target=listen)
        thread.start()
        yield found
        is_over.set()
        thread.join()


def written(files: dict[str, bytes], folder: Path) -> dict[str, Path]:
    paths = {}
    for number, (name, data) in enumerate(files.items()):
        paths[name] = folder / f"{number}.pt"
        paths[name].write_bytes(data)
    return paths


def test_sixty_hostile_files_are_refused_and_nothing_happens(
    harm: Harm, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    paths = written(malice.everything(harm.canary, harm.port), tmp_path)
    assert len(paths) >= 60
    tried = amount(len(paths), soak=len(paths), few=20)
    accepted, slow, speechless = [], [], []
    with Forks("tests.faults.jobs_weights:open_one") as fork:
        for name in rng.sample(sorted(paths), tried):
            ended = fork.run(str(paths[name]))
            accepted += [name] if ended.code == ACCEPTED else []
            slow += [name] if ended.seconds > 20 else []  # 5 s of work, on a machine that does other work too
            speechless += [f"{name}: {ended}"] if ended.code == REFUSED and "refused: " not in ended.said else []
            assert ended.code in {ACCEPTED, REFUSED} or ended.code < 0, f"{name}: {ended.said}"
    figures("J", files=tried, accepted=len(accepted), harm=len(harm.done()))
    assert not accepted and not harm.done() and not slow and not speechless


def test_the_naive_loader_obeys_them(harm: Harm, tmp_path: Path, figures: Figures) -> None:
    paths = written(dict(malice.programs(harm.canary, harm.port)), tmp_path)
    with Forks("tests.faults.jobs_weights:open_naively") as fork:
        for path in paths.values():
            fork.run(str(path))
    time.sleep(0.2)
    figures("J", naive_harm=len(harm.done()))
    assert len({path.name for path in harm.canary.iterdir()}) >= 10, "the canaries are dumb: this proves nothing"
    assert harm.calls, "nobody listened: this proves nothing"


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("name", THROUGH_ALL)
def test_through_the_front_door_each_is_one_line(name: str, harm: Harm, tmp_path: Path, figures: Figures) -> None:
    files = malice.everything(harm.canary, harm.port)
    path = written({name: files[name]}, tmp_path)[name]
    before = {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}
    begun = _seconds_of_children()
    with pytest.raises(WeightsError) as caught:
        read_torch(path)
    seconds = _seconds_of_children() - begun
    figures("J", front_door=1)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert not harm.done() and before == {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}
    assert seconds < 20, "a bomb must be noticed before it is felt"  # its process may work for 5 s


def _seconds_of_children() -> float:
    """Processor time of the children that have ended: what else the machine does, does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_bit_flipped_in_the_pickle_ends_nobody(rng: random.Random, tmp_path: Path, figures: Figures) -> None:
    total, each = amount(1500, soak=15_000, few=200), 50
    signals = refused = 0
    with Forks("tests.faults.jobs_weights:open_bent") as fork:
        for number in range(total // each):
            folder = tmp_path / str(number)
            folder.mkdir()
            ended = fork.run(str(folder), f"{rng.random()}", each)
            assert ended.code == 0 or ended.code < 0, ended.said
            signals += ended.code < 0
            refused += int(found[1]) if (found := re.search(r"refused (\d+)", ended.said)) else 0
    figures("J", flips=total, refused=refused, signals=signals)
    assert refused > total // 4, "most flips of a pickle make it unreadable"
