"""The options that commands share."""

from __future__ import annotations

import pytest

from memorysam_cli.commands import options
from memorysam_cli.errors import UsageError
from memorysam_cli.report import console


def test_names_are_separated_by_commas() -> None:
    assert options.names("img, depth") == ("img", "depth")
    assert options.names(None) is None


@pytest.mark.parametrize("text", ["", "img,,depth", "img,", " "])
def test_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--modalities '{text}': a name is missing"):
        options.names(text)


@pytest.mark.parametrize(("flags", "heard"), [({}, "n"), ({"verbose": True}, "dn"), ({"quiet": True}, "")])
def test_begin_sets_how_much_is_said(flags: dict[str, bool], heard: str, capsys: pytest.CaptureFixture[str]) -> None:
    options.begin(**flags)
    console.detail("d")
    console.note("n")
    assert capsys.readouterr().err.replace("\n", "") == heard
