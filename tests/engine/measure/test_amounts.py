"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from memorysam_cli.engine.surroundings import read_bytes
from memorysam_cli.errors import UsageError

AMOUNTS = {
    "24GB": 24_000_000_000,
    "24 GB": 24_000_000_000,
    "24gb": 24_000_000_000,
    "24GiB": 25_769_803_776,
    "24000MB": 24_000_000_000,
    "512 MiB": 536_870_912,
    "1.5GB": 1_500_000_000,
}


@pytest.mark.parametrize("text", AMOUNTS)
def test_an_amount_and_its_unit_are_bytes(text: str) -> None:
    assert read_bytes(text, option="--gpu-memory") == AMOUNTS[text]


@pytest.mark.parametrize("text", ["0", "0GB", "0.0 GiB", "much", "24", "-1GB", "24 apples", "GB", "", "1e3GB", "24GB!"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="must be an amount of memory above 0 with its unit, such as 24GB") as refused:
        read_bytes(text, option="--gpu-memory")
    assert f"--gpu-memory '{text}'" in str(refused.value)
