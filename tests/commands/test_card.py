"""``memorysam card``: the card is what the Hub reads, tells what is known, and nothing of the machine."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.engine.weights import model_card as cards
from memorysam_cli.model.weights import read_card
from memorysam_cli.storage import tensors

from .trained import Program, save_weights

HOSTILE = "a|b`c`\n# <script>alert(1)</script> [x](http://evil.example) *y* & ![z](http://evil.example/z.png)"
INFO = DatasetInfo(
    name="tiny",
    title="Tiny\n---\nlicense: stolen",
    classes=("road", HOSTILE, "sky"),
    palette=((1, 2, 3), (255, 0, 16), (7, 8, 9)),
    modalities=(
        Modality(name="img", kind="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        Modality(name="depth", kind="depth", scale=0.001, offset=-1.0),
    ),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: weights, its recipe and its command."""
    folder = tmp_path_factory.mktemp("template")
    weights = save_weights(folder / "run" / "checkpoints" / "best.safetensors", INFO)
    (folder / "run" / "recipe.yaml").write_text(read_card(weights).recipe.to_yaml())
    (folder / "run" / "command.txt").write_text(
        "/home/alice/bin/memorysam train --data '/mnt/secret data/sets' --set model.base_weights=/home/alice/b.pt\n"
    )
    return folder


WEIGHTS = Path("run/checkpoints/best.safetensors")


def report(split: str, miou: float, **changed: Any) -> dict[str, Any]:
    part = {"miou": miou, "macc": 1.0, "mf1": 2.0}
    classes = [{"name": name, "iou": 10.0 + n, "f1": 20.0 + n} for n, name in enumerate(INFO.classes)]
    return {
        "schema_version": 1, "split": split, "protocol": "resized", "modalities": ["img", "depth"], "tta": None,
        "tile": None, "weights_sha256": tensors.sha256(WEIGHTS), "warnings": ["these are <b>flattered</b>"],
        "classes": classes, "protocols": {"resized": part, "native": {**part, "miou": miou - 1}}, **changed,
    }  # fmt: skip


def store(place: str, content: dict[str, Any]) -> None:
    path = Path("run/evaluate") / place / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def test_the_front_matter_is_what_the_hub_reads(here: Path, memorysam: Program) -> None:
    ended = memorysam("card", WEIGHTS, "--out", "README.md")
    assert ended.code == 0 and "README.md" in ended.out
    data = ModelCard.load("README.md").data
    assert data.license == "apache-2.0" and data.pipeline_tag == "image-segmentation"
    assert data.library_name == "memorysam" and {"img", "depth", "sam2"} <= set(data.tags)
    assert data.datasets == ["tiny"] and data.metrics == ["mean_iou"]
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_split, result.task_type) == (12.5, "val", "image-segmentation")
    assert result.dataset_name == "Tiny --- license: stolen"


def test_scores_are_those_of_the_evaluations_of_these_very_weights(here: Path, memorysam: Program) -> None:
    store("test", report("test", 33.333))
    store("val", report("val", 44.444))
    store("other", report("train", 99.0, weights_sha256="0" * 64))
    store("val/img", report("val", 98.0, modalities=["img"]))
    store("val/tta", report("val", 97.0, tta={"scales": [1], "flip": True}))
    Path("run/evaluate/broken").mkdir()
    Path("run/evaluate/broken/metrics.json").write_text("{")
    ended = memorysam("card", WEIGHTS, "--json")
    answer = ended.answer
    assert "broken/metrics.json: not valid JSON" in ended.err and "the card is written without it" in ended.err
    assert answer["evaluations"] == 2 and answer["sha256"] == tensors.sha256(WEIGHTS)
    text = answer["card"]
    for row in ("| test | resized | 33.33 |", "| test | native | 32.33 |", "| val | resized | 44.44 |"):
        assert row in text
    assert not re.search(r"9[789]\.0", text) and "12.5" not in text
    found = {(one.dataset_split, one.metric_name): one.metric_value for one in ModelCard(text).data.eval_results}
    assert found[("test", "mIoU (native)")] == 32.33 and len(found) == 4
    assert "these are &lt;b&gt;flattered&lt;/b&gt;" in text and "| sky | 12.00 | 22.00 |" in text


def test_other_peoples_names_stay_text(here: Path, memorysam: Program) -> None:
    text = memorysam("card", WEIGHTS).out
    assert "<script" not in text and "http://evil" not in text and "![z](" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4, "the class's bar ends no cell"
    assert r"\`c\`" not in row and "a\\|b'c' # &lt;script&gt;" in row and "`#ff0010`" in row
    assert ModelCard(text).data.license == "apache-2.0", "a title cannot end the front matter"


def test_no_folder_of_the_machine_is_told(here: Path, memorysam: Program) -> None:
    text = memorysam("card", WEIGHTS).out
    for secret in ("/home", "alice", "/mnt", "secret data", str(here)):
        assert secret not in text
    assert "memorysam train --data '…/sets' --set 'model.base_weights=…/b.pt'" in text


def test_what_trained_them_and_what_they_are_is_all_there(here: Path, memorysam: Program) -> None:
    text, card = memorysam("card", WEIGHTS).out, read_card(WEIGHTS)
    expected = (
        tensors.sha256(WEIGHTS), "random:11", card.base.sha256, "seed | 11", f"torch {card.versions['torch']}",
        "memorysam predict SCENES", "load('best.safetensors')", "step 2, epoch 1", "0.4, 0.5, 0.6 / 0.2, 0.25",
        "× 0.001 + -1", "32 px", "backbone: nano",
    )  # fmt: skip
    for words in expected:
        assert words in text, words


def test_the_python_of_the_card_runs(here: Path, memorysam: Program) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", memorysam("card", WEIGHTS).out, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code.replace("'best.safetensors'", repr(str(WEIGHTS))), scope)
    assert scope["classes"].shape == (1, 32, 32)


def test_a_card_is_never_replaced_unasked(here: Path, memorysam: Program) -> None:
    Path("README.md").write_text("mine")
    assert memorysam("card", WEIGHTS, "--out", "README.md").code == 2
    assert Path("README.md").read_text() == "mine"
    assert memorysam("card", WEIGHTS, "--out", "README.md", "--overwrite", "--license", "cc-by-nc-4.0").code == 0
    assert ModelCard.load("README.md").data.license == "cc-by-nc-4.0"


def test_weights_without_a_run_and_a_result_have_a_card_too(here: Path, memorysam: Program) -> None:
    target = Path("alone.safetensors")
    target.write_bytes(WEIGHTS.read_bytes())
    text = memorysam("card", target).out
    assert "Trained by" not in text and "| val | resized | 12.50 |" in text
    facts = cards.gather(target)
    bare = cards.CardFacts(facts.file, facts.digest, facts.card.model_copy(update={"metric": None}), None, ())
    rendered = cards.render(bare, repo="alice/x")
    data = facts.card.recipe.data.model_copy(update={"antialias": True})
    smooth = facts.card.model_copy(update={"recipe": facts.card.recipe.model_copy(update={"data": data})})
    said = "Where they shrink, img, depth are antialiased."
    assert said not in rendered and said in cards.render(replace(bare, card=smooth))
    assert "were not validated" in rendered and ModelCard(rendered).data.eval_results is None
    assert "--weights hf://alice/x/alone.safetensors" in rendered


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("memorysam demo", "memorysam demo"),
        ("/usr/bin/memorysam train --out /srv/a/b", "memorysam train --out …/b"),
        ("memorysam train --out runs/x --set a=~/w/x.pt", "memorysam train --out runs/x --set a=…/x.pt"),
        (r"'C:\Users\alice\memorysam.exe' train -d 'D:\sets\one'", "memorysam.exe train -d …/one"),
        ("unbalanced '/home/alice/x", ""),
    ],
)
def test_a_command_keeps_its_words_and_loses_its_folders(said: str, shown: str) -> None:
    assert cards.public_command(said).replace("'", "") == shown
