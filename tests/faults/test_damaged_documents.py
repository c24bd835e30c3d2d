"""Every document that a command reads back, mutated field by field: the command ends with 0 or a documented code.

The files are those that training, evaluation and prediction have left. In each one every field in turn is taken
away, or becomes something else; the commands that read it must answer with one line, whatever they find.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from memorysam_cli import app
from memorysam_cli.data import manifest as manifests
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.errors import EXIT_CODES, DataError, WeightsError
from memorysam_cli.model import parse_card, weights
from memorysam_cli.storage import documents, lock, tensors
from tests.commands.trained import save_weights
from tests.engine.stand_ins import write_data
from tests.faults.conftest import Commands, Figures
from tests.faults.scale import amount

Keys = tuple[str | int, ...]
DEEP = "\0deep\0"
"""What stands for 100,000 nested lists until the text is written."""
VALUES: dict[str, Any] = {
    "null": None, "true": True, "text": "x\u202e\x1b[31m", "empty": "", "list": [], "object": {}, "negative": -1,
    "half": 0.5, "huge": 10**300, "whole": 10**18, "nan": float("nan"), "infinite": float("inf"),
    "half a pair": "\ud800", "nul": "a\0b", "outside": "../../etc/passwd", "nested": [[{"a": [None]}]], "deep": DEEP,
}  # fmt: skip
"""What a field becomes; NaN and infinity are written as Python does, which is not JSON."""
GONE, UNKNOWN = "gone", "unknown key"
ALL_AT_ONCE = os.environ.get("MEMORYSAM_SOAK") == "1"


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The way to each value of a document; of a list the first two, for the others are alike."""
    yield keys
    pairs: Sequence[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value[:2]))
    for key, child in pairs:
        yield from places(child, (*keys, key))


def mutated(document: Any, keys: Keys, what: str) -> Any:
    """A copy with one field changed."""
    copy = json.loads(json.dumps(document))
    if not keys:
        return {} if what == GONE else [copy] if what == UNKNOWN else VALUES[what]
    *parents, last = keys
    place = copy
    for key in parents:
        place = place[key]
    if what == GONE:
        del place[last]
    elif what == UNKNOWN:
        place = place[last] if isinstance(place[last], dict) else copy
        if isinstance(place, dict):
            place["splitt"] = 1
    else:
        place[last] = VALUES[what]
    return copy


def written(document: Any) -> bytes:
    """A mutated document as JSON, or as near to it as it can be."""
    text = json.dumps(document).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    return text.encode()


def mutations(document: Any, rng: random.Random, *, most: int) -> list[tuple[Keys, str]]:
    """So many ways to change a document: every field first, then further values for some."""
    found = [(keys, what) for keys in places(document) for what in (GONE, UNKNOWN, *VALUES)]
    if ALL_AT_ONCE:
        return found
    rng.shuffle(found)
    once = {keys: (keys, what) for keys, what in found}  # one way for each field
    first = rng.sample(sorted(once.values(), key=str), min(most, len(once)))
    return [*first, *found[: max(0, most - len(first))]]


# How the document is taken out of its file, and put back; beside JSON.


def read_lines(data: bytes) -> Any:
    return json.loads(data.splitlines()[0])


def write_lines(document: Any, before: bytes) -> bytes:
    return b"\n".join([written(document), *before.splitlines()[1:]]) + b"\n"


def read_yaml(data: bytes) -> Any:
    return yaml.safe_load(data)


def write_yaml(document: Any, _before: bytes) -> bytes:
    return written(document)  # YAML's flow style: what is JSON is YAML, too


def read_whole(data: bytes) -> Any:
    return json.loads(data)


def write_whole(document: Any, _before: bytes) -> bytes:
    return written(document)


@dataclass(frozen=True)
class Kind:
    """A document and the commands that read it."""

    file: str
    commands: tuple[str, ...]
    most: int
    """Mutations that are tried in a usual run."""
    read: Callable[[bytes], Any] = read_whole
    write: Callable[[Any, bytes], bytes] = write_whole
    sign: Callable[[Path], None] | None = None
    """What an attacker would do besides, so that the content is looked at and not only its sum."""
    is_needed: bool = True
    """Whether a command is refused where there is no such document."""


def sign_manifest(folder: Path) -> None:
    about = json.loads((folder / "dataset.json").read_bytes())
    about["content_hash"] = hashlib.sha256((folder / "scenes.jsonl").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(about))


PREDICT = "predict photos --map img=rgb --workers 0 -q -o masks"
WEIGHTS = "runs/small/checkpoints/best.safetensors"
PLAN = "plan -r tiny.yaml -d data --gpu-memory 8GB"
SCENES = "data/memorysam/tiny/scenes.jsonl"
CHECKED = "data/memorysam/tiny/checked.jsonl"
RUN, SCORED, MASKS = "runs/small", "runs/small/evaluate/val", "masks"
PAGE = f"report {RUN} -o o.html"
KINDS = {
    "recipe of a run": Kind(f"{RUN}/recipe.yaml", (f"watch {RUN} --once", PAGE), 8, read_yaml, write_yaml),
    "metrics": Kind(f"{RUN}/metrics.jsonl", (f"watch {RUN} --once", PAGE), 8, read_lines, write_lines),
    "extent": Kind(f"{RUN}/extent.json", (f"watch {RUN} --json",), 12),
    "result": Kind(f"{RUN}/result.json", (PAGE,), 5),
    "environment": Kind(f"{RUN}/environment.json", (PAGE, f"report {RUN} {RUN} -o o.html"), 3),
    "owner of a folder": Kind(f"{RUN}/.lock", (f"watch {RUN} --once",), 20, is_needed=False),
    "scores": Kind(
        f"{SCORED}/metrics.json",
        (f"report {SCORED} -o o.html", f"report {SCORED} {SCORED} -o o.html", f"card {WEIGHTS}"),
        6,
    ),
    "gallery": Kind(f"{SCORED}/gallery/gallery.json", (f"report {SCORED} -o o.html",), 6),
    "finished prediction": Kind(f"{MASKS}/_SUCCESS.json", (f"report {MASKS} -o o.html", PREDICT), 4),
    "ledger": Kind(f"{MASKS}/predictions.jsonl", (f"report {MASKS} -o o.html",), 10, read_lines, write_lines),
    "prediction's classes": Kind(f"{MASKS}/classes.json", (f"report {MASKS} -o o.html",), 3, is_needed=False),
    "list of scenes": Kind(
        SCENES, ("check data --headers-only -o checked", PLAN), 3, read_lines, write_lines, sign_manifest
    ),
    "data set": Kind("data/memorysam/tiny/dataset.json", ("check data --headers-only -o checked", PLAN), 4),
    "what the check remembers": Kind(CHECKED, ("check data -o checked",), 4, read_lines, write_lines, is_needed=False),
}


@pytest.fixture(scope="module")
def made(base: Path, commands: Commands) -> Path:
    """What a training run, an evaluation and a prediction have left, not to be written to."""
    made = base / "made"
    made.mkdir()
    for name in ("data", "photos", "runs", "masks", "tiny.yaml"):
        source = commands.template / name
        shutil.copytree(source, made / name, symlinks=True) if source.is_dir() else shutil.copy(source, made)
    with lock.hold(made / RUN):
        record = (made / RUN / ".lock").read_bytes()
    (made / RUN / ".lock").write_bytes(record)  # as a kill leaves it
    shutil.rmtree(made / RUN / "samples")  # and of the shipped recipes one is read: pictures and YAML take their time
    recipe = made / RUN / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: tiny", "name: demo"))
    assert app.run(["check", str(made / "data"), "-o", str(base / "checked"), "-q"]) == 0
    return made


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refuse_other_endings(arguments: str, capsys: pytest.CaptureFixture[str], *, how: object) -> int:
    """Run a command; it ends with a documented code, and with one line if it is none of success."""
    code = app.run(arguments.split())
    said = capsys.readouterr()
    assert code in EXIT_CODES and code != 1, f"{arguments}, {how}: {said.err}"
    assert "Traceback" not in said.err, f"{arguments}, {how}: {said.err}"
    lines = [line for line in said.err.splitlines() if line.startswith("memorysam: error")]
    assert len(lines) == (code != 0), f"{arguments}, {how}: {said.err}"
    return code


@pytest.mark.parametrize("name", KINDS)
def test_a_document_that_is_mutated_ends_a_command_with_a_documented_code(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], rng: random.Random, figures: Figures
) -> None:
    kind = KINDS[name]
    path = folder / kind.file
    before = path.read_bytes()
    document = kind.read(before)
    for command in kind.commands:
        assert refuse_other_endings(command, capsys, how="as it was") == 0
    tried = refused = 0
    for keys, what in mutations(document, rng, most=kind.most):
        for command in kind.commands:
            path.write_bytes(kind.write(mutated(document, keys, what), before))
            if kind.sign is not None:
                kind.sign(path.parent)
            tried += 1
            refused += refuse_other_endings(command, capsys, how=(keys, what)) != 0
    figures("R", documents=tried, refused=refused, lost=0)
    for data in (b"\xff\xfe{}\n", b"[\n"):
        path.write_bytes(data)
        codes = [refuse_other_endings(command, capsys, how=data) for command in kind.commands]
        assert any(codes) or not kind.is_needed, "otherwise nothing was read"


def every_mutation(document: Any, rng: random.Random) -> Iterator[tuple[Keys, str]]:
    """All ways to change a document; in plain runs a quarter, which the seed draws."""
    found = [(keys, what) for keys in places(document) for what in (GONE, UNKNOWN, *VALUES)]
    yield from rng.sample(found, amount(len(found), soak=len(found), few=len(found) // 4))


def seal(card: bytes) -> dict[str, str]:
    """A file's metadata, as if the card had been written so."""
    text = card.decode()
    return {weights.CARD: text, weights.SEAL: weights.seal_of(text)}


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    return save_weights(base / "w.safetensors", write_data(base / "of weights").info)


def test_a_card_that_is_mutated_is_refused_or_says_what_can_be(
    trained: Path, rng: random.Random, figures: Figures
) -> None:
    card = json.loads(tensors.read_metadata(trained)[weights.CARD])
    tried = refused = 0
    for keys, what in every_mutation(card, rng):
        tried += 1
        try:
            found = parse_card(seal(written(mutated(card, keys, what))), where=trained)
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error)
        else:  # what it says can be written down, and is the same when it is read again
            again = seal(found.model_dump_json().encode())
            assert parse_card(again, where=trained) == found, (keys, what)
    assert refused > tried / 2
    figures("R", documents=tried, refused=refused, lost=0)


def test_weights_verify_says_the_same_as_loading(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what a card may say: bases that are not there, other seeds and sizes, LoRA that overflows."""
    card = json.loads(tensors.read_metadata(trained)[weights.CARD])
    state = tensors.read(trained)[0]
    seed, source = ("recipe", "train", "seed"), ("base", "source")
    changes: list[tuple[Keys, Any]] = [
        (source, "import:x"), (source, "file:~nobody/x.pt"), (source, "random:" + "9" * 30), (source, "hub:"),
        (("base", "backbone"), "sam2-hiera-tiny"), (("base", "sha256"), "0" * 64),
        (("base", "sha256"), "zz"), (seed, 10**30), (seed, -1), (seed, 12), (("image_size",), 33),
        (("image_size",), 10**9), (("tokens",), 10**9), (("tokens",), 5), (("recipe", "model", "lora", "rank"), 10**9),
        (("recipe", "model", "lora", "alpha"), 1e300), (("recipe", "model", "lora", "rank"), 5), (("kind",), "merged"),
    ]  # fmt: skip
    for keys, value in changes:
        changed = json.loads(json.dumps(card))
        place = changed
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path = tmp_path / "w.safetensors"
        tensors.write(path, state, {**seal(json.dumps(changed).encode())})
        try:
            weights.load(path)
            loads = True
        except WeightsError:
            loads = False
        code = refuse_other_endings(f"weights verify {path}", capsys, how=(keys, value))
        assert code == (0 if loads else 10), (keys, value)
        assert not loads or keys == ("image_size",), (keys, value)


def test_a_list_of_scenes_that_is_mutated_is_refused_or_stays_inside(
    base: Path, rng: random.Random, figures: Figures
) -> None:
    root = base / "scenes"
    write_data(root)
    place = root / "memorysam" / "tiny"
    before = (place / "scenes.jsonl").read_bytes()
    line = json.loads(before.splitlines()[0])
    tried = refused = 0
    for keys, what in every_mutation(line, rng):
        (place / "scenes.jsonl").write_bytes(write_lines(mutated(line, keys, what), before))
        sign_manifest(place)
        tried += 1
        try:
            found = manifests.read(root, "tiny")
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(place)) and "\n" not in str(error)
        else:
            for path in found.scenes[0].paths:
                assert (root / path).resolve().is_relative_to(root.resolve()), (keys, what)
    assert refused > tried / 2
    figures("R", documents=tried, refused=refused, lost=0)


def test_what_a_data_set_is_is_refused_or_can_be_written_again(
    base: Path, rng: random.Random, figures: Figures
) -> None:
    root = base / "about"
    info = write_data(root).info
    path = root / "memorysam" / "tiny" / "dataset.json"
    about = json.loads(path.read_bytes())
    tried = refused = 0
    for keys, what in every_mutation(about, rng):
        path.write_bytes(written(mutated(about, keys, what)))
        tried += 1
        try:
            found = manifests.read_info(root, info.name)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            documents.write_json(path, found.model_dump(mode="json"))
            assert manifests.read_info(root, info.name) == found, (keys, what)
    assert refused > tried / 2
    figures("R", documents=tried, refused=refused, lost=0)


def test_where_a_checkpoint_stands_is_refused_or_known(
    made: Path, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    newest = max((made / RUN / "checkpoints").glob("step-*"))
    state = json.loads((newest / "trainer.json").read_bytes())
    tried = refused = 0
    for keys, what in every_mutation(state, rng):
        if len(keys) > 1 and keys[0] in {"identity", "made_by", "scaler"}:
            continue  # free words, which are compared with the run's own
        (tmp_path / "trainer.json").write_bytes(written(mutated(state, keys, what)))
        tried += 1
        try:
            position = checkpoints.read_header(tmp_path).position
        except WeightsError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert position.step >= 0 and position.batch >= 0 and isinstance(position.is_validated, bool), (keys, what)
    assert refused > tried / 2
    figures("R", documents=tried, refused=refused, lost=0)


@pytest.mark.parametrize("changes", [{"step": 7}, {"epoch": 2}, {"batch": 10**6}])
def test_a_checkpoint_of_a_place_that_cannot_be_is_not_resumed(
    changes: dict[str, int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sums agree, for whoever wrote the place wrote them, too."""
    newest = max((folder / RUN / "checkpoints").glob("step-*"))
    state = json.loads((newest / "trainer.json").read_bytes()) | changes
    (newest / "trainer.json").write_bytes(written(state))
    (newest / "MANIFEST.json").unlink()
    documents.write_json(newest / "MANIFEST.json", checkpoints._sums(newest))
    (folder / RUN / ".lock").write_bytes(b"")
    assert refuse_other_endings(f"train --resume {RUN}", capsys, how=changes) == 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "quarantine.jsonl", "resumes.jsonl"])
def test_a_damaged_line_of_a_run_is_named_by_its_report(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / RUN / ".lock").write_bytes(b"")
    for line in (b"{}\n", b"[]\n", b'{"step": "x", "epoch": 0}\n', b'{"step": 1, "epoch": 0, "loss": "x"}\n'):
        (folder / RUN / name).write_bytes(line)
        code = refuse_other_endings(f"report {RUN} -o o.html", capsys, how=line)
        assert code == (3 if name == "metrics.jsonl" else 0)
    if name != "resumes.jsonl":
        code = refuse_other_endings(f"train --resume {RUN}", capsys, how=name)
        assert code == 3


@pytest.mark.parametrize(
    "command", ["evaluate --split val -d data", "predict data --out other", "train -r tiny.yaml --out runs/b"]
)
def test_every_command_reads_a_manifest_by_the_same_rules(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path out of the root, an absolute one, a broken line, a scene twice: signed, and refused with its line."""
    path = folder / SCENES
    before = path.read_bytes()
    first, second, *_ = before.splitlines(keepends=True)
    scene = json.loads(first)
    bad = [
        json.dumps({**scene, "label": "../secret.png"}).encode() + b"\n",
        json.dumps({**scene, "files": {**scene["files"], "img": ["/etc/passwd"]}}).encode() + b"\n",
        b'{"id": \n',
        second,
    ]
    for line in bad:
        path.write_bytes(line + before.removeprefix(first))
        sign_manifest(path.parent)
        files = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
        assert refuse_other_endings(command, capsys, how=line) == 3
        after = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
        assert {each: after.get(each) for each in files} == files, "nothing is lost"
