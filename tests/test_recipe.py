"""Recipes: the shipped ones say what the paper's do, and nothing wrong gets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memorysam_cli import recipe
from memorysam_cli.errors import UsageError
from tests import imported

MINIMAL = """\
data:
  dataset: synthetic
  modalities: [img]
  image_size: 64
model:
  backbone: nano
spmm:
  variant: paper
  weight: 1
optim:
  lr: 1e-4
train:
  epochs: 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        recipe.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{path}:", "FILE:")


# METHOD §4: modalities, epochs, learning rate, reported mIoU and its epoch.
PAPER = {
    "deliver": (("img", "depth", "event", "lidar"), 200, 6e-4, (65.38, 95)),
    "deliver-rgbd": (("img", "depth"), 200, 4.5e-4, (63.48, 154)),
    "mcubes": (("image", "aolp", "dolp", "nir"), 500, 3.5e-4, (52.88, 453)),
    "mcubes-ia": (("image", "aolp"), 500, 3.5e-4, (51.2, 259)),
    "mcubes-iad": (("image", "aolp", "dolp"), 500, 4e-4, (52.2, 326)),
}


ROBUST = {"deliver-robust": "deliver", "mcubes-robust": "mcubes"}
"""Recipes for sensors that fail, and the published ones that they begin from."""


def test_the_shipped_recipes_are_the_published_ones_those_for_failing_sensors_the_demo_and_the_default() -> None:
    assert sorted(recipe.shipped()) == sorted([*PAPER, *ROBUST, "demo", "default"])


@pytest.mark.parametrize("name", ROBUST)
def test_a_recipe_for_failing_sensors_is_the_published_one_with_losses_on_some_of_them(name: str) -> None:
    own, paper = recipe.load(name), recipe.load(ROBUST[name])
    same = {"name": paper.name, "about": paper.about, "model": paper.model, "losses": paper.losses}
    assert own.model_copy(update=same) == paper
    assert own.model == paper.model.model_copy(update={"order": "shuffled"}) and own.losses.keys() == {"prefix"}
    assert all(own.trains_on([sensor], zeroed=False) for sensor in own.data.modalities)
    assert not any(paper.trains_on([sensor], zeroed=False) for sensor in paper.data.modalities)


def test_the_default_recipe_leaves_data_set_and_modalities_open() -> None:
    given_ = recipe.load("default")
    assert (given_.data.dataset, given_.data.modalities) == (recipe.AUTO, (recipe.ALL,))
    assert (given_.model.backbone, given_.data.image_size) == ("sam2-hiera-base-plus", 512)
    assert (given_.spmm.variant, given_.spmm.weight) == ("paper", 0.1)


def test_a_recipe_is_filled_in_for_a_data_set() -> None:
    filled = recipe.load("default").for_dataset("mine", ["rgb", "depth"])
    assert (filled.data.dataset, filled.data.modalities) == ("mine", ("rgb", "depth"))
    assert filled.model == recipe.load("default").model
    named = recipe.load("default", ["data.modalities=[depth]"]).for_dataset("mine", ["rgb", "depth"])
    assert named.data.modalities == ("depth",)


def test_all_stands_alone(file: Path) -> None:
    assert "'all' must be the only value" in refusal(file, "data.modalities=[all, img]")


@pytest.mark.parametrize("name", PAPER)
def test_a_published_recipe_has_the_paper_s_values(name: str) -> None:
    modalities, epochs, lr, _ = PAPER[name]
    given_ = recipe.load(name)
    assert given_.name == name
    assert given_.data.modalities == modalities
    assert given_.data.dataset == name.partition("-")[0]
    assert (given_.data.image_size, given_.data.selection_split) == (1024, "val")
    assert (given_.train.epochs, given_.train.batch, given_.train.seed) == (epochs, 4, 3407)
    assert given_.train.precision == "fp32"
    assert given_.optim == recipe.Optim(
        lr=lr, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8, warmup_epochs=10, warmup_ratio=0.1, power=0.9
    )
    assert given_.spmm == recipe.Spmm(variant="reference", weight=65536, momentum=0.8)
    assert given_.ohem == recipe.Ohem(threshold=0.7, min_kept=1 / 16)
    assert given_.model.backbone == "sam2-hiera-base-plus"
    assert given_.model.object_gate
    lora = given_.model.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (4, None, 0, ("q", "v"))
    assert not lora.dora and not lora.rslora


@pytest.mark.parametrize("name", recipe.shipped())
def test_a_shipped_recipe_says_what_the_paper_reports_of_it_or_nothing(name: str) -> None:
    said = recipe.read(name).reported
    if name not in PAPER:
        assert said is None
        return
    assert said is not None and (said.miou, said.epoch) == PAPER[name][3]
    # METHOD §5: on MCubeS the paper chose its weights on the list that it reports.
    assert (said.split, said.protocol) == ("val" if name.startswith("deliver") else "test", "resized")


def test_augmentation_is_each_data_set_s_own() -> None:
    deliver, mcubes = recipe.load("deliver").augment, recipe.load("mcubes").augment
    assert deliver == recipe.Augment(flip=0.5, jitter=0.2, blur=0.2, blur_sigma=None, scale=(0.5, 2.0))
    assert mcubes == recipe.Augment(
        flip=0.5, jitter=0, blur=0.5, blur_sigma=(0, 1), blur_after_crop=True, scale=(0.5, 2.0)
    )
    assert all(recipe.load(name).augment == mcubes for name in ("mcubes-ia", "mcubes-iad"))
    assert recipe.load("deliver-rgbd").augment == deliver


@pytest.mark.parametrize("name", recipe.shipped())
def test_antialiasing_is_that_of_the_published_code(name: str) -> None:
    wanted = {"deliver": True, "mcubes": False}.get(name.partition("-")[0])  # METHOD §5; others: as dataset.json says
    assert recipe.load(name).data.antialias is wanted


def test_the_demo_is_small_and_uses_the_paper_s_spmm() -> None:
    demo = recipe.load("demo")
    assert (demo.model.backbone, demo.model.encoder, demo.data.image_size) == ("nano", "lora", 128)
    assert demo.spmm.variant == "paper"
    assert demo.data.modalities == ("img", "depth", "event", "lidar")


@pytest.mark.parametrize("name", recipe.shipped())
def test_a_recipe_written_out_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    resolved = recipe.load(name, ["optim.eps=1e-12", "optim.lr=3.5e-4", "about='yes: 010 #x'"])
    path = tmp_path / "other.yaml"
    path.write_text(resolved.to_yaml(), encoding="utf-8")
    assert recipe.load(path) == resolved
    assert "modalities: [" in resolved.to_yaml()


@pytest.mark.parametrize("name", [*PAPER, "demo", "default"])
def test_a_shipped_recipe_leaves_no_spmm_key_out(name: str) -> None:
    text = recipe.shipped()[name].read_text(encoding="utf-8")
    spmm = text.split("\nspmm:\n")[1].split("\n\n")[0]
    assert "variant:" in spmm and "weight:" in spmm


def test_a_recipe_without_a_name_is_called_as_its_file(file: Path) -> None:
    assert recipe.load(file).name == "mine"


def test_numbers_in_exponent_form_are_numbers(file: Path) -> None:
    assert recipe.load(file).optim.lr == 0.0001
    assert recipe.load(file, ["optim.lr=2e-3", "spmm.weight=65536"]).optim.lr == 0.002


def test_the_last_override_wins_and_null_clears(file: Path) -> None:
    loaded = recipe.load(file, ["train.max_steps=3", "train.max_steps=null", "optim.lr=1", "optim.lr=2"])
    assert loaded.train.max_steps is None
    assert loaded.optim.lr == 2


def test_overrides_make_sections_and_read_lists(file: Path) -> None:
    loaded = recipe.load(file, ["model.lora.rank=8", "data.modalities=[img, depth]", "augment.scale=[1, 1]"])
    assert loaded.model.lora.rank == 8
    assert loaded.data.modalities == ("img", "depth")
    assert loaded.augment.scale == (1.0, 1.0)


# RELIABILITY row 44, and its kin: what stands in the file instead of a line, and the line and words of the refusal.
LR, NANO, IMG, EPOCHS = "  lr: 1e-4", "  backbone: nano", "  modalities: [img]", "  epochs: 1"
WRONG = [
    (LR, '  lr: "abc"', '11: optim.lr: must be a number (got "abc")'),
    (LR, '  lr: "1e-4"', '11: optim.lr: must be a number (got "1e-4")'),
    (LR, "  lr: true", "11: optim.lr: must be a number (got true)"),
    (LR, "  lr: 0", "11: optim.lr: must be greater than 0 (got 0)"),
    (LR, "  lr:", "11: optim.lr: must be a number (got null)"),
    (LR, "  lr: .nan", "11: .nan is not a finite number"),
    (LR, "  lr: .inf", "11: .inf is not a finite number"),
    (LR, "  lrr: 1", "11: optim: unknown key 'lrr'; did you mean 'lr'? (known: lr, weight_decay"),
    (LR, "  lr: 1\n  lrr: 1", "12: optim: unknown key 'lrr'; did you mean 'lr'? (known: lr, weight_decay"),
    (LR, "  lr: 1\n  lr: 2", "12: the key 'lr' is given twice (first on line 11)"),
    (LR, "  lr: !!python/object:os.system 1", "11: the tag"),
    (LR, "\tlr: 1", "11: a tab in the indentation"),
    (LR, f"  lr: {'[' * 3000}{']' * 3000}", "11: nested deeper than 20 levels"),
    (LR, "  lr: 010", "11: 010 has a leading zero"),
    (EPOCHS, "  epochs: 1\n  batch: 0", "14: train.batch: must be greater than 0 (got 0)"),
    (EPOCHS, "  epochs: true", "13: train.epochs: must be a whole number (got true)"),
    (EPOCHS, '  epochs: "1"', '13: train.epochs: must be a whole number (got "1")'),
    (EPOCHS, "  epochs: 1.5", "13: train.epochs: must be a whole number (got 1.5)"),
    (EPOCHS, "  epochs: 1\ngpus: 99", "14: top level: unknown key 'gpus' (known: name, about, data"),
    (EPOCHS, "  epochs: 1\nbatch: 9", "14: top level: unknown key 'batch'; did you mean 'train.batch'?"),
    (NANO, f"{NANO}\n  lora:\n    rnak: 4", "8: model.lora: unknown key 'rnak'; did you mean 'rank'?"),
    (NANO, f"{NANO}\n  lora: 4", "7: model.lora: must be a section with the keys rank, alpha"),
    (NANO, f"{NANO}\n  object_gate: 1", "7: model.object_gate: must be true or false (got 1)"),
    (NANO, f"{NANO}\n  object_gate: on", '7: model.object_gate: must be true or false (got "on")'),
    (NANO, "  backbone: tiny", "6: model.backbone: must be 'nano', 'sam2-hiera-tiny'"),
    (NANO, "  backbone: sam2-hiera-tiny\n  base_weights: random", "5: model: base_weights: 'random' is allowed"),
    (IMG, "  modalities: img", "3: data.modalities: must be a list, such as [a, b] (got \"img\")"),
    (IMG, "  modalities: []", "3: data.modalities: must have at least 1 item, not 0 (got [])"),
    (IMG, "  modalities: [img, img]", "3: data.modalities: a modality occurs twice"),
    (IMG, "  modalities:\n    - img\n    - 3", "5: data.modalities.1: must be text (got 3)"),
    ("  image_size: 64", "  image_size: 65", "4: data.image_size: must be a multiple of 32 (got 65)"),
    ("  dataset: synthetic", "  dataset: ../x", "2: data.dataset: must be a word of letters, digits"),
    (LR, "", "10: optim: must be a section with the keys lr, weight_decay"),
    ("  variant: paper", "", "7: spmm.variant: is required and missing"),
    ("  weight: 1", "", "7: spmm.weight: is required and missing"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "instead", "message"), WRONG)
def test_a_wrong_file_is_refused_by_line_key_and_reason(file: Path, line: str, instead: str, message: str) -> None:
    assert line in MINIMAL
    file.write_text(MINIMAL.replace(line, instead, 1))
    assert refusal(file).startswith(f"FILE:{message}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.rnak=4", ": model.lora: unknown key 'rnak'; did you mean 'rank'? (known: rank,"),
        ("model.lora=4", ": model.lora: must be a section"),
        ("model.lora={rnak: 4}", ": model.lora: unknown key 'rnak'"),
        ("optim.lr=abc", ': optim.lr: must be a number (got "abc")'),
        ("optim.lr=nan", ":1: nan is not a finite number"),
        ("optim.lr=null", ": optim.lr: must be a number (got null)"),
        ("optim.lr.x=1", ": 'lr' is a value, not a section"),
        ("optim.lr", ": must be key=value"),
        ("=1", ": must be key=value"),
        ("optim.betas=[0.9]", ": optim.betas"),
        ("optim.betas=[0.9, 1.0]", ": optim.betas.1: must be less than 1"),
        ("augment.scale=[2, 1]", ": augment.scale: must be two numbers, 0 < low <= high"),
        ("augment.blur_sigma=[1, 0]", ": augment.blur_sigma: must be two numbers"),
        ("name=../../x", ": name: must be a word"),
        ("train.keep_checkpoints=1", ": train.keep_checkpoints: must be greater"),
        ("lr=1e-4", ": top level: unknown key 'lr'; did you mean 'optim.lr'?"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_blamed_and_not_the_file(file: Path, override: str, message: str) -> None:
    assert refusal(file, override).startswith(f"--set {override}{message}")


def test_a_recipe_that_is_not_there_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^recipe delivr: is neither a shipped recipe .*did you mean 'deliver'\?"):
        recipe.load("delivr")
    with pytest.raises(UsageError, match=r"^recipe .*nothing\.yaml: does not exist"):
        recipe.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(("content", "kind"), [("", "nothing"), ("[1]", "a list"), ("abc", "text"), ("3", "a number")])
def test_a_file_that_is_no_mapping_is_refused(file: Path, content: str, kind: str) -> None:
    file.write_text(content)
    assert refusal(file) == f"FILE: a recipe is a mapping of sections, not {kind}"


def test_infinity_is_refused_however_it_comes() -> None:
    content = recipe.load("demo").model_dump(mode="json")
    content["optim"]["lr"] = float("inf")
    with pytest.raises(UsageError, match=r"^card: optim\.lr: must be a finite number"):
        recipe.parse(content, where="card")
    with pytest.raises(ValidationError):
        recipe.Optim(lr=float("nan"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "data",
    "augment",
    "model",
    "model.lora",
    "ohem",
    "spmm",
    "optim",
    "train",
    "train.batch",
    "optim.betas",
    "name",
]


@given(key=st.sampled_from(KEYS), value=values)
def test_whatever_stands_in_a_recipe_it_is_read_or_refused_in_one_line(key: str, value: Any) -> None:
    content: dict[str, Any] = recipe.load("demo").model_dump(mode="json")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    try:
        recipe.parse(content, where="x")
    except UsageError as refused:
        assert str(refused).startswith("x: ")


def test_a_refusal_imports_nothing_heavy(file: Path, tmp_path: Path) -> None:
    file.write_text(MINIMAL.replace("  lr: 1e-4", '  lr: "abc"'))
    said = f'memorysam: error [2]: {file}:11: optim.lr: must be a number (got "abc")\n'
    assert imported.run([f"recipes check {file}"], tmp_path) == ([2], said, {"typer", "pyyaml", "pydantic"})


@pytest.mark.parametrize("text", ["1e4", "09", "0x1f", "yes", "null", "~", "a: b", "2026-11-22", "'", "ü × –"])
def test_any_text_survives_to_yaml_and_back(text: str, tmp_path: Path) -> None:
    resolved = recipe.load("demo").model_copy(update={"about": text})
    path = tmp_path / "again.yaml"
    path.write_text(resolved.to_yaml(), encoding="utf-8")
    assert recipe.load(path) == resolved


@pytest.mark.parametrize("text", ["foo", "3", "[1, x]", "[1, -2]", "[1, true]", "[]", "null", "[[1]]", "{a: 1}"])
def test_weights_of_classes_that_cannot_be_are_refused_in_one_message(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        recipe.load("demo", [f"ohem.class_weights={text}"])
    said = str(refused.value)
    assert "ohem.class_weights: must be none, inverse, effective, or a number from 0 to 1e6 for each class" in said
    assert "more)" not in said and "\n" not in said


def test_weights_of_classes_come_back_from_what_a_recipe_writes(tmp_path: Path) -> None:
    for text, wanted in (("[1, 2.5]", (1.0, 2.5)), ("inverse", "inverse")):
        found = recipe.load("demo", [f"ohem.class_weights={text}"])
        (tmp_path / "mine.yaml").write_text(found.to_yaml())
        assert recipe.load(tmp_path / "mine.yaml").ohem.class_weights == found.ohem.class_weights == wanted
