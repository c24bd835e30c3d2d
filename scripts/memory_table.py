"""What fits into which GPU: counts the table of docs/memory.md and writes it between its markers.

python scripts/memory_table.py [--check]

Needs no GPU, data or weights; some minutes on two cores. With --check nothing is written, and the exit code tells
whether the page is up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.measure import count, workload
from memorysam_cli.engine.measure import plan as planning
from memorysam_cli.engine.measure.count import Count
from memorysam_cli.recipe import Recipe

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- memory table: made by scripts/memory_table.py -->\n", "<!-- end of the memory table -->"
CARDS = (8, 12, 16, 24, 48, 80)
"""GB of GPUs."""
SIZES = ("tiny", "small", "base-plus", "large")
SENSORS = ("img", "depth", "event", "lidar")


def cell(size: str, sensors: int, card: int) -> str:
    """What fits of the recipe ``deliver``: the batch and the saver, such as ``4 off``; ``–`` where nothing does.

    Args:
        size: of the backbone.
        sensors: how many of the recipe's four.
        card: GB.
    """
    names = ",".join(SENSORS[:sensors])
    recipe = recipes.load("deliver", [f"model.backbone=sam2-hiera-{size}", f"data.modalities=[{names}]"])
    target = workload.find_target(recipe, Path("no-data"))
    with mock.patch.object(count, "training", _training), mock.patch.object(count, "validation", _validation):
        found = planning.search(target, planning.room("cuda", asked=card * 10**9)).proposal
    return "–" if found is None else f"{found.batch} {found.saver}"


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield f"| backbone | sensors | {' | '.join(f'{card} GB' for card in CARDS)} |"
    yield "|---|---|" + "---|" * len(CARDS)
    for size in SIZES:
        for sensors in range(1, len(SENSORS) + 1):
            cells = [cell(size, sensors, card) for card in CARDS]
            print(size, sensors, *cells, sep="\t", file=sys.stderr, flush=True)
            yield f"| {size} | {sensors} | {' | '.join(cells)} |"


def table_of(page: str) -> str:
    """The table in the text of the page."""
    return page.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the table, or say whether it is as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    page, table = PAGE.read_text(encoding="utf-8"), "\n".join(rows()) + "\n"
    if is_check:
        sys.exit(f"{PAGE}: run scripts/memory_table.py" if table_of(page) != table else 0)
    PAGE.write_text(page.replace(BEGIN + table_of(page), BEGIN + table), encoding="utf-8")


_counters = {"training": count.training, "validation": count.validation}
_known: dict[str, Count] = {}


def _training(recipe: Recipe, **options: Any) -> Count:
    return _once("training", recipe, options)


def _validation(recipe: Recipe, **options: Any) -> Count:
    settled = {"accumulate": 1, "saver": "off"}  # of no concern to validation
    return _once("validation", recipe.model_copy(update={"train": recipe.train.model_copy(update=settled)}), options)


def _once(what: str, recipe: Recipe, options: dict[str, Any]) -> Count:
    """A count, once for all cards."""
    key = f"{what} {recipe.model_dump_json()}"
    if key not in _known:
        _known[key] = _counters[what](recipe, **options)
    return _known[key]


if __name__ == "__main__":
    main()
