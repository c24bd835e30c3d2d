from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import decode, findings
from memorysam_cli.data.check import check
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import LabelRule
from memorysam_cli.errors import LawBroken
from memorysam_cli.storage import images


def test_values_become_classes_by_hand() -> None:
    raw = np.array([[0, 1, 1], [2, 255, 7]], np.uint16)
    assert findings.raw_histogram(raw, LabelRule(shift=-1, ignore=(0, 255, 7))) == {255: 3, 0: 2, 1: 1}
    assert findings.raw_histogram(raw, LabelRule(mapping=((0, 2), (1, 2), (2, 0)), ignore=(255, 7))) == {
        2: 3,
        0: 1,
        255: 2,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_the_rules_words_and_the_loaders_table_agree(tmp_path: Path, dtype: type) -> None:
    raw = np.random.default_rng(5).integers(0, 12, (40, 50)).astype(dtype)
    raw[0, :9] = 255
    path = tmp_path / "label.npy"
    np.save(path, raw)
    for rule in (
        LabelRule(),
        LabelRule(shift=-1, ignore=(0, 255)),
        LabelRule(mapping=tuple((n, 11 - n) for n in range(12))),
    ):
        label = decode.read_label(path, rule, 12)
        assert findings.raw_histogram(raw, rule) == findings.class_histogram(label)
        assert sum(findings.class_histogram(label).values()) == raw.size


def test_a_class_that_reading_changes_is_named() -> None:
    with pytest.raises(LawBroken, match=r"x\.png: class 3 has 5 pixels in the file and 4 as it is read"):
        findings.refuse_changed(Path("x.png"), {0: 1, 3: 5}, {0: 1, 3: 4, 7: 1})
    findings.refuse_changed(Path("x.png"), {0: 1, 3: 5}, {3: 5, 0: 1})


def test_a_loader_that_wraps_is_noticed_by_the_check(
    tmp_path: Path, listed_one: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = decode.read_label
    monkeypatch.setattr(findings.decode, "read_label", lambda *a, **k: (honest(*a, **k) + 1).astype(np.uint8) % 25)
    with pytest.raises(LawBroken, match=r"label/a\.png: class"):
        check(listed_one)


@pytest.fixture
def listed_one(tmp_path: Path) -> Manifest:
    from ..engine.stand_ins import write_data

    return write_data(tmp_path, [("a", "val", None, None, (64, 64))])


def test_the_same_file_gives_the_same_histogram(tmp_path: Path) -> None:
    images.write_png(tmp_path / "a.png", np.full((3, 4), 7, np.uint8))
    raw = images.read(tmp_path / "a.png")
    assert findings.raw_histogram(raw, LabelRule()) == findings.raw_histogram(raw, LabelRule()) == {7: 12}
