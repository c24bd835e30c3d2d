"""The documentation is built strictly and offline, and asks nothing of any network when it is read."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from memorysam_cli import app

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
    assert "memorysam_cli.model.load" in text
    assert "train.checkpoint_minutes" in (site / "recipe-keys.html").read_text(encoding="utf-8")


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
    "pip": "--force-reinstall",
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
