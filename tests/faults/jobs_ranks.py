"""Several gloo processes, forked from one that is warm: they train, score, lose one of them, or are not alike."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine import lost_processes, processes, runtime
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.train.update import Learner
from tests.engine.stand_ins import MODALITIES, Brightness, Plan, write_data
from tests.faults import bare, jobs_running
from tests.faults.jobs_running import line, spoil, typed
from tests.faults.naive import ranks as naive

PATIENCE_S = 20
HANG_S = 45.0
SCORED = 7
BATCHES, NUMBERS = (1, 2, 7), (1, 2, 5, 7)
_SIZES = ((40, 48), (32, 32), (41, 51))
_SCORED: list[Plan] = [(f"v/{number}", "val", None, None, _SIZES[number % 3]) for number in range(SCORED)]
_UPDATES = 6
_TRAINED: list[Plan] = [(f"t/{number}", "train", None, None, (40, 48)) for number in range(_UPDATES)]


def warm(base: str) -> None:
    """As for one process; besides, data sets to score, and one that is not that of the other processes."""
    bare.use_least()
    jobs_running.warm(base)
    write_data(Path(base) / "scored", _SCORED)
    write_data(Path(base) / "fewer", [*_TRAINED[:2], _SCORED[0]])


def run(work: str, world: int, base: str, out: str, options: dict[str, Any]) -> None:
    """Fork the processes, wait for all, and write down how they ended.

    Args:
        work: a function of this module that each of them calls.
        world: how many.
        base: has the data.
        out: takes ``answer.json`` (code, seconds, words of each rank) and what the processes write.
        options: of the work.
    """
    place = Path(out)
    place.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun, pids, answers = time.monotonic(), [], {}
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _be_rank(rank, world, port, place, lambda rank=rank: globals()[work](rank, Path(base), place, **options))
        pids.append(child)
    while len(answers) < world:
        for rank, pid in enumerate(pids):
            if rank not in answers:
                ended, status = os.waitpid(pid, os.WNOHANG)
                seconds = time.monotonic() - begun
                if ended:
                    answers[rank] = {"code": os.waitstatus_to_exitcode(status), "seconds": seconds}
                elif seconds > options.get("hang_s", HANG_S):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    for rank, answer in answers.items():
        answer["said"] = (place / f"said-{rank}").read_text(errors="replace")
    (place / "answer.json").write_text(json.dumps([answers[rank] for rank in range(world)]))


def _be_rank(rank: int, world: int, port: int, place: Path, work: Callable[[], object]) -> None:
    """The work of one process, and its end; each has a group of signals of its own."""
    code = 1
    try:
        said = os.open(place / f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        alike = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in {**alike, "RANK": rank, "LOCAL_RANK": rank}.items()}
        os.chdir(place)
        AcceleratorState._reset_state(reset_partial_state=True)  # what was warmed up was alone
        processes.PATIENCE = timedelta(seconds=PATIENCE_S)
        code = int(work() or 0)  # type: ignore[call-overload]
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(
    rank: int,
    base: Path,
    place: Path,
    *,
    updates: int = 400,
    every: int | None = None,
    end: Sequence[float] | None = None,
    spoilt: Sequence[Any] | None = None,
    data: str = "data",
) -> None:
    """The program's training.

    Args:
        rank: of this process.
        base: has the data.
        place: where the run goes to.
        updates: at most.
        every: a checkpoint after so many of them.
        end: a rank, a signal, and so many seconds after the rank's first update begins it gets that.
        spoilt: a rank, and the arguments of :func:`~tests.faults.jobs_running.spoil`.
        data: what the last of the processes takes for the data.
    """
    if end is not None and end[0] == rank:
        _end_in(end[2], int(end[1]))
    if spoilt is not None and spoilt[0] == rank:
        _, kind, value, step, seed = spoilt
        spoil(kind, value, step=step, seed=seed)
    sets = [f"train.max_steps={updates}", *([f"train.checkpoint_steps={every}"] * (every is not None))]
    words = line(base, place / "run", *sets)
    if rank == int(os.environ["WORLD_SIZE"]) - 1:
        words[words.index("--data") + 1] = str(base / data)
    typed(words)


def _end_in(seconds: float, number: int) -> None:
    honest = Learner.learn

    def learn(self: Learner, *arguments: Any, **options: Any) -> Any:
        Learner.learn = honest  # type: ignore[method-assign]
        threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()
        return honest(self, *arguments, **options)

    Learner.learn = learn  # type: ignore[method-assign]


def score(rank: int, base: Path, place: Path) -> None:
    """Counts of all numbers of scenes in batches of all sizes; the first process writes them down."""
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    assert accelerator.num_processes == int(os.environ["WORLD_SIZE"])
    manifest = manifests.read(base / "scored", "tiny")
    scenes = manifest.of_split("val")
    found = {
        f"{number} {batch}": confusions(manifest, scenes[:number], batch=batch, accelerator=accelerator)
        for number in NUMBERS
        for batch in BATCHES
    }
    if rank == 0:
        (place / "found.json").write_text(json.dumps(found))


def confusions(manifest: Manifest, scenes: Sequence[Scene], *, batch: int, accelerator: Any = None) -> list[Any]:
    """The counts of some scenes, of both protocols."""
    found = evaluate(
        Brightness(), manifest, scenes=scenes, accelerator=accelerator,
        inference=Inference(MODALITIES, 32, "cpu", batch=batch, workers=0),
    )  # fmt: skip
    whole: list[Any] = found.confusions.tolist()
    return whole


def stop_dead(rank: int, _base: Path, _place: Path, *, stopped: int, grace_s: float) -> None:
    """A process is killed, and the others are in a call that hears of nothing."""
    lost_processes.GRACE_S = grace_s
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    with processes.lost_ones_named(accelerator, advice=lambda: "continue somehow"):
        processes.wait_for_all(accelerator)
        if rank == stopped:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(HANG_S)


def come_late(rank: int, _base: Path, _place: Path, *, missing: int) -> None:
    """One process meets the others, and is gone before all are connected."""
    processes.PATIENCE = timedelta(seconds=2)
    if rank == missing:
        processes.connect = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    try:
        runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    except Exception as fault:
        print(fault)
        sys.exit(getattr(fault, "exit_code", 1))


def naive_updates(rank: int, _base: Path, _place: Path, *, hang_s: float) -> None:
    """As :mod:`tests.faults.naive.ranks`, with one update less in the last process."""
    naive.train(rank, updates=5 - rank)
