"""Block P: a run's life in any order - trained, killed, stopped, damaged, starved, resumed - and what always holds."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.storage import documents, lock, tensors
from tests.faults.conftest import Figures
from tests.faults.jobs_life import STEPS, predicting, training
from tests.faults.scale import amount
from tests.forks import Ended, Forks

FORKS = "tests.faults.jobs_life:run"

SHARES = st.floats(0, 1.1)
"""Of the time that the uninterrupted work takes."""


def masks(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*.png") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def digest(weights: Path) -> str:
    """Of the tensors alone: the card tells how far the run was asked to go."""
    return tensors.digest(tensors.read(weights)[0])


class Life(RuleBasedStateMachine):
    """The life of one run and one prediction."""

    base: ClassVar[Path]
    forks: ClassVar[Forks]
    seconds: ClassVar[dict[str, float]]
    expected: ClassVar[dict[str, dict[str, str]]]
    counts: ClassVar[Counter[str]]
    numbers: ClassVar[Iterator[int]] = itertools.count()
    is_trusting = False
    """Whether the program is the naive one."""

    @initialize()
    def begin(self) -> None:
        self.place = self.base / f"life-{next(self.numbers)}"
        self.place.mkdir()
        self.saved = -1
        """The newest step that is known to be saved and undamaged."""
        self.asked = 0
        """The most updates that a training run was asked for and said to have done."""
        self.is_predicted = False
        self.damaged = 0
        self.counts["lives"] += 1

    @property
    def run(self) -> Path:
        return self.place / "run"

    def do(self, line: list[str], *, codes: set[int], most_bytes: int | None = None, **how: float) -> Ended:
        ended = self.forks.run(line, most_bytes, self.is_trusting, **how)
        assert ended.code in codes, (line, ended.code, ended.said)
        assert "Traceback" not in ended.said and ended.code != 1, ended.said
        self.counts["commands"] += 1
        self.counts["kills"] += ended.was_killed
        return ended

    def train(self, *, codes: set[int], steps: int = STEPS, most_bytes: int | None = None, **how: float) -> int:
        line = training(self.base, self.run, steps=max(steps, self.asked))
        ended = self.do(line, codes=codes, most_bytes=most_bytes, **how)
        if ended.code == 0:
            self.saved = self.asked = max(steps, self.asked)
        return ended.code

    @rule(steps=st.integers(1, STEPS))
    def train_on(self, steps: int) -> None:
        self.train(codes={0}, steps=steps)

    @rule(share=SHARES)
    def kill_training(self, share: float) -> None:
        self.train(codes={0, -signal.SIGKILL}, kill_after=share * self.seconds["train"])

    @rule(share=SHARES, name=st.sampled_from(["SIGTERM", "SIGINT", "SIGUSR1"]))
    def stop_training(self, share: float, name: str) -> None:
        number = getattr(signal, name)
        ends = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143}
        # A signal that comes before the program has taken it over ends it as the kernel does.
        codes = {0, ends[name], -number}
        self.train(codes=codes, kill_after=share * self.seconds["train"], stop_with=number)

    @rule(share=SHARES)
    def starve_training(self, share: float) -> None:
        largest = max(path.stat().st_size for path in (self.base / "reference").rglob("*.safetensors"))
        self.train(codes={0, 6}, most_bytes=int(share * largest) + 1)

    @precondition(lambda self: len(self._valid()) >= 2)
    @rule(where=st.floats(0, 1), name=st.sampled_from(["model.safetensors", "rng.safetensors", "trainer.json"]))
    def damage_newest(self, where: float, name: str) -> None:
        newest = self._valid()[-1]
        path = newest / name
        content = bytearray(path.read_bytes())
        content[int(where * (len(content) - 1))] ^= 1
        path.write_bytes(content)
        self.saved = int(self._valid()[-1].name.removeprefix("step-"))
        self.counts["damaged"] += 1

    @rule()
    def predict(self) -> None:
        self.do(predicting(self.base, self.place / "out"), codes={0})
        self.is_predicted = True

    @rule(share=SHARES)
    def kill_prediction(self, share: float) -> None:
        line = predicting(self.base, self.place / "out")
        self.do(line, codes={0, -signal.SIGKILL}, kill_after=share * self.seconds["predict"])
        self.is_predicted = False

    def _valid(self) -> list[Path]:
        found = sorted((self.run / "checkpoints").glob("step-????????"))
        return [path for path in found if checkpoints.is_valid(path)]

    @invariant()
    def what_was_saved_is_there_and_is_what_an_uninterrupted_run_has(self) -> None:
        valid = self._valid()
        steps = [int(path.name.removeprefix("step-")) for path in valid]
        assert max(steps, default=-1) >= self.saved, (steps, self.saved)
        self.saved = max(steps, default=-1)
        for path in valid:
            assert tensors.sha256(path / "model.safetensors") == self.expected["models"][path.name], path.name
            state = checkpoints.read(path)
            assert state.position.step == int(path.name.removeprefix("step-"))

    @invariant()
    def weights_for_users_are_whole(self) -> None:
        for path in (self.run / "checkpoints").glob("*.safetensors"):
            tensors.read(path)

    @invariant()
    def the_log_can_be_read_and_the_folder_is_free(self) -> None:
        if (self.run / "metrics.jsonl").exists():
            documents.read_json_lines(self.run / "metrics.jsonl")
        if self.run.is_dir():
            with lock.hold(self.run):
                pass

    @invariant()
    def masks_are_whole_and_success_means_all_of_them(self) -> None:
        out = self.place / "out"
        found = masks(out / "masks")
        wanted = self.expected["masks"]
        assert {name: found[name] for name in found if not Path(name).name.startswith(".")}.items() <= wanted.items()
        if self.is_predicted or (out / "_SUCCESS.json").exists():
            assert found == wanted

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.train(codes={0})
            final = self.expected["models"][f"step-{STEPS:08d}"]
            assert tensors.sha256(self._valid()[-1] / "model.safetensors") == final
            best = self.run / "checkpoints" / "best.safetensors"
            assert digest(best) == self.expected["best"]["best"]
            shutil.rmtree(self.place)


@pytest.fixture(scope="module")
def life(base: Path, forks: Forks) -> type[Life]:
    Life.base, Life.forks, Life.counts = base, forks, Counter()
    Life.seconds = {}
    lines = {
        "train": training(base, base / "reference", "train.keep_checkpoints=99"),
        "predict": predicting(base, base / "predicted"),
    }
    for name, line in lines.items():
        ended = forks.run(line, None)
        assert ended.code == 0, ended.said
        Life.seconds[name] = ended.seconds
    models = sorted((base / "reference" / "checkpoints").glob("step-????????"))
    Life.expected = {
        "models": {path.name: tensors.sha256(path / "model.safetensors") for path in models},
        "masks": masks(base / "predicted" / "masks"),
        "best": {"best": digest(base / "reference" / "checkpoints" / "best.safetensors")},
    }
    return Life


@pytest.mark.timeout(300)
def test_in_whatever_order_a_run_lives_nothing_that_was_saved_is_lost(life: type[Life], figures: Figures) -> None:
    settings = hypothesis.settings(
        max_examples=amount(8, soak=500, few=2), stateful_step_count=8, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    seeded = hypothesis.seed(int(os.environ["MEMORYSAM_FAULT_SEED"]))
    run_state_machine_as_test(seeded(life), settings=settings)
    figures("P", lost=0, **life.counts)
    assert life.counts["commands"] > life.counts["lives"]


def test_a_program_that_trusts_whatever_looks_like_a_checkpoint_is_caught(life: type[Life], figures: Figures) -> None:
    """As if the machine had drawn just these rules."""
    one = life()
    one.begin()
    one.train_on(2)
    one.damage_newest(where=0.9, name="model.safetensors")
    one.is_trusting = True
    with pytest.raises(AssertionError):
        one.train_on(STEPS)
        one.what_was_saved_is_there_and_is_what_an_uninterrupted_run_has()
    figures("P", naive_lives=1, naive_lost=1)
