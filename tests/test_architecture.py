"""The structure that docs/architecture.md draws: imports point downwards, and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "memorysam_cli"
LAYERS = [
    {"__main__"},
    {"app"},
    {"commands"},
    {"engine"},
    {"data", "model", "losses"},
    {"report", "streetworld", "encoders"},
    {"recipe"},
    {"storage"},
    {"validation", "dataset", "conservation", "registry"},
    {"errors", "text"},
]
"""From top to bottom; a module imports from its own layer's package or from lower layers."""
HEAVY = {"torch", "cv2", "numpy", "peft", "accelerate", "transformers", "sam2", "matplotlib", "safetensors"}


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
