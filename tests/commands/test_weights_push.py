"""``memorysam weights push`` against a Hub on the loopback: nothing is sent unasked, and then all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from memorysam_cli import recipe as recipes

from ..engine.stand_ins import write_data
from ..storage.test_hub_upload import REPO, TOKEN, Shelf, connect, served
from .trained import Program, save_weights

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    save_weights(folder / "best.safetensors", write_data(folder / "data").info)
    return folder


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    with served() as shelf:
        connect(shelf, monkeypatch, here / "cache")
        yield shelf


def test_nothing_is_sent_without_yes(hub: Shelf, memorysam: Program) -> None:
    ended = memorysam("weights", "push", REPO, "best.safetensors")
    assert ended.code == 0 and f"not sent; add --yes to send these to {REPO}" in ended.out
    assert all(name in ended.out for name in ("best.safetensors", "README.md", "recipe.yaml"))
    assert not hub.writes and not hub.repos


def test_with_yes_weights_card_and_recipe_are_there_as_they_are(hub: Shelf, memorysam: Program) -> None:
    ended = memorysam("weights", "push", REPO, "best.safetensors", "--yes", "--private", "--json", "-q")
    assert ended.code == 0 and ended.answer["sent"] is True and ended.answer["url"].startswith(hub.address)
    files = hub.repos[REPO]
    assert set(files) == {"best.safetensors", "README.md", "recipe.yaml"} and hub.private == {REPO: True}
    assert files["best.safetensors"] == Path("best.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0" and f"--weights hf://{REPO}/best.safetensors" in card.text
    Path("sent.yaml").write_bytes(files["recipe.yaml"])
    assert recipes.load("sent.yaml", []).name == "small"
    assert TOKEN not in ended.out + ended.err


def test_another_card_stops_it_with_the_two_ways_on(hub: Shelf, memorysam: Program) -> None:
    hub.repos[REPO] = {"README.md": b"# theirs\n"}
    ended = memorysam("weights", "push", REPO, "best.safetensors", "--yes")
    assert ended.code == 2 and "--replace-card" in ended.err and "--no-card" in ended.err
    assert hub.repos[REPO] == {"README.md": b"# theirs\n"}
    assert memorysam("weights", "push", REPO, "best.safetensors", "--yes", "--no-card").code == 0
    assert hub.repos[REPO]["README.md"] == b"# theirs\n" and "best.safetensors" in hub.repos[REPO]
    assert memorysam("weights", "push", REPO, "best.safetensors", "--yes", "--replace-card").code == 0
    assert hub.repos[REPO]["README.md"] != b"# theirs\n"


def test_the_ends_have_their_exit_codes(hub: Shelf, memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memorysam("weights", "push", "no repository", "best.safetensors", "--yes").code == 2
    Path("bad.safetensors").write_bytes(Path("best.safetensors").read_bytes()[:-4])
    assert memorysam("weights", "push", REPO, "bad.safetensors", "--yes").code == 5
    hub.refuses = 403
    ended = memorysam("weights", "push", REPO, "best.safetensors", "--yes")
    assert ended.code == 7 and "the token may not write there" in ended.err and TOKEN not in ended.err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ended = memorysam("weights", "push", REPO, "best.safetensors", "--yes")
    assert ended.code == 6 and "unset it" in ended.err
    assert not hub.repos
