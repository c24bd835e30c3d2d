from __future__ import annotations

import subprocess
import sys

import pytest

from memorysam_cli.data import DATASETS, layout_of
from memorysam_cli.errors import UsageError


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_loads_and_goes_by_its_name(name: str) -> None:
    assert layout_of(name).name == name
    assert layout_of(name).expected_tree.count("── ") >= 3


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'deliver'"):
        layout_of("delivr")


def test_listing_the_catalog_loads_no_data_set() -> None:
    code = (
        "import sys, memorysam_cli.data\nprint(sorted(name for name in sys.modules if 'memorysam_cli.data.' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
