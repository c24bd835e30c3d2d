"""README tells the truth where a machine can check it."""

from __future__ import annotations

import re
from pathlib import Path

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.errors import EXIT_CODES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_exit_codes_are_those_of_errors_py() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE))
    assert table == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_every_command_and_recipe_is_named() -> None:
    assert not [name for name in app.COMMANDS if f"`{name}" not in README]
    assert not [name for name in recipes.shipped() if f"`{name}`" not in README]


def test_every_file_that_it_links_or_draws_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / link).is_file()]
    tree = README.split("## The tree")[1]
    assert not [
        name
        for name in re.findall(r"^  (\w+/|\w+\.py) ", tree, re.MULTILINE)
        if not (ROOT / "memorysam_cli" / name).exists()
    ]
