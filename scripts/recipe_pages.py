"""Generate docs/recipe-keys.md and docs/recipe.schema.json from the schema: python scripts/recipe_pages.py"""

from __future__ import annotations

from pathlib import Path

from memorysam_cli.recipe import comparing
from memorysam_cli.storage import atomic, documents

DOCS = Path(__file__).parent.parent / "docs"
INTRODUCTION = """\
# Every key of a recipe

How to use recipes: [recipes.md](recipes.md). The same keys for editors: [recipe.schema.json](recipe.schema.json).

Here and with `--set`, a key is written as `section.key`. In a file, the key stands below its section. A **required**
key must be in the file or in the recipe that it extends.

`python scripts/recipe_pages.py` generates this page from the schema that checks recipes, and
`tests/recipe/test_describing.py` compares both.
"""


def keys_page() -> str:
    """docs/recipe-keys.md: a table for each section."""
    found = comparing.keys()
    lines = [INTRODUCTION]
    top = [key for key in found if "." not in key.path and not key.is_section]
    lines += ["## The file itself", "", *_table(top)]
    for section in (key for key in found if key.is_section):
        below = [key for key in found if key.path.rpartition(".")[0] == section.path and not key.is_section]
        lines += [f"## {section.path}", "", section.meaning, "", *(_table(below) if below else [])]
    return "\n".join(lines)


def schema_text() -> str:
    """docs/recipe.schema.json."""
    return documents.to_json(comparing.json_schema(), indent=2) + "\n"


def _table(keys: list[comparing.Key]) -> list[str]:
    rows = [f"| `{key.path}` | {key.kind} | {key.allowed} | {_default(key.default)} | {key.meaning} |" for key in keys]
    return ["| key | type | allowed | default | meaning |", "|---|---|---|---|---|", *rows, ""]


def _default(text: str | None) -> str:
    return "**required**" if text is None else f"`{text}`" if text else "–"


if __name__ == "__main__":
    atomic.write_text(DOCS / "recipe-keys.md", keys_page())
    atomic.write_text(DOCS / "recipe.schema.json", schema_text())
