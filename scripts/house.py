"""The measure of the house: how many rooms there are, how deep, and who needs whom.

``python scripts/house.py`` prints it as a table, ``--json`` as one object; tests/test_architecture.py holds the
numbers that are limits. Everything is read from the source text; nothing of the package is imported.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "memorysam_cli"
SMALL_LINES = 110
"""A module with fewer lines and one importer is a room for one thought: it may belong to its importer."""


@dataclass(frozen=True)
class House:
    """The measure.

    Attributes:
        files: Python files of the package.
        lines: their lines.
        closure_train: modules that ``memorysam train`` can reach by imports, at any depth, inside functions too.
        closure_predict: the same of ``memorysam predict``.
        small_single_importer: modules of fewer than ``SMALL_LINES`` lines that one module imports.
        cycles: pairs of packages that import each other, neither inside the other.
        shared_names: file names that occur in more than one package.
    """

    files: int
    lines: int
    closure_train: int
    closure_predict: int
    small_single_importer: tuple[str, ...]
    cycles: tuple[tuple[str, str], ...]
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
        self.imports = {module: set(self._imported(module, ast.parse(text))) for module, text in texts.items()}

    def importers(self) -> dict[str, set[str]]:
        """Module -> the modules that import it."""
        found = defaultdict(set)
        for module, others in self.imports.items():
            for other in others:
                found[other].add(module)
        return found

    def closure(self, start: str) -> set[str]:
        """All modules that a module reaches by imports, itself and packages included."""
        reached, waiting = set(), [start]
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += self.imports[module]
        return reached

    def package_of(self, module: str) -> str:
        """The package that a module belongs to: itself if it is one."""
        return module if self.paths[module].name == "__init__.py" else module.rpartition(".")[0]

    def cycles(self) -> set[tuple[str, str]]:
        """Pairs of packages, at any depth, that import each other; a package and its own parts are not two."""
        edges = defaultdict(set)
        for module, others in self.imports.items():
            for other in others:
                edges[self.package_of(module)].add(self.package_of(other))
        pairs = {(a, b) for a, others in edges.items() for b in others if a < b and a in edges[b]}
        return {(a, b) for a, b in pairs if not _is_inside(a, b) and not _is_inside(b, a)}

    def _imported(self, module: str, tree: ast.AST) -> Iterator[str]:
        """The package's modules that a module imports."""
        for node in ast.walk(tree):
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


def _is_inside(package: str, other: str) -> bool:
    return package.startswith(f"{other}.")


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
