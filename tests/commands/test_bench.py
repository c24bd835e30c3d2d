"""``memorysam bench`` on nano at 64 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from memorysam_cli import app
from memorysam_cli.engine import runtime
from memorysam_cli.engine.measure import bench as benchmark
from memorysam_cli.engine.measure import input_speed, rates, trials
from memorysam_cli.engine.measure.rates import Flops, Rate
from memorysam_cli.engine.measure.trials import Outcome, Trial
from memorysam_cli.engine.measure.workload import Workload
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.model import Segmenter

from .trained import Ended, Program

SMALL = ("--backbone", "nano", "--size", 64, "--modalities", 2, "--batch", 1, "--repeats", 1, "--device", "cpu")
FIGURES = {
    "fits", "seconds", "all_seconds", "scenes_per_second", "tflop", "tflop_per_second", "mfu_percent",
    "matmul_tflop_per_second", "matmul", "peak_bytes",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """The same network's arithmetic is counted once: it takes longer than the little that is measured."""
    honest, known = rates.count_flops, dict[Any, Flops]()

    def once(network: Segmenter, **asked: Any) -> Flops:
        trained = any(parameter.requires_grad for parameter in network.parameters())
        key = (trained, *sorted(asked.items()))
        if key not in known:
            known[key] = honest(network, **asked)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "count_flops", once)
        yield


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, without the large matrices."""
    monkeypatch.setitem(app.COMMANDS, "bench", "memorysam_cli.commands.bench:bench")
    monkeypatch.setattr(benchmark, "matmul_rate", lambda _device, precision: Rate(1e9, f"{precision} of 8×8"))
    memorysam = Program(capsys)

    def run(*arguments: object) -> Ended:
        return memorysam("bench", *SMALL, *arguments)

    return run


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """The trials that were requested; all fit, and none is made."""
    asked: list[Trial] = []

    def run(trial: Trial) -> Outcome:
        asked.append(trial)
        peak = {"fast": 3 * 10**9, "plain": 4 * 10**9}[trial.implementation]
        return Outcome(True, seconds=(1.0,), peak=peak, total=8 * 10**9, free=6 * 10**9)

    monkeypatch.setattr(trials, "run", run)
    return asked


@pytest.mark.parametrize("mode", ["train", "predict"])
def test_against_plain_both_are_measured_and_compared(
    bench: Any, tried: list[Trial], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "WARM_UPS", 1)
    ended = bench("--mode", mode, "--against", "plain", "--json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert report["schema_version"] == 1
    assert (report["task"], report["size"], report["modalities"], report["repeats"]) == (mode, 64, 2, 1)
    assert set(report["fast"]) == set(report["plain"]) == FIGURES
    unchecked = report["plain_unchecked"]
    if mode == "train":
        assert set(unchecked) == FIGURES and unchecked["peak_bytes"] == report["plain"]["peak_bytes"]
        assert report["ratio"]["time_unchecked"] == pytest.approx(report["fast"]["seconds"] / unchecked["seconds"])
    else:
        assert unchecked is None and report["ratio"]["time_unchecked"] is None
    assert report["ratio"]["peak"] == pytest.approx(0.75)
    assert report["ratio"]["time"] == pytest.approx(report["fast"]["seconds"] / report["plain"]["seconds"])
    assert report["fast"]["tflop"] == report["plain"]["tflop"] > 0
    names = {"ohem", "spmm", "gradient_norm"} if mode == "train" else {"logits", "other_classes"}
    assert set(report["difference"]) == names and max(report["difference"].values()) < 1e-4
    assert [trial.implementation for trial in tried] == ["fast", "plain"] and {trial.task for trial in tried} == {mode}
    assert report["machine"]["device"] == "cpu" and report["machine"]["processor"]


@pytest.mark.parametrize(
    ("line", "device", "measured"),
    [
        ((), "cpu", ("nano", 128, 8, 4)),
        (("--modalities", 2, "--mode", "predict"), "cpu", ("nano", 128, 8, 2)),
        (("--size", 512), "cpu", ("sam2-hiera-base-plus", 512, 4, 4)),
        (("--batch", 1), "cpu", ("sam2-hiera-base-plus", 1024, 1, 4)),
        (("--backbone", "nano"), "cpu", ("nano", 1024, 4, 4)),
        ((), "cuda", ("sam2-hiera-base-plus", 1024, 4, 4)),
    ],
    ids=str,
)
def test_a_cpu_measures_what_demo_trains_unless_a_size_is_given(
    line: tuple[object, ...],
    device: str,
    measured: tuple[object, ...],
    memorysam: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Workload] = []

    def measure(workload: Workload, place: torch.device, **_: object) -> None:
        asked.append(workload)
        raise EnvironmentFault("enough")

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(runtime, "choose_device", lambda _: torch.device(device))
    ended = memorysam("bench", *line)
    (workload,) = asked
    assert (workload.backbone, workload.size, workload.batch, workload.modalities) == measured
    assert ("measures what demo trains" in ended.err) == (measured[:3] == ("nano", 128, 8)) and ended.code == 6


def test_people_get_a_table(bench: Any, tried: list[Trial]) -> None:
    ended = bench("--saver", "on")
    assert ended.code == 0
    lines = [line.split("  ")[0] for line in ended.out.splitlines()]
    assert lines[0] == "train nano, 64×64 pixels, 2 modalities, batch 1, fp32, saver on"
    assert "peak memory in GB" in lines and "share of it in % (MFU)" in lines
    assert "plain" not in ended.out
    assert tried[0].recipe.train.saver == "on"


@pytest.mark.slow
def test_peaks_come_from_processes_of_their_own(bench: Any) -> None:
    ended = bench("--against", "plain", "--json")
    report = json.loads(ended.out)
    assert all(10**8 < report[implementation]["peak_bytes"] < 10**10 for implementation in ("fast", "plain"))


def test_what_does_not_fit_ends_with_the_numbers(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome(False, "out of memory (the system killed it)", peak=7 * 10**9, total=8 * 10**9, free=6 * 10**9)
    monkeypatch.setattr(trials, "run", lambda _trial: outcome)
    ended = bench()
    assert (ended.code, ended.out) == (6, "")
    assert "train nano, 64×64 pixels" in ended.err and "6.0 GB of 8.0 GB were free" in ended.err
    assert "--saver on" in ended.err


def test_a_plain_network_that_does_not_fit_is_a_result(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(trial: Trial) -> Outcome:
        return Outcome(trial.implementation == "fast", "killed", peak=3 * 10**9, total=8 * 10**9, free=6 * 10**9)

    monkeypatch.setattr(trials, "run", run)
    report = json.loads(bench("--mode", "predict", "--against", "plain", "--json").out)
    assert report["plain"] == {"fits": False, "why": "killed; 6.0 GB of 8.0 GB were free", "peak_bytes": 3 * 10**9}
    assert report["ratio"] == {"time": None, "time_unchecked": None, "peak": None} and report["difference"] is None
    assert "plain     does not fit: killed" in bench("--mode", "predict", "--against", "plain").out


def test_data_are_read_alone_and_into_both_tasks(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_speed, "WORKERS", (0,))
    monkeypatch.setattr(input_speed, "TRAINING", 0)
    monkeypatch.setattr(input_speed, "PREDICTING", 0)
    report = json.loads(bench("--mode", "data", "--json").out)
    assert report["schema_version"] == 1 and report["task"] == "data"
    (row,) = report["reading"]
    assert row["workers"] == 0 and row["scenes_per_second"] > 0
    assert row["megabytes_per_second"] == pytest.approx(row["scenes_per_second"] * report["bytes_per_scene"] / 1e6)
    for task in ("train", "predict"):
        found = report[task]
        share = 100 * found["scenes_per_second"] / found["model_scenes_per_second"]
        assert found["share_percent"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backbone", "nono"), "--backbone nono: is unknown; did you mean 'nano'?"),
        (("--size", 100), "--size 100: must be a positive multiple of 32, such as 256 or 1024"),
        (("--batch", 0), "--batch: must be"),
        (("--size", 32768), "less than or equal to 16384"),
        (("--precision", "fp16"), "fp16 needs a GPU"),
        (("--mode", "data", "--classes", 3), "--classes 3: --mode data renders scenes of 25 classes"),
        (("--mode", "predict", "--saver", "on"), "--saver on: only training has a memory saver; leave it out"),
        (("--mode", "data", "--against", "plain"), "--against plain: --mode data compares only with the model itself"),
    ],
)
def test_what_is_refused(bench: Any, tried: list[Trial], options: tuple[object, ...], said: str) -> None:
    ended = bench(*options)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err and len(ended.err.splitlines()) == 1
    assert tried == []


def test_several_processes_are_refused(bench: Any, tried: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = bench("--json")
    assert (ended.code, json.loads(ended.out)["error"]["code"], tried) == (2, 2, [])
    assert "start it without torchrun" in ended.err and len(ended.err.splitlines()) == 1


def test_levers_are_those_that_are_not_pulled() -> None:
    assert Workload(task="train").levers().startswith("try --saver on, --precision bf16, a smaller --batch, ")
    least = Workload(task="predict", backbone="nano", precision="bf16", batch=1, modalities=1)
    assert least.levers() == "try a smaller --size"


def test_a_long_wait_is_announced(bench: Any, tried: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "matmul_rate", lambda _device, _precision: Rate(1e6, "abacus"))
    ended = bench("--mode", "predict")
    # (1 repeat + 2 warm-ups + 2 in a process apart + 1 for the comparison) at a million operations a second
    assert "TFLOP/s at best: at least" in ended.err and "for all 6 steps" in ended.err
