"""Scenes per second, by a clock that the test winds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from memorysam_cli.engine import runtime
from memorysam_cli.engine.train import loop
from memorysam_cli.engine.train.loop import Pace


@pytest.fixture
def wind(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds go by."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runtime, "peak_bytes", lambda _device: 3_500_000_000)

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


def test_the_figures_of_updates_and_of_their_epoch(wind: Callable[[float], None]) -> None:
    clocked = Pace(torch.device("cpu"))
    wind(2.0)
    assert clocked.update(8, waited=0.5) == {"scenes_per_second": 4.0, "seconds_data": 0.5, "peak_memory_gb": 3.5}
    wind(50.0)  # a checkpoint
    clocked.restart()
    wind(8.0)
    assert clocked.update(8, waited=0.0)["scenes_per_second"] == 1.0
    said = "16 scenes in 10 s, 1.60 scenes/s, 5 % of the time in the loader, peak memory 3.5 GB"
    assert clocked.epoch() == said
    clocked.start_epoch()
    assert clocked.epoch().startswith("0 scenes")
