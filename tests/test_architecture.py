"""The structure that docs/architecture.md draws: imports point downwards, the front door is light, rooms are deep."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "memorysam_cli"
LAYERS = [
    {"__main__"},
    {"app"},
    {"commands"},
    {"engine"},
    {"data", "model", "losses"},
    {"report", "streetworld", "encoders"},
    {"recipe"},
    {"storage"},
    {"dataset", "registry"},
    {"errors", "text"},
]
"""From top to bottom; a module imports from its own layer's package or from lower layers."""
LIMITS = {"files": 180, "closure_train": 80, "closure_predict": 70}
"""Today's values, rounded up a little. Guides, not quotas: the aims are 140 files and closures of 55 and 45. Whoever
makes the house smaller lowers them; whoever has a reason to raise one says it in the commit."""
SMALL_ROOMS = {
    "memorysam_cli.commands.card": "one file = one verb; only the catalog in app.py names the others, by a string",
}
"""Modules that are small and have one importer, each with its reason."""
MEASURE = ["files", "lines", "closure_train", "closure_predict", "small_single_importer", "cycles", "shared_names"]
HEAVY = {"torch", "cv2", "numpy", "peft", "accelerate", "transformers", "sam2", "matplotlib", "safetensors"}


def load_house() -> Any:
    """scripts/house.py as a module."""
    specification = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["house"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


HOUSE = load_house()


@functools.cache
def sources() -> Any:
    """What is in the package; reading it takes a second."""
    return HOUSE.Sources(ROOT)


def layer_of(part: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if part in names)


def imported(path: Path, *, at_top_only: bool) -> set[str]:
    """Modules that a file imports, dotted."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_part(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "memorysam_cli" and len(parts) > 1 and not parts[1].startswith("__v") else None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    for dotted in imported(path, at_top_only=False):
        other = own_part(dotted)
        if other is None or other == part:
            continue
        assert layer_of(other) > layer_of(part), f"{path.name} ({part}) imports {dotted}, which is not below it"


def test_every_part_has_one_layer() -> None:
    parts = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    parts |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(name for names in LAYERS for name in names) == sorted(parts)


def test_neighbors_at_every_depth_and_modules_never_import_in_a_circle() -> None:
    assert sources().cycles() == set()
    assert sources().module_cycles() == set()
    assert not [path for path in PACKAGE.rglob("*.py") if re.search(r"^\s*from \.", path.read_text(), re.MULTILINE)]


def made_up(folder: Path, files: dict[str, str]) -> Any:
    """The sources of a package ``pack`` with these files and the ``__init__.py`` that they need."""
    for name, text in files.items():
        path = folder / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        path.write_text(text)
    return HOUSE.Sources(folder, "pack")


LAZY = "def later():\n    from pack.%s import x\n"


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"a/one.py": "from pack.b.two import x", "b/two.py": LAZY % "a.other", "a/other.py": "x = 1"}, ("a", "b")),
        ({"a/b/c/one.py": LAZY % "a.d", "a/d.py": "from pack.a.b import two", "a/b/two.py": ""}, ("a.b", "a.d")),
        (
            {"a/1.py": "from pack.b import two", "b/two.py": "from pack.c.three import x", "c/three.py": LAZY % "a"},
            ("a", "b", "c"),
        ),
    ],
    ids=["two packages by different modules", "deep, inside a function", "three in a ring"],
)
def test_the_rule_would_notice_a_circle(files: dict[str, str], circle: tuple[str, ...], tmp_path: Path) -> None:
    assert made_up(tmp_path, files).cycles() == {tuple(f"pack.{name}" for name in circle)}


def test_modules_may_meet_inside_functions_but_not_when_they_are_loaded(tmp_path: Path) -> None:
    lazy = made_up(tmp_path / "lazy", {"a/one.py": "from pack.a import two", "a/two.py": LAZY % "a.one"})
    assert lazy.module_cycles() == set() and lazy.cycles() == {("pack.a.one", "pack.a.two")}
    eager = made_up(tmp_path / "eager", {"a/one.py": "from pack.a import two", "a/two.py": "from pack.a.one import x"})
    assert eager.module_cycles() == {("pack.a.one", "pack.a.two")}
    inner = made_up(tmp_path / "inner", {"a/b/one.py": "from pack.a import two", "a/two.py": "", "a/__init__.py": ""})
    assert inner.cycles() == inner.module_cycles() == set(), "a package and what is in it are not two"


def test_the_measure_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    house = HOUSE.measure()
    monkeypatch.setattr(HOUSE, "measure", lambda: house)
    monkeypatch.setattr(sys, "argv", ["house.py", "--json"])
    HOUSE.main()
    measured = json.loads(capsys.readouterr().out)
    assert list(measured) == MEASURE
    assert all(isinstance(value, int) for value in measured.values())
    assert measured["cycles"] == 0
    assert not {name: measured[name] for name, limit in LIMITS.items() if measured[name] > limit}
    assert set(house.small_single_importer) == set(SMALL_ROOMS)


def test_the_picture_has_every_package_and_its_arrows_are_imports() -> None:
    """docs/images/architecture.svg; a dashed arrow is a call of what was handed over, not imported."""
    picture = ElementTree.parse(ROOT / "docs" / "images" / "architecture.svg")
    heights = {}
    for room in picture.findall(".//{*}g"):
        if name := room.get("data-room"):
            heights[name] = float(room.findall("{*}rect")[0].get("y", ""))
    packages = {sources().package_of(module).removeprefix("memorysam_cli.") for module in sources().paths}
    packages -= {"memorysam_cli", "engine", "data.datasets", "data.own"}
    assert set(heights) == packages, "the picture's rooms are not the packages"
    words = "".join(picture.getroot().itertext())
    assert all(name in words for name in ("engine/", "datasets/", "own/"))
    files = {path.name for folder in (PACKAGE, PACKAGE / "engine") for path in folder.glob("[a-z]*.py")}
    assert files == set(re.findall(r"\w+\.py", words)), "the picture's files are not the layers' own"
    edges = {
        (sources().package_of(module), sources().package_of(other))
        for module, others in sources().imports.items()
        for other in others
    }
    arrows = [path for path in picture.findall(".//{*}path") if path.get("data-from")]
    assert len(arrows) == 13
    for arrow in arrows:
        start, end = str(arrow.get("data-from")), str(arrow.get("data-to"))
        assert heights[start] < heights[end], f"{start} is not above {end}"
        is_import = (f"memorysam_cli.{start}", f"memorysam_cli.{end}") in edges
        assert is_import != ("handed" in str(arrow.get("class"))), f"{start} to {end}"


@pytest.mark.parametrize(
    "path", [PACKAGE / "app.py", *sorted((PACKAGE / "commands").rglob("*.py"))], ids=lambda p: p.name
)
def test_commands_import_nothing_heavy_before_they_run(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, at_top_only=True)} & HEAVY


def test_the_rule_would_notice_an_upward_import(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from memorysam_cli.engine import train\nimport torch\n")
    assert imported(bad, at_top_only=True) == {"memorysam_cli.engine.train", "torch"}
    assert layer_of("engine") < layer_of("data")


def test_preparing_data_waits_for_no_torch() -> None:
    script = "import sys, memorysam_cli.data.preparation; print({'torch', 'peft', 'sam2'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )
