"""Turns, medians, and the machine's own rate."""

from __future__ import annotations

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.measure import rates
from memorysam_cli.engine.measure.bench import Figures
from memorysam_cli.engine.measure.rates import Rate, _products, matmul_rate
from memorysam_cli.errors import UsageError

CPU = torch.device("cpu")


def test_the_kinds_take_turns_forwards_and_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(clock))
    works = {name: lambda name=name: done.append(name) for name in ("fast", "plain")}
    seconds = rates.interleaved(works, repeats=3, device=CPU)
    assert done == ["fast", "plain", "plain", "fast", "fast", "plain"]
    assert seconds == {"fast": (1, 1, 1), "plain": (1, 1, 1)}


def test_the_device_that_was_asked_for_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    second = torch.device("cuda", 1)  # which --device cuda:1 does not make the current one
    rates.timed(lambda: None, second)
    assert waited == [second, second]


def test_figures_by_hand() -> None:
    rate = Rate(4e12, "matmul of 8×8")
    report = Figures((1.0, 9.0, 2.0), scenes=4, flops=2 * 10**12, rate=rate, peak=5).to_json()
    assert report["seconds"] == 2.0  # the median: one hiccup of the machine does not count
    assert report["scenes_per_second"] == 2.0
    assert report["tflop_per_second"] == 1.0
    assert report["mfu_percent"] == 25.0
    assert (report["tflop"], report["peak_bytes"], report["all_seconds"]) == (2.0, 5, [1.0, 9.0, 2.0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fastest_product_counts(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def interleaved(works: dict[str, rates.Work], *, repeats: int, device: torch.device) -> dict[str, list[float]]:
        (how,) = works
        asked.append(how)
        return {how: [{"matmul": 2.0, "1×1 convolution": 1.0}[how]] * repeats}

    monkeypatch.setattr("memorysam_cli.engine.measure.rates.interleaved", interleaved)
    rate = matmul_rate(CPU, precision, sides=(16, 32))
    assert asked == ["matmul", "1×1 convolution"] * 2
    assert rate == Rate(2 * 32**3, "1×1 convolution of 32×32")


def test_a_precision_that_the_device_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="tf32 needs an NVIDIA GPU"):
        matmul_rate(CPU, "tf32")


def test_both_products_are_products() -> None:
    (_, product), (_, convolution) = _products(8, torch.float32, CPU)
    torch.testing.assert_close(convolution()[0, :, 0, 0], _first_column(8))  # the first row of left · rightᵀ
    assert product().shape == (8, 8)


def _first_column(side: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(side)
    left, right = (torch.randn(side, side, generator=random) for _ in range(2))
    return (left @ right.t())[0]


@pytest.mark.parametrize(
    ("device", "backbone", "precision", "words"),
    [
        ("cpu", "sam2-hiera-tiny", "fp32", "on a CPU, sam2-hiera-tiny at 128 px can take days; for a trial: --set"),
        ("cpu", "nano", "fp32", None),
        ("cuda", "sam2-hiera-tiny", "fp32", "bf16 should be about 7.9 times as fast on NVIDIA H100 PCIe"),
        ("cuda", "sam2-hiera-tiny", "bf16", None),
    ],
)
def test_a_training_that_could_be_much_faster_is_told_how(
    device: str, backbone: str, precision: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    recipe = recipes.load("demo", [f"model.backbone={backbone}", f"train.precision={precision}"])
    advice = rates.advice(torch.device(device), recipe)
    assert advice is None if words is None else advice is not None and words in advice
