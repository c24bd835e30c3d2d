"""README tells the truth where a machine can check it."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.errors import EXIT_CODES, exit_codes_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_exit_codes_are_those_of_errors_py() -> None:
    section = README.split("\n## Exit codes\n")[1].split("\n## ")[0]
    assert exit_codes_table() in section
    assert len(re.findall(r"^\|", section, re.MULTILINE)) == len(EXIT_CODES) + 2, "a table of its own beside it"


def test_every_command_and_recipe_is_named() -> None:
    assert not [name for name in app.COMMANDS if f"`{name}" not in README]
    assert not [name for name in recipes.shipped() if f"`{name}`" not in README]


def test_every_subcommand_is_in_the_table() -> None:
    table = README.split("| command | does |")[1].split("\n\n")[0]
    words = set(re.findall(r"[\w-]+", table))
    groups = get_command(app.build()).commands  # type: ignore[attr-defined]
    below = {f"{name} {child}": child for name, group in groups.items() for child in getattr(group, "commands", {})}
    assert len(below) > 20 and not [path for path, child in below.items() if child not in words]


def test_the_ten_lines_are_those_that_docs_export_md_has_and_a_test_runs() -> None:
    section = README.split("\n## Elsewhere\n")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(code) == 1
    assert code[0] in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def test_every_file_that_it_links_or_draws_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / link).is_file()]
    tree = README.split("## The tree")[1]
    assert not [
        name
        for name in re.findall(r"^  (\w+/|\w+\.py) ", tree, re.MULTILINE)
        if not (ROOT / "memorysam_cli" / name).exists()
    ]
    inside = re.findall(r"^  (\w+)/|(?:^    |      )(\w+)/ ", tree, re.MULTILINE)
    parents = [parent for parent, _ in inside]
    assert not [
        child
        for index, (_, child) in enumerate(inside)
        if child and not (ROOT / "memorysam_cli" / next(filter(None, parents[index::-1])) / child).is_dir()
    ]
    assert not [name for name in re.findall(r"^(\w+/) ", tree, re.MULTILINE) if not (ROOT / name).is_dir()]
