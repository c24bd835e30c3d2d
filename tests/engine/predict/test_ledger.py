from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.predict.files import LEDGER
from memorysam_cli.engine.predict.ledger import SHOWN_FAILURES, Totals, Trees, finish, totals_of
from memorysam_cli.errors import DataError, LawBroken
from memorysam_cli.storage import documents

from ..stand_ins import write_data


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


def done(name: str, **pixels: int) -> dict[str, Any]:
    classes = {key.removeprefix("c"): count for key, count in pixels.items()}
    return {"id": name, "status": "done", "size": [1, sum(pixels.values())], "classes": classes}


def failed(name: str) -> dict[str, Any]:
    return {"id": name, "status": "failed", "error": "cut"}


def test_totals_are_those_of_the_lines(data: Manifest, tmp_path: Path) -> None:
    ledger = tmp_path / "out/predictions.jsonl"
    for line in [done("a", c0=3, c3=5), failed("b"), done("c", c3=1)]:
        documents.append_json_line(ledger, line)
    totals = totals_of([ledger], data.info)
    assert (totals.done, totals.failed, totals.pixels.tolist()) == (2, 1, [3, 0, 0, 6])
    assert totals.failures == [{"id": "b", "error": "cut"}]


def test_a_million_failures_are_counted_and_a_hundred_listed(data: Manifest) -> None:
    totals = Totals(data.info)
    for number in range(1000):
        totals.add(failed(str(number)))
    assert totals.failed == 1000
    assert [each["id"] for each in totals.failures] == [str(number) for number in range(SHOWN_FAILURES)]


def test_several_ledgers_add_up(data: Manifest, tmp_path: Path) -> None:
    one, missing, other = (tmp_path / f"{name}.jsonl" for name in ("one", "missing", "other"))
    documents.append_json_line(one, done("a", c1=2))
    documents.append_json_line(other, done("b", c1=3))
    documents.append_json_line(other, failed("c"))
    whole = totals_of([one, missing, other], data.info)
    assert (whole.done, whole.failed, whole.pixels.tolist()) == (2, 1, [0, 5, 0, 0])
    assert whole.failures == [{"id": "c", "error": "cut"}]


def test_success_is_written_last_and_only_if_all_scenes_are_accounted_for(data: Manifest, tmp_path: Path) -> None:
    totals = Totals(data.info)
    totals.add(done("a", c2=4))
    totals.add(failed("b"))
    (tmp_path / LEDGER).touch()
    with pytest.raises(LawBroken, match="scenes = done"):
        finish(tmp_path, totals, Trees(1, 1), {}, scenes=3, extras=())
    with pytest.raises(LawBroken, match="files in the trees"):
        finish(tmp_path, totals, Trees(2, 1), {}, scenes=2, extras=())
    assert not (tmp_path / "_SUCCESS.json").exists()
    report = finish(tmp_path, totals, Trees(2, 2), {"weights": "w"}, scenes=2, extras=("color",))
    assert [law["left"] for law in report["laws"].values()] == [2, 2, 4]
    assert documents.read_json(tmp_path / "_SUCCESS.json") == report
    assert {key: report[key] for key in ("schema_version", "weights", "scenes", "done", "failed", "failures")} == {
        "schema_version": 1, "weights": "w", "scenes": 2, "done": 1, "failed": 1,
        "failures": [{"id": "b", "error": "cut"}],
    }  # fmt: skip
    assert [each["pixels"] for each in report["classes"]] == [0, 0, 4, 0]
    assert set(report["trees"]) == {"masks", "color"}


def test_nothing_done_is_no_success(data: Manifest, tmp_path: Path) -> None:
    totals = Totals(data.info)
    totals.add(failed("a"))
    with pytest.raises(DataError, match="no scene of 1 could be read; the first: cut"):
        finish(tmp_path, totals, Trees(), {}, scenes=1, extras=())
    assert not (tmp_path / "_SUCCESS.json").exists()
