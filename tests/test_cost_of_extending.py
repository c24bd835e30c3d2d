"""What an extension costs: each one is added to a copy of the package, and the files that it touched are counted.

docs/architecture.md has a table with the same numbers. A user's own file with a loss, an encoder or a fusion touches
nothing here: tests/engine/train/test_further_loss.py and tests/extending/ prove that from training to export.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.storage import images
from tests import forked

ROOT = Path(__file__).parent.parent
PACKAGE = "memorysam_cli"
DOCS = ROOT / "docs"
INSTEAD = f"""
import os, runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] == {PACKAGE!r}]:
    del sys.modules[name]
sys.path.insert(0, os.getcwd())
sys.dont_write_bytecode = True
"""


class Copy:
    """A copy of the package and the recipes that a test may change.

    Args:
        folder: a new one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("*.safetensors")  # what is compiled already need not be compiled again
        for name in (PACKAGE, "recipes"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        self.before = self._sums()

    def write(self, name: str, text: str) -> None:
        """A new file."""
        path = self.folder / name
        assert not path.exists()
        path.write_text(text)

    def add_line(self, name: str, line: str, *, below: str) -> None:
        """A line below the one that starts so, with its indent."""
        path = self.folder / name
        lines = path.read_text().splitlines()
        (place,) = (number for number, text in enumerate(lines) if text.strip().startswith(below))
        indent = " " * (len(lines[place]) - len(lines[place].lstrip())) if not lines[place].endswith("{") else "    "
        path.write_text("\n".join([*lines[: place + 1], indent + line, *lines[place + 1 :]]) + "\n")

    def run(self, code: str, *words: object) -> str:
        """What a program prints that finds the copy and not the package itself, forked from one with torch imported."""
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        ended = forked.python(INSTEAD + code, *map(str, words), environment=environment, cwd=self.folder)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def memorysam(self, *words: object) -> str:
        """What a command prints in the copy."""
        return self.run(f"runpy.run_module({PACKAGE!r}, run_name='__main__', alter_sys=True)", *words)

    def settle(self) -> None:
        """What was touched until now is part of the package."""
        self.before = self._sums()

    def touched(self) -> list[str]:
        """Files of the package and the recipes that are new or other than before."""
        return sorted(str(name) for name, value in self._sums().items() if self.before.get(name) != value)

    def _sums(self) -> dict[Path, str]:
        paths = (path for name in (PACKAGE, "recipes") for path in (self.folder / name).rglob("*") if path.is_file())
        return {path.relative_to(self.folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


def cost(extension: str) -> int:
    """The files of the package that an extension touches, by the table in docs/architecture.md."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    (number,) = re.findall(rf"^\| {re.escape(extension)} \| (\d+)[ :|]", page, re.MULTILINE)
    return int(number)


HELLO = '''\
"""``memorysam hello``: says hello."""

from memorysam_cli.commands import options

EXAMPLES = [("hello", "be polite")]


def hello(json: options.Json = False, verbose: options.Verbose = False, quiet: options.Quiet = False) -> None:
    """Say hello to the one who typed it."""
    options.begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.report import console

    console.say("hello")
'''


def test_a_command_is_a_file_and_a_line(copy: Copy) -> None:
    copy.write("memorysam_cli/commands/hello.py", HELLO)
    copy.add_line("memorysam_cli/app.py", '"hello": "memorysam_cli.commands.hello:hello",', below="COMMANDS = {")
    assert copy.memorysam("hello") == "hello\n"
    assert re.search(r"^\W*hello +Say hello to the one who typed it\.", copy.memorysam("--help"), re.MULTILINE)
    assert "be polite" in copy.memorysam("hello", "--help")
    assert copy.touched() == ["memorysam_cli/app.py", "memorysam_cli/commands/hello.py"]
    assert len(copy.touched()) == cost("a command")


GARDEN = '''\
"""GARDEN: a camera and a thermal camera in a garden."""

from memorysam_cli.data.datasets import CAMERA
from memorysam_cli.data.layout import DatasetLayout, place, sensor
from memorysam_cli.dataset import Modality

SPLIT = "{split:train|val}"
GARDEN = DatasetLayout(
    name="garden",
    title="GARDEN",
    published_at="https://example.org/garden",
    native_size=(32, 48),
    published_counts={"train": 2, "val": 1},
    folder="GARDEN",
    signs=((f"{SPLIT}/rgb",), (f"{SPLIT}/thermal", f"{SPLIT}/labels")),
    sensors=(
        sensor(Modality(name="img", **CAMERA), f"{SPLIT}/rgb/{{name}}.png"),
        sensor(Modality(name="thermal", kind="thermal"), f"{SPLIT}/thermal/{{name}}.png"),
    ),
    labels=(place(f"{SPLIT}/labels/{{name}}.png"),),
    classes={"lawn": (0, 128, 0), "bed": (128, 64, 0)},
    id="{split}/{name}",
)
'''


def test_a_data_set_is_a_declaration_and_a_line(copy: Copy, tmp_path: Path) -> None:
    copy.write("memorysam_cli/data/datasets/garden.py", GARDEN)
    copy.add_line(
        "memorysam_cli/data/__init__.py", '"garden": "memorysam_cli.data.datasets.garden:GARDEN",', below='"muses"'
    )
    generator = np.random.default_rng(0)
    for scene in ("train/{}/a", "train/{}/b", "val/{}/c"):
        for sensor, shape in (("rgb", (32, 48, 3)), ("thermal", (32, 48)), ("labels", (32, 48))):
            path = tmp_path / "data" / "GARDEN" / f"{scene.format(sensor)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.write_png(path, generator.integers(0, 2, shape, dtype=np.uint8), fsync=False)
    answer = json.loads(copy.memorysam("prepare", "garden", tmp_path / "data", "--json"))
    assert answer["classes"] == 2 and answer["splits"] == {"train": 2, "val": 1}
    assert "garden" in copy.memorysam("prepare", "--help")
    assert copy.touched() == ["memorysam_cli/data/__init__.py", "memorysam_cli/data/datasets/garden.py"]
    assert len(copy.touched()) == cost("a data set")


def test_a_recipe_is_a_file_and_nothing_of_the_package(copy: Copy) -> None:
    text = (ROOT / "recipes" / "demo.yaml").read_text().replace("name: demo", "name: garden")
    copy.write("recipes/garden.yaml", text)
    listed = json.loads(copy.memorysam("recipes", "list", "--json"))
    assert "garden" in [each["name"] for each in listed["recipes"]]
    copy.memorysam("recipes", "check", "garden")
    assert copy.touched() == ["recipes/garden.yaml"]
    assert len([name for name in copy.touched() if name.startswith(PACKAGE)]) == cost("a recipe")


KEY = '''\
    sharpen: float = Field(default=0.0, ge=0)
    """How much a picture is sharpened before all else; 0: not at all."""
'''


def test_a_recipe_s_key_is_a_field_and_its_pages_write_themselves(copy: Copy, tmp_path: Path) -> None:
    schema = copy.folder / PACKAGE / "recipe" / "schema.py"
    begins = re.search(r"class Augment\(Section\):\n    \"\"\".*?\"\"\"\n\n", schema.read_text(), re.DOTALL)
    assert begins is not None
    schema.write_text(schema.read_text().replace(begins[0], begins[0] + KEY))
    for name in ("docs", "scripts"):
        (copy.folder / name).mkdir()
    shutil.copy(ROOT / "scripts" / "recipe_pages.py", copy.folder / "scripts")
    copy.run("runpy.run_path('scripts/recipe_pages.py', run_name='__main__')")
    page = (copy.folder / "docs" / "recipe-keys.md").read_text()
    assert "| `augment.sharpen` | number | ≥ 0 | `0` | How much a picture is sharpened" in page
    assert "sharpened before all else" in (copy.folder / "docs" / "recipe.schema.json").read_text()
    (tmp_path / "mine.yaml").write_text("extends: demo\naugment: {sharpen: 0.5}\n")
    assert "sharpen: 0.5" in copy.memorysam("recipes", "show", tmp_path / "mine.yaml")
    assert copy.touched() == ["memorysam_cli/recipe/schema.py"]
    assert len(copy.touched()) == cost("a recipe's key")


PAGE = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
TOYS = {
    "a loss": (
        "z_loss",
        "LOSSES",
        "memorysam_cli.losses.z_loss:ZLoss",
        "from memorysam_cli import recipe; print(recipe.load('demo', ['losses.z_loss={}']).terms[-1])",
    ),
    "an encoder": (
        "convnet",
        "ENCODERS",
        "memorysam_cli.encoders.convnet:CONVNET",
        "from memorysam_cli.model.backbone import build_sam2; build_sam2('convnet', tokens=2); print('convnet')",
    ),
    "a fusion": (
        "later",
        "FUSIONS",
        "memorysam_cli.model.later:LaterCountsMore",
        "from memorysam_cli.registry import FUSIONS; FUSIONS.get('later')(); print('later')",
    ),
}
"""Of the page's toys: name, registry, where it stands in the package, a program that uses it and prints its name."""


def test_inside_the_package_each_is_a_module_and_a_line(copy: Copy) -> None:
    """The page's own code, with a line in the registry instead of its call of ``register``; one process uses all."""
    for kind, (name, registry, where, _) in TOYS.items():
        copy.settle()
        module, _, attribute = where.partition(":")
        file = module.replace(".", "/") + ".py"
        call = f'{registry}.register("{name}", '
        (block,) = (each for each in PAGE if call in each)
        code, value = block.strip().removesuffix(")").split(call)
        copy.write(file, code if value == attribute else f"{code}{attribute} = {value}\n")
        path = copy.folder / PACKAGE / "registry.py"
        before, table, after = path.read_text().partition(f"{registry} = Registry(")
        path.write_text(before + table + after.replace("{", f'{{"{name}": "{where}", ', 1))
        assert copy.touched() == sorted([file, f"{PACKAGE}/registry.py"])
        assert len(copy.touched()) == cost(kind)
    said = copy.run("\n".join(program for *_, program in TOYS.values()))
    assert said.split() == [name for name, *_ in TOYS.values()]


def test_a_file_of_the_user_s_own_touches_nothing() -> None:
    """The toys of docs/extending.md are trained, stored and exported by the package as it is."""
    assert cost("a loss, an encoder or a fusion of your own") == 0
    for proof in ("engine/train/test_further_loss.py", "extending/test_encoder.py", "extending/test_fusion.py"):
        assert "docs/extending.md" in (ROOT / "tests" / proof).read_text(encoding="utf-8").splitlines()[0]
