"""``memorysam weights import``: the authors' numbers come out, and every other file is refused by name."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memorysam_cli.model import load, read_card
from memorysam_cli.model.reference import reference_shapes
from memorysam_cli.storage import tensors

from ..engine.stand_ins import write_data
from ..model.conftest import Golden
from ..model.upstream import drawn
from .trained import Program, save_weights

CASES = {
    "tiny_m2": ("deliver-rgbd", None),
    "tiny_m3_b2_gate": ("deliver", "img,depth,event"),
    "tiny_m4_b2": ("deliver", None),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    monkeypatch.chdir(tmp_path)
    return Program(capsys)


@pytest.fixture(scope="module")
def nano() -> dict[str, Tensor]:
    """An upstream state of nano, with the released weights' 25 tokens."""
    return drawn(reference_shapes("nano", tokens=25, rank=4))


@pytest.fixture(scope="module")
def nano_file(nano: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nano") / "nano.pth"
    torch.save(nano, path)
    return path


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def golden_state() -> dict[str, Tensor]:
    return Golden().state(0)


@pytest.mark.parametrize(
    "tag", [pytest.param(tag, marks=[pytest.mark.slow] * (tag != "tiny_m3_b2_gate")) for tag in CASES]
)
def test_imported_weights_give_the_references_numbers(
    tag: str, golden_state: dict[str, Tensor], run: Program, tmp_path: Path
) -> None:
    golden = Golden()
    case = golden.case(tag)
    bias = torch.full((1,), float(case["object_score_bias"]))
    state = golden_state | {"sam.sam_mask_decoder.pred_obj_score_head.layers.2.bias": bias}
    torch.save(state, tmp_path / "weights.pth")
    recipe, modalities = CASES[tag]
    chosen = [] if modalities is None else ["--modalities", modalities]
    ended = run("weights", "import", "weights.pth", "--out", "w.safetensors", "--recipe", recipe, *chosen, "--json")
    assert ended.code == 0, ended.err
    assert ended.answer["tensors"] == 648 and ended.answer["backbone"] == "sam2-hiera-tiny"
    network = load(tmp_path / "w.safetensors")
    batch, count = case["classes"].shape[0], int(case["modalities"])
    assert len(network.card.modalities) == count
    frames = golden.frames(tag, modalities=count, batch=batch)
    with torch.no_grad():
        output = network(frames)
        features, logits = output.features, network.upsample(output, size=(256, 256))
    assert relative_error(logits[:, :, ::8, ::8], torch.from_numpy(case["logits"])) < 1e-5
    assert relative_error(features[:, :, ::4, ::4], torch.from_numpy(case["features"])) < 1e-5
    assert float((logits.argmax(1) == torch.from_numpy(case["classes"])).float().mean()) >= 0.999


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """As upstream's training saves it, from several GPUs."""
    return {
        "epoch": 95,
        "model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "loss": torch.tensor(0.5),
        "scheduler_state_dict": {"last_epoch": 3, "base_lrs": [6e-4]},
        "best_miou": np.float64(65.38),
    }


def test_every_container_gives_the_same_tensors(nano: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    torch.save(nano, tmp_path / "RGBDEL_epoch95_65.38.pth")
    torch.save(wrapped(nano), tmp_path / "RGBDEL_epoch95_65.38_checkpoint.pth")
    tensors.write(tmp_path / "RGBDEL_epoch95_65.38.safetensors", nano, {})
    cards = []
    for index, name in enumerate(
        ("RGBDEL_epoch95_65.38.pth", "RGBDEL_epoch95_65.38_checkpoint.pth", "RGBDEL_epoch95_65.38.safetensors")
    ):
        ended = run("weights", "import", name, "--out", f"{index}.safetensors", "-q")
        assert ended.code == 0 and ended.err == "", ended.err
        cards.append(read_card(tmp_path / f"{index}.safetensors"))
    assert len({card.tensors_sha256 for card in cards}) == 1
    for card in cards:
        assert card.kind == "complete" and card.recipe.name == "deliver" and card.tokens == 25
        assert card.recipe.model.backbone == "nano" and card.recipe.model.lora.rank == 4 and card.image_size == 1024
        assert card.metric is not None
        metric = card.metric
        assert (metric.miou, metric.epoch, metric.step, metric.split) == (65.38, 95, None, "val")
        assert [modality.name for modality in card.modalities] == ["img", "depth", "event", "lidar"]
        assert all(modality.antialias for modality in card.modalities)  # METHOD §5
    assert len({card.base.sha256 for card in cards}) == 3 and cards[0].base.source == "import:RGBDEL_epoch95_65.38.pth"


def test_the_file_needs_no_base_and_every_command_takes_it(
    nano: dict[str, Tensor], run: Program, tmp_path: Path
) -> None:
    torch.save(nano, tmp_path / "RGBDEL_epoch95_65.38.pth")
    assert run("weights", "import", "RGBDEL_epoch95_65.38.pth", "--out", "w.safetensors").code == 0
    (tmp_path / "RGBDEL_epoch95_65.38.pth").unlink()
    told = run("weights", "info", "w.safetensors")
    assert "mIoU 65.38 on val (resized), epoch 95" in told.out and "imported from RGBDEL_epoch95" in told.out
    assert run("weights", "verify", "w.safetensors", "--json").answer["kind"] == "complete"
    assert run("weights", "merge", "w.safetensors", "--out", "m.safetensors").code == 0
    frames = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    with torch.no_grad():
        torch.testing.assert_close(load("m.safetensors").logits(frames), load("w.safetensors").logits(frames))


def test_mcubes_has_twenty_classes_of_25_tokens_and_was_chosen_on_test(
    nano: dict[str, Tensor], run: Program, tmp_path: Path
) -> None:
    torch.save(nano, tmp_path / "IAD_epoch326_52.2.pth")
    ended = run("weights", "import", "IAD_epoch326_52.2.pth", "--out", "w.safetensors", "--json")
    assert ended.answer["classes"] == 20 and ended.answer["tokens"] == 25 and ended.answer["recipe"] == "mcubes-iad"
    assert "no independent test" in ended.err
    network = load("w.safetensors")
    assert network.card.recipe.data.selection_split == "test"
    assert network.card.metric is not None and network.card.metric.split == "test"
    assert not any(modality.antialias for modality in network.card.modalities)
    frames = [torch.zeros(1, 3, 64, 64) for _ in range(3)]
    with torch.no_grad():
        assert network.logits(frames).shape == (1, 20, 64, 64)
        assert network(frames).logits.shape[1] == 25


def test_a_prepared_data_set_says_what_it_is(nano: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    info = write_data(tmp_path / "data").info
    content = run("recipes", "show", "deliver-rgbd").out.replace("dataset: deliver", f"dataset: {info.name}")
    (tmp_path / "own.yaml").write_text(content)
    torch.save(nano, tmp_path / "x.pth")
    command = ("weights", "import", "x.pth", "--out", "w.safetensors", "--recipe", "own.yaml")
    assert run(*command, "--data", "data").code == 0
    assert read_card(tmp_path / "w.safetensors").dataset == info
    ended = run(*command, "--data", "elsewhere", "--overwrite")
    assert ended.code == 3 and "elsewhere" in ended.err
    ended = run(*command, "--overwrite")
    assert ended.code == 0, "prepared in ./data, the default root"
    ended = run(*command, "--modalities", "img,sonar", "--overwrite")
    assert ended.code == 2 and "no modality 'sonar'" in ended.err
    assert run("weights", "import", "x.pth", "--out", "w.safetensors", "--recipe", "default", "--overwrite").code == 0
    assert [modality.name for modality in read_card(tmp_path / "w.safetensors").modalities] == [
        modality.name for modality in info.modalities
    ]
    (tmp_path / "data").rename(tmp_path / "moved")
    ended = run(*command, "--overwrite")
    assert ended.code == 2 and "give --data ROOT" in ended.err


def test_too_few_tokens_for_the_data_set_are_refused(run: Program, tmp_path: Path) -> None:
    torch.save(drawn(reference_shapes("nano", tokens=20, rank=4)), tmp_path / "RGBD.pth")
    ended = run("weights", "import", "RGBD.pth", "--out", "w.safetensors")
    assert ended.code == 5 and "20 class tokens, but DELIVER has 25 classes" in ended.err


USAGE = {
    "a name that says nothing": (["x.pth"], "give --recipe (deliver, deliver-rgbd, mcubes,"),
    "a name that says otherwise": (["RGBD_epoch1_2.0.pth", "--recipe", "deliver"], "its name says RGBD (img, depth)"),
    "no such recipe": (["x.pth", "--recipe", "delivr"], "did you mean 'deliver'?"),
    "a missing word": (["x.pth", "--recipe", "deliver", "--modalities", "img,,depth"], "a name is missing"),
    "an unknown modality": (["x.pth", "--recipe", "deliver", "--modalities", "img,radar"], "no modality 'radar'"),
    "a modality twice": (["x.pth", "--recipe", "deliver", "--modalities", "img,img"], "occurs twice"),
    "a target of another kind": (["x.pth", "--recipe", "deliver", "--out", "w.pth"], "must end in .safetensors"),
    "a target that is there": (["x.pth", "--recipe", "deliver", "--out", "there.safetensors"], "exists already"),
}


@pytest.mark.parametrize("mistake", USAGE)
def test_a_wrong_command_writes_nothing(mistake: str, nano_file: Path, run: Program, tmp_path: Path) -> None:
    for name in ("x.pth", "RGBD_epoch1_2.0.pth"):
        shutil.copy(nano_file, tmp_path / name)
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    arguments, words = USAGE[mistake]
    before = tree_hash(tmp_path)
    target = [] if "--out" in arguments else ["--out", "w.safetensors"]
    ended = run("weights", "import", *arguments, *target)
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1, ended.err
    assert tree_hash(tmp_path) == before


# --- files that must not be believed (RELIABILITY §4, rows 27 to 35) ---

Bad = Callable[[dict[str, Tensor]], bytes]


def tree_hash(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.is_file()} ".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def saved(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


class Canary:
    """Would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


def torchscript(state: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO(saved(state))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    return stream.getvalue()


def compressed(state: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(10**7)}))) as source,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.namelist():
            bomb.writestr(entry, source.read(entry))
    return stream.getvalue()


def flipped(state: dict[str, Tensor]) -> bytes:
    data = bytearray(saved(state))
    data[len(data) // 2] ^= 4
    return bytes(data)


def safetensors(header: object, *, length: int | None = None, data: bytes = b"\0" * 8) -> Bad:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda _: struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, *, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def changed(change: Callable[[dict[str, Tensor]], object]) -> Bad:
    def make(state: dict[str, Tensor]) -> bytes:
        own = dict(state)
        change(own)
        return saved(own)

    return make


def with_nan(state: dict[str, Tensor]) -> None:
    state["sam.no_mem_embed"] = torch.full_like(state["sam.no_mem_embed"], float("nan"))


def of_large(state: dict[str, Tensor]) -> None:
    """Three of nano's tensors, and the shape of one of Hiera large's."""
    kept = list(state)[:3]
    for name in [name for name in state if name not in kept]:
        del state[name]
    state["sam.image_encoder.trunk.patch_embed.proj.weight"] = torch.zeros(144, 3, 7, 7)


TORCH_FILES: dict[str, tuple[Bad, str]] = {
    "27 zip": (lambda _: saved(Canary()), "contains posix.system"),
    "27 legacy": (lambda _: saved(Canary(), _use_new_zipfile_serialization=False), "contains posix.system"),
    "27 raw": (lambda _: pickle.dumps(Canary(), protocol=4), "contains posix.system"),
    "27 protocol 0": (lambda _: pickle.dumps(Canary(), protocol=0), "contains posix.system"),
    "28 module": (lambda _: saved(torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "28 namespace": (lambda s: saved({"model": s, "args": argparse.Namespace(lr=1)}), "argparse.Namespace (at 'args')"),
    "29": (torchscript, "TorchScript"),
    "30 pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS pointer"),
    "30 page": (lambda _: b"<!DOCTYPE html><p>404</p>", "a web page"),
    "30 empty": (lambda _: b"", "empty (0 bytes)"),
    "31 truncated": (lambda s: saved(s)[:200_000], "truncated"),
    "31 flipped": (flipped, "checksum"),
    "32 compressed": (compressed, "compressed"),
    "32 length of 4 GB": (lambda _: b"\x80\x04\x8d" + struct.pack("<Q", 4 * 10**9) + b"x", "truncated"),
    "34 a tensor is missing": (changed(lambda s: s.pop("sam.no_mem_embed")), "1 missing (sam.no_mem_embed)"),
    "34 one is extra": (changed(lambda s: s.update({"sam.x": torch.ones(1)})), "1 unknown (sam.x)"),
    "34 three of 400": (changed(of_large), "3 of the 474 tensors of MemorySAM on nano"),
    "34 without prefix": (
        lambda s: saved({n.removeprefix("sam."): t for n, t in s.items()}),
        "lack the prefix 'sam.'",
    ),
    "34 SAM 2's own": (
        lambda s: saved({"model": {n.removeprefix("sam."): t for n, t in s.items() if "linear_" not in n}}),
        "SAM 2's own weights",
    ),
    "34 another model": (lambda _: saved({"fc.weight": torch.ones(1)}), "none of its 1 tensors"),
    "34 ranks that differ": (
        changed(lambda s: s.update({"sam.image_encoder.trunk.blocks.3.attn.qkv.linear_a_q.weight": torch.ones(9, 64)})),
        "is (9, 64), not (4, 64)",
    ),
    "35": (changed(with_nan), "NaN or infinity in 1 tensor (sam.no_mem_embed)"),
}
SAFETENSORS: dict[str, tuple[Bad, str]] = {
    "33 header of 2^63": (safetensors({}, length=2**63), "a header of 9223372036854775808 bytes"),
    "33 header of 101 MB": (safetensors({}, length=101_000_000), "a header of 101000000 bytes"),
    "33 no JSON": (safetensors(b"hello, I am no JSON"), "not JSON"),
    "33 a hole": (safetensors({"a": tensor(0, 8), "b": tensor(12, 20)}, data=b"\0" * 20), "not usable"),
    "33 an overlap": (safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, data=b"\0" * 12), "not usable"),
    "33 trailing bytes": (safetensors({"a": tensor(0, 8)}, data=b"\0" * 99), "not usable"),
    "33 shape overflow": (safetensors({"a": tensor(0, 8, shape=(2**62, 2**62))}), "not usable"),
    "33 dtype": (safetensors({"a": tensor(0, 8, dtype="F99")}), "not usable"),
    "33 twice": (
        safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'),
        "'a' occurs 2 times",
    ),
    "33 none": (safetensors({}), "0 tensors"),
    "33 200000 empty": (
        safetensors({str(n): tensor(0, 0, shape=(0,)) for n in range(200_000)}, data=b""),
        "tensors; 1 to 20000 are allowed",
    ),
    "33 a torch file": (saved, "a file of torch.save"),
    "31 cut": (safetensors({"a": tensor(0, 8)}, data=b"\0" * 3), "truncated"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_must_not_be_believed(suffix: str, nano: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    """One test for all rows: making each file anew would cost more than the refusals."""
    faults = []
    for row, (make, words) in (TORCH_FILES if suffix == "pth" else SAFETENSORS).items():
        path = tmp_path / f"RGBDEL_epoch95_65.38.{suffix}"
        path.write_bytes(make(nano))
        before = tree_hash(tmp_path)
        ended = run("weights", "import", path.name, "--out", "w.safetensors")
        is_right = ended.code == 5 and words in ended.err and path.name in ended.err and ended.err.count("\n") == 1
        if not is_right or ended.out or tree_hash(tmp_path) != before:
            faults.append(f"row {row}: [{ended.code}] {ended.err}")
    assert not faults, "\n".join(faults)


def test_what_is_ours_already_is_said_to_be(run: Program, tmp_path: Path) -> None:
    info = write_data(tmp_path / "data").info
    save_weights(tmp_path / "RGBD.safetensors", info)
    ended = run("weights", "import", "RGBD.safetensors", "--out", "w.safetensors")
    assert ended.code == 5 and "is already a memorysam weights file" in ended.err


def test_half_precision_is_taken_without_loss(nano: dict[str, Tensor], run: Program, tmp_path: Path) -> None:
    torch.save({name: value.half() for name, value in nano.items()}, tmp_path / "RGBD.pth")
    assert run("weights", "import", "RGBD.pth", "--out", "w.safetensors").code == 0
    found = tensors.read(tmp_path / "w.safetensors")[0]
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert torch.equal(found["sam.no_mem_embed"], nano["sam.no_mem_embed"].half().float())


def test_a_target_that_cannot_be_written_is_the_machine_s_fault(
    nano: dict[str, Tensor], run: Program, tmp_path: Path
) -> None:
    torch.save(nano, tmp_path / "RGBD.pth")
    (tmp_path / "file").write_text("in the way")
    ended = run("weights", "import", "RGBD.pth", "--out", "file/w.safetensors")
    assert ended.code == 6 and "error [6]: file: cannot write: " in ended.err and "is a file" in ended.err
