"""``memorysam weights fetch`` against a Hub of our own on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.encoders.hiera import PUBLISHED
from memorysam_cli.errors import WeightsError
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.base_weights import load_base, reload_base
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.storage import hub, tensors

from .. import forked
from ..storage.test_hub import CONTENT, GOOD, Hub, served
from .trained import Program, save_weights

# The published hashes are of files of a hundred megabytes: stand-ins get their own.
PROGRAM = "import sys; from memorysam_cli import app; sys.exit(app.run(sys.argv[1:]))"
PATCHED = f"""
import dataclasses
from memorysam_cli.encoders import hiera
hiera.PUBLISHED |= {{name: dataclasses.replace(it, sha256="{GOOD}") for name, it in hiera.PUBLISHED.items()}}
{PROGRAM}
"""


TAKING = [("weights", "info"), ("predict", "--weights"), ("train", "--init")]
"""Commands that take weights by their address."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def fetch(
    endpoint: str, home: Path, *arguments: str, patched: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command that fetches."""
    return memorysam(endpoint, home, "weights", "fetch", *arguments, patched=patched, **variables)


def memorysam(
    endpoint: str, home: Path, *arguments: object, patched: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, since the client reads its environment at import."""
    return python(endpoint, home, PATCHED if patched else PROGRAM, *map(str, arguments), **variables)


def python(endpoint: str, home: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that knows one Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    ours = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "20",
        "HF_HUB_DOWNLOAD_TIMEOUT": "20",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return forked.python(code, *arguments, environment=kept | ours | variables)


def test_names_are_fetched_verified_and_told_and_then_need_no_network(endpoint: str, tmp_path: Path) -> None:
    names = ("sam2-hiera-base-plus", "sam2.1-hiera-tiny", "sam2-hiera-base-plus")
    ended = fetch(f"{endpoint}/ok", tmp_path, *names, "--json")
    assert ended.returncode == 0, ended.stderr
    files = json.loads(ended.stdout)["files"]
    assert [(file["name"], file["repository"], Path(file["path"]).name) for file in files] == [
        ("sam2-hiera-base-plus", "facebook/sam2-hiera-base-plus", "sam2_hiera_base_plus.pt"),
        ("sam2.1-hiera-tiny", "facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt"),
    ]
    assert all(Path(file["path"]).read_bytes() == CONTENT and file["sha256"] == GOOD for file in files)
    before = list(Hub.requests)
    again = fetch(f"{endpoint}/ok", tmp_path, "sam2-hiera-base-plus", "-q", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stderr == ""
    assert again.stdout == f"sam2-hiera-base-plus  {files[0]['path']}  SHA-256 {GOOD}\n"
    assert Hub.requests == before


def test_all_are_all_eight(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str]] = []

    def fetched(repo: str, filename: str, *, sha256: str, show_progress: bool) -> Path:
        asked.append((repo, filename, sha256))
        return Path(repo) / filename

    monkeypatch.setattr(hub, "fetch", fetched)
    ended = run("weights", "fetch", "--all", "--json", "-q")
    assert ended.code == 0 and ended.err == "", ended.err
    assert len({file["path"] for file in ended.answer["files"]}) == 8
    assert sorted(asked) == sorted((it.repository, it.filename, it.sha256) for it in PUBLISHED.values())


def test_what_is_not_the_published_file_is_refused(endpoint: str, tmp_path: Path) -> None:
    """The table as it is: the stand-in's bytes are not Meta's."""
    ended = fetch(f"{endpoint}/ok", tmp_path, "sam2-hiera-tiny", "--json", patched=False)
    assert ended.returncode == 7 and json.loads(ended.stdout)["error"]["code"] == 7
    last = ended.stderr.strip().splitlines()[-1]
    assert "facebook/sam2-hiera-tiny/sam2_hiera_tiny.pt: wrong content" in last and "not retryable" in last
    assert "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125" in last
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == len(CONTENT)]


def test_offline_without_a_cache_says_so(endpoint: str, tmp_path: Path) -> None:
    ended = fetch(f"{endpoint}/ok", tmp_path, "sam2-hiera-tiny", HF_HUB_OFFLINE="1")
    assert ended.returncode == 7 and "HF_HUB_OFFLINE" in ended.stderr and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give names or --all"),
        (("sam2-hiera-tiny", "--all"), "give names or --all"),
        (("sam2-hiera-tinny",), "did you mean 'sam2-hiera-tiny'?"),
        (("nano",), "come with memorysam"),
    ],
)
def test_wrong_names_are_refused_before_any_request(arguments: tuple[str, ...], words: str, run: Program) -> None:
    ended = run("weights", "fetch", *arguments)
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of ours, as the Hub sends them below ``/ours``."""
    info = DatasetInfo(
        name="tiny", title="Tiny", classes=("road", "sky"), palette=((1, 2, 3), (4, 5, 6)),
        modalities=(Modality(name="img", kind="rgb"), Modality(name="depth", kind="depth")),
    )  # fmt: skip
    path = save_weights(tmp_path_factory.mktemp("sent") / "best.safetensors", info)
    Hub.bodies["ours"] = path.read_bytes()
    return path


def test_weights_of_a_repository_are_taken_by_their_address(endpoint: str, ours: Path, tmp_path: Path) -> None:
    """By that of the repository, and then offline by that of the file, which is the same one."""
    address = "hf://alice/memorysam-demo"
    ended = memorysam(f"{endpoint}/ours", tmp_path, "weights", "info", address, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["dataset"]["name"] == "tiny"
    words = ("weights", "verify", f"{address}/best.safetensors")
    offline = memorysam(f"{endpoint}/ours", tmp_path, *words, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr


def test_python_takes_the_address_too(endpoint: str, ours: Path, tmp_path: Path) -> None:
    code = "import sys; from memorysam_cli.model import load; print(load(sys.argv[1]).card.dataset.name)"
    ended = python(f"{endpoint}/ours", tmp_path, code, "hf://alice/memorysam-demo")
    assert (ended.returncode, ended.stdout) == (0, "tiny\n"), ended.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://alice", "is not a repository of the Hub; give OWNER/NAME"),
        ("hf://alice/demo/../../x", "names no file"),
        ("hf://ali ce/demo", "is not a repository of the Hub"),
    ],
)
@pytest.mark.parametrize("command", TAKING)
def test_wrong_addresses_are_refused_in_one_line_and_not_asked_for(
    command: tuple[str, ...], address: str, words: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("asked for"))
    ended = run(*command, address)
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize("command", TAKING)
def test_an_address_of_nothing_is_refused_in_one_line(command: tuple[str, ...], endpoint: str, tmp_path: Path) -> None:
    ended = memorysam(f"{endpoint}/404", tmp_path, *command, "hf://alice/demo/other.safetensors")
    assert ended.returncode == 7 and ended.stderr.count("\n") == 1, ended.stderr
    assert "alice/demo/other.safetensors: HTTP 404" in ended.stderr


def test_base_weights_of_a_repository_are_found_again_by_their_address(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With transformers' own names, from the repository that the recipe names; the card says which bytes they were."""
    sent: list[tuple[str, str, str | None]] = []
    network = MemorySAM(build_sam2("nano", tokens=3), classes=3)
    path = tmp_path / "model.safetensors"
    save_file({n.removeprefix("sam."): t.contiguous() for n, t in network.state_dict().items()}, path)

    def fetched(repo: str, filename: str, *, sha256: str | None) -> Path:
        sent.append((repo, filename, sha256))
        return path

    monkeypatch.setattr(hub, "fetch", fetched)
    base = load_base(network, "nano", source="hf://alice/nano", seed=0)
    assert base.source == "hf://alice/nano/model.safetensors" and base.sha256 == tensors.sha256(path)
    reload_base(network, base, where="weights")
    assert sent == [("alice/nano", "model.safetensors", None)] * 2
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(WeightsError, match="was trained on base weights with SHA-256"):
        reload_base(network, base, where="weights")
