"""What ``train --batch auto`` makes of a plan, in one process and in several."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest
from accelerate import Accelerator

from memorysam_cli.engine.measure import plan
from memorysam_cli.errors import EnvironmentFault


class Several:
    """One of two processes, as far as the answer of the main one goes."""

    num_processes = 2

    def __init__(self, *, is_main: bool) -> None:
        self.is_main_process = is_main


def accelerator(*, is_main: bool) -> Accelerator:
    return cast(Accelerator, Several(is_main=is_main))


def broadcasts(monkeypatch: pytest.MonkeyPatch, *, arriving: list[Any] | None = None) -> list[Any]:
    """The words that leave the main process; in another one, ``arriving`` takes their place."""
    words: list[Any] = []

    def broadcast(objects: list[Any]) -> None:
        if arriving is not None:
            objects[0] = arriving.pop(0)
        words.append(objects[0])

    monkeypatch.setattr(plan, "broadcast_object_list", broadcast)
    return words


def test_the_others_hear_of_a_long_plan_before_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    words, may_end = broadcasts(monkeypatch), threading.Event()
    monkeypatch.setattr(plan, "BEAT", 0.001)
    monkeypatch.setattr(plan, "_word", ends_after(3, may_end, plan._word))

    def work() -> str:
        assert may_end.wait(60)
        return "batch 2"

    assert plan.told_by_main(work, accelerator(is_main=True)) == "batch 2"
    assert words[:3] == [(False, None)] * 3 and words[-1] == (True, "batch 2")


def ends_after(count: int, event: threading.Event, word: Any) -> Any:
    """``word``, which lets the work end at its fourth call."""
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > count:
            event.set()
        return word(*arguments)

    return counted


def test_another_process_waits_for_the_answer_and_works_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    words = broadcasts(monkeypatch, arriving=[(False, None), (False, None), (True, "batch 2")])
    assert plan.told_by_main(lambda: pytest.fail("not here"), accelerator(is_main=False)) == "batch 2"
    assert len(words) == 3


@pytest.mark.parametrize("is_main", [True, False])
def test_a_refusal_is_everybodys(is_main: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = EnvironmentFault("nothing fits")
    broadcasts(monkeypatch, arriving=None if is_main else [(True, fault)])

    def refuse() -> str:
        raise fault

    with pytest.raises(EnvironmentFault, match="nothing fits"):
        plan.told_by_main(refuse, accelerator(is_main=is_main))


def test_a_bug_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    broadcasts(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        plan.told_by_main(lambda: 1 // 0, accelerator(is_main=True))


def test_a_single_process_broadcasts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words, alone = broadcasts(monkeypatch), accelerator(is_main=True)
    monkeypatch.setattr(Several, "num_processes", 1)
    assert plan.told_by_main(lambda: 7, alone) == 7 and words == []
