"""``memorysam weights export``: other people's code reads what is written, and computes the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.encoders.hiera import split
from memorysam_cli.model import load, weights
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.lora import peft
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.reference import reference_shapes
from memorysam_cli.storage import tensors

from ..engine.stand_ins import write_data
from ..model.conftest import Golden
from ..model.upstream import drawn
from .trained import Program

LORA_B = "sam.image_encoder.trunk.blocks.{}.attn.qkv.{}.lora_B.default.weight"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    monkeypatch.chdir(tmp_path)
    return Program(capsys)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """An upstream state, and the file that it was imported into."""
    folder = tmp_path_factory.mktemp("upstream")
    state = drawn(reference_shapes("nano", tokens=25, rank=4))
    torch.save(state, folder / "RGBD_epoch1_2.0.pth")
    words = ["weights", "import", str(folder / "RGBD_epoch1_2.0.pth"), "--out", str(folder / "w.safetensors")]
    assert app.run(words) == 0
    return state, folder / "w.safetensors"


@pytest.fixture
def imported(upstream: tuple[dict[str, Tensor], Path], tmp_path: Path) -> dict[str, Tensor]:
    """``w.safetensors``, imported from the state that is returned."""
    state, path = upstream
    shutil.copy(path, tmp_path)
    return state


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetInfo]:
    root = tmp_path_factory.mktemp("data")
    return root, write_data(root).info


@pytest.fixture
def info(written: tuple[Path, DatasetInfo], tmp_path: Path) -> DatasetInfo:
    """Of the data set in ``data``."""
    (tmp_path / "data").symlink_to(written[0])
    return written[1]


def trained(path: Path, info: DatasetInfo, *, wide: bool = True, **model: object) -> weights.Segmenter:
    """Weights of our own training, moved away from their start; in blocks 1, 3 and 5 as far as is asked."""
    recipe = recipes.parse(
        {
            "name": "small",
            "data": {"dataset": info.name, "modalities": ["img", "depth"], "image_size": 64},
            "model": {"backbone": "nano", "base_weights": "random", "object_gate": False, **model},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1},
        },
        where="test",
    )
    network = weights.build_for_training(recipe, info)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        if not wide:
            own = dict(network.named_parameters())
            for block in (1, 3, 5):
                q, v = (own[LORA_B.format(block, part)] for part in "qv")
                q[q.shape[0] // 2 :] = 0
                v[: v.shape[0] // 2] = 0
    weights.save(network, path)
    return network.eval()


def frames(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(count)]


@torch.no_grad()
def same_logits(found: MemorySAM, wanted: MemorySAM) -> None:
    torch.testing.assert_close(found.logits(frames()), wanted.logits(frames()), rtol=1e-4, atol=1e-5)


def exactly(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]


@pytest.mark.parametrize("name", ["r.pth", "r.pt", "r.safetensors"])
def test_what_was_imported_is_exported_bit_for_bit(
    name: str, imported: dict[str, Tensor], run: Program, tmp_path: Path
) -> None:
    ended = run("weights", "export", "w.safetensors", "--format", "reference", "--out", name, "--json")
    assert ended.code == 0 and ended.err == "", ended.err
    assert ended.answer["tensors"] == 474 and ended.answer["sha256"] == tensors.sha256(tmp_path / name)
    if name.endswith(".safetensors"):
        exactly(tensors.read(tmp_path / name)[0], imported)
    else:
        exactly(torch.load(tmp_path / name, weights_only=True), imported)


@pytest.mark.slow
def test_the_golden_state_comes_back_bit_for_bit(run: Program, tmp_path: Path) -> None:
    state = Golden().state(5.0)
    torch.save(state, tmp_path / "RGBD.pth")
    assert run("weights", "import", "RGBD.pth", "--out", "w.safetensors").code == 0
    assert run("weights", "export", "w.safetensors", "--format", "reference", "--out", "r.pth").code == 0
    exactly(torch.load(tmp_path / "r.pth", weights_only=True), state)


def test_weights_trained_here_go_there_and_back(info: DatasetInfo, run: Program, tmp_path: Path) -> None:
    network = trained(tmp_path / "w.safetensors", info, wide=False, lora={"rank": 3, "alpha": 6})
    ended = run("weights", "export", "w.safetensors", "--format", "reference", "--out", "RGBD.pth")
    assert ended.code == 0 and "class tokens; upstream's code builds 25" in ended.err
    (tmp_path / "own.yaml").write_text(network.card.recipe.to_yaml())
    command = ("weights", "import", "RGBD.pth", "--out", "back.safetensors", "--recipe", "own.yaml", "--data", "data")
    assert run(*command).code == 0
    back = load(tmp_path / "back.safetensors")
    back.object_gate = False  # the upstream code knows it open only
    same_logits(back, network)


def test_lora_that_the_upstream_layout_cannot_hold_is_refused(info: DatasetInfo, run: Program, tmp_path: Path) -> None:
    trained(tmp_path / "w.safetensors", info)
    ended = run("weights", "export", "w.safetensors", "--format", "reference", "--out", "r.pth")
    assert ended.code == 5 and "transition blocks (1, 3, 5)" in ended.err and "--format merged" in ended.err
    assert not (tmp_path / "r.pth").exists()


@pytest.mark.parametrize(
    "model",
    [{"modality_embedding": True}, {"memory_mask": "classes"}, {"fusion": "two_pass"}, {"fusion": "two_pass_alone"}],
)
def test_what_plain_sam2_would_lose_is_refused_and_named(
    model: dict[str, object], info: DatasetInfo, run: Program, tmp_path: Path
) -> None:
    """Names that sam2 does not know, or frames that come together otherwise than it would have them."""
    (key,) = model
    trained(tmp_path / "w.safetensors", info, **model)
    for form in ("merged", "reference"):
        ended = run("weights", "export", "w.safetensors", "--format", form, "--out", "r.safetensors")
        assert ended.code == 5 and f"was trained with model.{key}, which " in ended.err and ended.err.count("\n") == 1
        assert "weights merge" in ended.err and "memorysam export" in ended.err
        assert not (tmp_path / "r.safetensors").exists()


KINDS = {
    "dora": ({"lora": {"dora": True}}, "reference", "has DoRA"),
    "other targets": ({"lora": {"targets": ["q", "k", "v", "proj"]}}, "reference", "has LoRA on q, k, v, proj"),
    "no LoRA": ({"encoder": "frozen"}, "reference", "with encoder 'frozen'"),
    "all trained": ({"encoder": "full"}, "peft", "with encoder 'full'"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_training_have_no_place_there(
    kind: str, info: DatasetInfo, run: Program, tmp_path: Path
) -> None:
    model, form, words = KINDS[kind]
    network = trained(tmp_path / "w.safetensors", info, **model)
    ended = run("weights", "export", "w.safetensors", "--format", form, "--out", "r.pth" if form != "peft" else "r")
    assert ended.code == 5 and words in ended.err and "use --format merged" in ended.err
    assert run("weights", "export", "w.safetensors", "--format", "merged", "--out", "m.pth").code == 0
    same_logits(plain(tmp_path / "m.pth", network), network)


def plain(path: Path, like: weights.Segmenter) -> MemorySAM:
    """A network that knows sam2's names alone, filled strictly."""
    sam = build_sam2(like.card.recipe.model.backbone, tokens=like.card.tokens)
    sam.load_state_dict(torch.load(path, weights_only=True))
    return MemorySAM(sam, classes=like.classes, object_gate=like.object_gate).eval()


def test_merged_is_a_plain_sam2_state_dict_with_the_class_tokens(
    imported: dict[str, Tensor], run: Program, tmp_path: Path
) -> None:
    assert run("weights", "export", "w.safetensors", "--format", "merged", "--out", "m.pth").code == 0
    network = load(tmp_path / "w.safetensors")
    same_logits(plain(tmp_path / "m.pth", network), network)
    found = torch.load(tmp_path / "m.pth", weights_only=True)
    assert not [name for name in found if name.startswith("sam.") or "lora" in name]
    assert found["sam_mask_decoder.mask_tokens.weight"].shape[0] == 26


@pytest.mark.parametrize(
    "lora", [{}, {"rank": 2, "alpha": 5, "rslora": True}, {"dora": True, "targets": ["q", "proj"]}]
)
def test_peft_s_own_loader_puts_the_adapter_onto_a_split_trunk(
    lora: dict[str, object], info: DatasetInfo, run: Program, tmp_path: Path
) -> None:
    network = trained(tmp_path / "w.safetensors", info, lora=lora)
    assert run("weights", "export", "w.safetensors", "--format", "peft", "--out", "adapter").code == 0
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = weights.build_for_training(network.card.recipe, info).sam.state_dict()
    trunk = build_sam2("nano", tokens=network.card.tokens)
    plain_names = {name.replace(".base_layer", ""): value for name, value in base.items() if "lora" not in name}
    split(trunk.image_encoder.trunk)
    trunk.load_state_dict(plain_names)
    adapted = peft().PeftModel.from_pretrained(trunk.image_encoder.trunk, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        found, wanted = adapted(frames()[0]), network.sam.image_encoder.trunk(frames()[0])
    assert len(found) == 4
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_imported_adapter_has_its_zero_rows(imported: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    assert run("weights", "export", "w.safetensors", "--format", "peft", "--out", "adapter", "--json").code == 0
    found = tensors.read(tmp_path / "adapter" / "adapter_model.safetensors")[0]
    name = "base_model.model.blocks.1.attn.qkv.q.lora_B.weight"
    there = imported["sam.image_encoder.trunk.blocks.1.attn.qkv.linear_b_q.weight"]
    assert torch.equal(found[name][: there.shape[0]], there) and not bool(found[name][there.shape[0] :].any())


def test_what_is_merged_has_no_lora_to_export(imported: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    assert run("weights", "merge", "w.safetensors", "--out", "m.safetensors").code == 0
    for form, out in (("reference", "r.pth"), ("peft", "adapter")):
        ended = run("weights", "export", "m.safetensors", "--format", form, "--out", out)
        assert ended.code == 5 and "its LoRA is folded in" in ended.err
    assert run("weights", "export", "m.safetensors", "--format", "merged", "--out", "a.pth").code == 0
    assert run("weights", "export", "w.safetensors", "--format", "merged", "--out", "b.pth").code == 0
    exactly(torch.load("a.pth", weights_only=True), torch.load("b.pth", weights_only=True))


TARGETS = {
    "no container": (["--format", "reference", "--out", "r.bin"], "must end in .safetensors, .pth, .pt"),
    "a folder with a suffix": (["--format", "peft", "--out", "r.pth"], "a PEFT adapter is a folder"),
    "there already": (["--format", "merged", "--out", "w.safetensors"], "exists already"),
    "a folder with something in it": (["--format", "peft", "--out", "full"], "exists already; give another folder"),
    "an unknown format": (["--format", "onnx", "--out", "r.pth"], "onnx"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_wrong_target_is_refused(target: str, imported: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments, words = TARGETS[target]
    ended = run("weights", "export", "w.safetensors", *arguments)
    assert ended.code == 2 and words in ended.err
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting_is_asked_for(imported: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    (tmp_path / "r.pth").write_bytes(b"mine")
    ended = run("weights", "export", "w.safetensors", "--format", "reference", "--out", "r.pth", "--overwrite")
    assert ended.code == 0
    exactly(torch.load(tmp_path / "r.pth", weights_only=True), imported)


@pytest.mark.parametrize(
    "words",
    [
        ("export", "w.safetensors", "--format", "reference"),
        ("merge", "w.safetensors"),
        ("import", "w.safetensors", "--recipe", "deliver"),
    ],
)
def test_the_file_that_is_read_is_never_the_one_that_is_written(
    imported: dict[str, Tensor], run: Program, tmp_path: Path, words: tuple[str, ...]
) -> None:
    before = (tmp_path / "w.safetensors").read_bytes()
    ended = run("weights", *words, "--out", "./w.safetensors", "--overwrite")
    assert ended.code == 2 and "is the file that is read" in ended.err
    assert (tmp_path / "w.safetensors").read_bytes() == before
