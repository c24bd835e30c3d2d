"""The measure of the house: how many rooms there are, how deep, and who needs whom.

``python scripts/house.py`` prints it as a table, ``--json`` as one object; tests/test_architecture.py holds the
numbers that are limits. Everything is read from the source text; nothing of the package is imported.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "memorysam_cli"
SMALL_LINES = 110
"""A module with fewer lines and one importer is a room for one thought: it may belong to its importer."""
Graph = dict[str, set[str]]
"""A node and those that an edge leads to."""


@dataclass(frozen=True)
class House:
    """The measure.

    Attributes:
        files: Python files of the package.
        lines: their lines.
        closure_train: modules that ``memorysam train`` can reach by imports, at any depth, inside functions too.
        closure_predict: the same of ``memorysam predict``.
        small_single_importer: modules of fewer than ``SMALL_LINES`` lines that one module imports.
        cycles: groups of neighbors (modules and packages in one package, with all that is in them) that reach each
            other by imports, inside functions too.
        shared_names: file names that occur in more than one package.
    """

    files: int
    lines: int
    closure_train: int
    closure_predict: int
    small_single_importer: tuple[str, ...]
    cycles: tuple[tuple[str, ...], ...]
    shared_names: tuple[str, ...]

    def to_json(self) -> dict[str, int]:
        """Each field as a number."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value if isinstance(value, int) else len(value) for name, value in values.items()}


class Sources:
    """The modules of a package and what they import of each other.

    Args:
        root: the folder in which the package's folder lies.
        package: its name.
    """

    def __init__(self, root: Path, package: str = PACKAGE) -> None:
        paths = sorted((root / package).rglob("*.py"))
        self.paths = {_dotted(path.relative_to(root)): path for path in paths}
        texts = {module: path.read_text() for module, path in self.paths.items()}
        self.lines = {module: text.count("\n") for module, text in texts.items()}
        trees = {module: ast.parse(text) for module, text in texts.items()}
        self.imports = {module: set(self._imported(module, ast.walk(tree))) for module, tree in trees.items()}
        self.imports_at_top = {module: set(self._imported(module, tree.body)) for module, tree in trees.items()}

    def importers(self) -> dict[str, set[str]]:
        """Module -> the modules that import it."""
        found = defaultdict(set)
        for module, others in self.imports.items():
            for other in others:
                found[other].add(module)
        return found

    def closure(self, start: str) -> set[str]:
        """All modules that a module reaches by imports, itself and packages included."""
        return {start} | _reached(self.imports, start)

    def package_of(self, module: str) -> str:
        """The package that a module belongs to: itself if it is one."""
        return module if self.paths[module].name == "__init__.py" else module.rpartition(".")[0]

    def cycles(self) -> set[tuple[str, ...]]:
        """Neighbors, at any depth, that reach each other by imports.

        An import from ``a.b.c.d`` to ``a.x.y`` is one from ``a.b`` to its neighbor ``a.x``; a package and what is
        inside it are not two.
        """
        edges: Graph = defaultdict(set)
        for module, others in self.imports.items():
            for other in others:
                if pair := _neighbors(module, other):
                    edges[pair[0]].add(pair[1])
        return _circles(edges)

    def module_cycles(self) -> set[tuple[str, ...]]:
        """Modules that import each other when they are loaded: not inside functions, not for type checks alone."""
        return _circles(self.imports_at_top)

    def _imported(self, module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
        """The package's modules that a module imports by some of its statements."""
        for node in nodes:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                found = name if name in self.paths else name.rpartition(".")[0]
                if found in self.paths and found != module:
                    yield found


def measure(root: Path = ROOT) -> House:
    """Measure the package below a folder."""
    sources = Sources(root)
    modules = [module for module, path in sources.paths.items() if path.name not in {"__init__.py", "__main__.py"}]
    importers = sources.importers()
    places = defaultdict(set)
    for module in modules:
        places[module.rpartition(".")[2]].add(module)
    return House(
        files=len(sources.paths),
        lines=sum(sources.lines.values()),
        closure_train=len(sources.closure(f"{PACKAGE}.commands.train")),
        closure_predict=len(sources.closure(f"{PACKAGE}.commands.predict")),
        small_single_importer=tuple(
            module for module in modules if sources.lines[module] < SMALL_LINES and len(importers[module]) == 1
        ),
        cycles=tuple(sorted(sources.cycles())),
        shared_names=tuple(sorted(name for name, found in places.items() if len(found) > 1)),
    )


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _neighbors(module: str, other: str) -> tuple[str, str] | None:
    """The two parts of one package that two modules belong to; None if one is the other's package."""
    ours, theirs = module.split("."), other.split(".")
    for depth, (own, its) in enumerate(zip(ours, theirs, strict=False), start=1):
        if own != its:
            return ".".join(ours[:depth]), ".".join(theirs[:depth])
    return None


def _circles(edges: Graph) -> set[tuple[str, ...]]:
    """The groups of two and more that reach each other (strongly connected components)."""
    reached = {start: _reached(edges, start) for start in edges}
    groups = {tuple(sorted(other for other in reached[a] if a in reached.get(other, ()))) for a in reached}
    return {group for group in groups if len(group) > 1}


def _reached(edges: Graph, start: str) -> set[str]:
    """All that can be reached from a node; itself only if an edge leads back."""
    reached: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += edges.get(node, ())
    return reached


def main() -> None:
    """Print the measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object: each measure as a number")
    house = measure()
    if parser.parse_args().json:
        print(json.dumps(house.to_json()))
        return
    for name, number in house.to_json().items():
        value = getattr(house, name)
        details = (
            ""
            if isinstance(value, int)
            else "  " + ", ".join(" ⇄ ".join(v) if isinstance(v, tuple) else v for v in value)
        )
        print(f"{name:22}{number:>8,}{details}".replace(f"{PACKAGE}.", ""))


if __name__ == "__main__":
    main()
