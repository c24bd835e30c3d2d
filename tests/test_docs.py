"""The documentation is built strictly and offline, and asks nothing of any network when it is read."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.exceptions import TyperException
from typer.main import get_command

from memorysam_cli import app, model
from memorysam_cli.commands import options
from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import hub

ROOT = Path(__file__).parent.parent
OFFLINE = """
import socket, sys
def refuse(*_, **__): raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--site-dir", sys.argv[1]])
"""


class Assets(HTMLParser):
    """What a page loads by itself, and where it leads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video"} and found.get("src"):
            self.loaded.append(str(found["src"]))
        if tag == "link" and found.get("rel") not in {"canonical", "prev", "next"}:
            self.loaded.append(str(found["href"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed (pip install '.[docs]')")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-c", OFFLINE, str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for each in Assets(page.read_text(encoding="utf-8")).loaded:
            assert not re.match(r"(https?:)?//", each), f"{page.name} loads {each}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\"' ]*(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_page_is_in_the_navigation_and_every_picture_is_there(site: Path) -> None:
    front = Assets((site / "index.html").read_text(encoding="utf-8"))
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")} - {"404.html"}
    reached = {link.split("#")[0] for link in front.links} | {"index.html"}
    assert not pages - reached
    for page in pages:
        for each in Assets((site / page).read_text(encoding="utf-8")).loaded:
            if not each.startswith("data:"):
                assert ((site / page).parent / each.split("?")[0].split("#")[0]).is_file(), f"{page}: {each}"


def test_the_api_pages_hold_what_the_code_says(site: Path) -> None:
    text = (site / "api" / "model.html").read_text(encoding="utf-8")
    assert "class maps" in text or "logits" in text
    assert "memorysam_cli.model.weights.load" in text
    assert "train.checkpoint_minutes" in (site / "recipe-keys.html").read_text(encoding="utf-8")


def test_search_works_from_disk(site: Path) -> None:
    """Browsers start no worker on file://: the index is a script, and ours stands in for the worker, on every page."""
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    for page in site.rglob("*.html"):
        assert any(each.endswith("iframe-worker.js") for each in Assets(page.read_text(encoding="utf-8")).loaded), page


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda page: page.stem)
def test_what_an_api_page_names_exists(page: Path) -> None:
    names = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert names and not [name for name in names if not exists(name)]


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), attribute)
    return True


def test_the_map_is_one_screen() -> None:
    assert len((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_links_between_pages_work_on_github_too() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} leads to {link}"


def test_a_code_block_says_one_word_of_itself() -> None:
    """The site takes no block that begins with two words, and its end for the beginning of another one."""
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert not re.findall(r"^\s*```\w+ .*$", page.read_text(encoding="utf-8"), re.MULTILINE), page.name


OTHERS = {
    "torchrun": "--nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint --rdzv-id --standalone",
    "accelerate": "--multi_gpu --num_processes --use_fsdp",
    "SLURM": "--array --cpus-per-task --gpus --gpus-per-node --job-name --nodes --ntasks-per-node --requeue --signal "
    "--time",
    "trackers": "--append --backend-store-uri --logdir",
    "scripts": "--demo --work --small --seeds --variants --write",
    "pip": "--force-reinstall --upgrade --build-constraint",
    "all": "--help",
    "trtexec": "--onnx --stronglyTyped --saveEngine --loadEngine --minShapes --optShapes --maxShapes --shapes --fp16 "
    "--noTF32",
    "polygraphy": "--onnxrt --trt --strongly-typed --input-shapes --atol --rtol",
}
"""Options that pages speak of and that are not ours."""


def test_every_option_that_a_page_speaks_of_exists() -> None:
    known = {word for words in OTHERS.values() for word in words.split()}

    def collect(command: Any) -> None:
        known.update(name for option in command.params for name in (*option.opts, *option.secondary_opts))
        for child in getattr(command, "commands", {}).values():
            collect(child)

    collect(get_command(app.build()))
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        said = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text(encoding="utf-8")))
        assert not said - known, page.name


EXECUTED = {
    "README.md": "commands/test_task_pages.py",
    "authors-weights.md": "commands/test_authors_weights.py",
    "deliver.md": "commands/test_deliver_page.py",
    "evaluate.md": "commands/test_task_pages.py",
    "many-scenes.md": "commands/test_many_scenes_page.py",
    "memory.md": "commands/test_memory_page.py",
    "own-sensors.md": "commands/test_own_sensors_page.py",
    "predict.md": "commands/test_task_pages.py",
    "recipes.md": "commands/test_recipes_page.py",
    "train.md": "commands/test_task_pages.py",
}
"""Pages whose commands a test runs as they are written, and that test."""
PARSED = {
    "check.md": "run in commands/test_check.py with other folders",
    "doctor.md": "run in commands/test_doctor.py; it takes seconds and looks at the machine",
    "export.md": "run in commands/test_export.py with other weights",
    "tensorrt.md": "run in commands/test_export.py with other weights",
    "extending.md": "its files are run in tests/extending",
    "install.md": "downloads gigabytes",
    "many-gpus.md": "needs processes by the dozen; run in small in tests/engine",
    "model-card.md": "sends to the Hub; run in commands/test_weights_push.py against a stand-in",
    "other-tools.md": "run in commands/test_convert.py with other pictures",
    "performance.md": "takes minutes; run in small in commands/test_bench.py",
    "rasters.md": "run in commands/test_predict_raster.py with other rasters",
    "reports.md": "run in engine/reporting with other folders",
    "robustness.md": "run in commands/test_robustness.py with fewer sensors",
    "trackers.md": "run in commands/test_train_tracking.py",
    "watching.md": "run in commands/test_watch.py",
}
"""Pages whose commands are only read by the program's own parser, and why."""


SHELLS = {"sh", "bash", "console", "slurm"}
KNOWN = {*app.COMMANDS, "extend"}


def commands_of(page: Path) -> list[list[str]]:
    """The words behind ``memorysam`` of each such line in a page's code blocks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = []
    for language, block in blocks:
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        words = [re.search(r"^(?:memorysam|.* -m memorysam_cli) (.*)", line) for line in lines if line[:1] != "#"]
        said = [match[1].split(" | ")[0] for match in words if match and match[1].split(" ")[0].strip("-") in KNOWN]
        assert language in SHELLS or not said, f"{page.name}: name the language of the block: {said}"
        found += [shlex.split(line, comments=True) for line in said]
    return found


def parse(command: Any, words: list[str], parent: Any = None) -> None:
    """Read a line as the program does, without running it; a wrong option, value or word raises."""
    context = command.make_context(command.name, list(words), parent=parent)
    if hasattr(command, "commands") and (rest := [*context._protected_args, *context.args]):
        _, child, left = command.resolve_command(context, rest)
        parse(child, left, context)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_run_or_at_least_read_by_the_program(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "is_missing", lambda path: False)  # the files of an example are not here
    monkeypatch.setattr(model, "read_card", lambda path: None)
    monkeypatch.setattr(hub, "local_path", lambda name: name)
    commands = commands_of(page)
    assert bool(commands) == (page.name in EXECUTED or page.name in PARSED), "say where its commands are tested"
    if page.name in EXECUTED:
        assert page.stem in (ROOT / "tests" / EXECUTED[page.name]).read_text(encoding="utf-8")
    program = get_command(app.build())
    for words in commands:
        try:
            parse(program, words)
        except (TyperException, MemorySamError) as error:
            pytest.fail(f"memorysam {shlex.join(words)}: {error}")


LACKS = (
    r"\b(was|were) (lent|at hand)\b|[Nn]o GPU was available|not on this machine|no ROS was run|did not build the image"
)


def test_every_extra_that_a_page_or_a_message_names_exists() -> None:
    """``pip`` only warns of one that does not, and installs nothing."""
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "memorysam_cli").rglob("*.py")]
    named = {
        (path.name, extra)
        for path in texts
        for found in re.findall(r"(?:memorysam|['\"]\.)\[([a-z,]+)\]", path.read_text("utf-8"))
        for extra in found.split(",")
    }
    assert {path for path, _ in named} >= {"install.md", "export.md", "export.py"}
    assert sorted(each for each in named if each[1] not in known) == []


def test_what_was_not_tried_stands_in_one_place() -> None:
    assert "## Not tried yet" in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert not [page.name for page in PAGES if re.search(LACKS, page.read_text(encoding="utf-8"))]


DIALECT = (
    "per cent", "said rightly", "the way on", "very update", "Nothing but its manifest", "proved against",
    "bear failing", "holds none of these", "a report is made of", "than before", "Input should be", "in 1 pixels",
    "counts nowhere", "stands there twice", "without a word", "begins anew", "had better", "says otherwise", "is said,",
    "colour", "optimiser", "normalis", "behaviour", "learnt", "labelled", "catalogue", "artefact", "licence",
)  # fmt: skip
"""What plain American English has other words for; in pages, and in what the program prints."""


def test_pages_and_messages_are_plain_english() -> None:
    for page in PAGES:
        text = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8"))
        assert not [words for words in DIALECT if words in text], page.name
    for module in sorted((ROOT / "memorysam_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                text = re.sub(r"`[^`]*`|color colour hex|color colour camera", "", node.value)  # users' own words too
                found = [words for words in DIALECT if words in text]
                assert not found, f"{module.name}:{node.lineno}: {found}"
