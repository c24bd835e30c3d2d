from __future__ import annotations

import pytest

from memorysam_cli.engine import diagnosis
from memorysam_cli.engine.diagnosis import ok, problem, warning

from .trained import Program


def test_a_problem_ends_with_6_and_its_remedy(memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        diagnosis,
        "examine",
        lambda: [ok("a", "fine"), warning("b", "slow", "hurry"), problem("c", "broken", "fix it")],
    )
    ended = memorysam("doctor")
    assert ended.code == 6
    assert "warning: b: hurry" in ended.out and "problem: c: fix it" in ended.out
    assert "1 ok, 1 warning, 1 problem\n" in ended.out
    assert "doctor: 1 problem: c" in ended.err


def test_warnings_alone_end_with_0(memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "examine", lambda: [ok("a", "fine"), warning("b", "slow", "hurry")])
    assert memorysam("doctor").code == 0
