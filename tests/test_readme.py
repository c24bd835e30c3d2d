"""README fits in a screen and a half, and tells the truth where a machine can check it; so do the pages it moved to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.errors import EXIT_CODES, exit_codes_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
MOST_WORDS = 700


def test_readme_is_a_screen_and_a_half() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_first_picture_and_its_figures_are_those_of_a_script() -> None:
    """``scripts/why.py`` writes what stands between these marks."""
    assert "![" in README.split("\n## ")[0] and (ROOT / "docs/images/why.png").is_file()
    marked = dict(re.findall(r"<!-- why: (\w+) -->\n(.*?)\n<!-- /why -->", README, re.DOTALL))
    assert set(marked) == {"figures", "commands"}
    alone, together = map(float, re.findall(r"([\d.]+) %", marked["figures"]))
    printed = [float(each) for each in re.findall(r"mIoU ([\d.]+)", marked["commands"])]
    assert alone < together == pytest.approx(printed[-1], abs=0.06), "one decimal and two of the same figure"


def test_the_exit_codes_are_those_of_errors_py() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    assert exit_codes_table() in page
    assert len(re.findall(r"^\|", page, re.MULTILINE)) == len(EXIT_CODES) + 2, "a table of its own beside it"


def test_every_command_and_recipe_is_named() -> None:
    assert not [name for name in app.COMMANDS if f"`{name}" not in COMMANDS]
    assert not [name for name in recipes.shipped() if f"`{name}`" not in COMMANDS]


def test_every_subcommand_is_in_the_table() -> None:
    table = COMMANDS.split("| command | does |")[1].split("\n\n")[0]
    words = set(re.findall(r"[\w-]+", table))
    groups = get_command(app.build()).commands  # type: ignore[attr-defined]
    below = {f"{name} {child}": child for name, group in groups.items() for child in getattr(group, "commands", {})}
    assert len(below) > 20 and not [path for path, child in below.items() if child not in words]


def test_every_file_that_it_links_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / link).is_file()]


def test_every_page_is_linked_from_readme_or_from_a_page_that_is() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    reached, left = set(), ["README.md"]
    while left:
        name = left.pop()
        text = README if name == "README.md" else pages[name]
        new = {link.removeprefix("docs/") for link in re.findall(r"\]\(([\w./-]+\.md)[)#]", text)} & (
            pages.keys() - reached
        )
        reached |= new
        left += new
    assert pages.keys() - reached <= {"beyond.md"}
