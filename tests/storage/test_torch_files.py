"""Other people's weights. This file may pickle: it makes the files that we refuse."""

from __future__ import annotations

import argparse
import collections
import errno
import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli.errors import EnvironmentFault, WeightsError
from memorysam_cli.storage import torch_files
from memorysam_cli.storage.tensors import read_torch, write_torch


def save(content: object, path: Path, **options: Any) -> None:
    torch.save(content, path, **options)


def some() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {"a.weight": torch.randn(40, 50, generator=random), "a.bias": torch.arange(5, dtype=torch.bfloat16)}


def same(found: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(found, some(), rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("is_zip", [True, False])
def test_state_dicts_are_read_plain_or_wrapped(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    ordered = collections.OrderedDict(some())
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in some().items()}
    harmless = {"epoch": 3, "best": np.float64(0.5), "scores": [np.float32(1), np.int64(2)], "name": "x"}
    for content in (some(), ordered, parameters, {"model": some()}, {"model_state_dict": ordered, **harmless}):
        save(content, path, _use_new_zipfile_serialization=is_zip)
        same(read_torch(path))


def test_sharing_is_allowed_but_claiming_more_than_is_stored_is_not(tmp_path: Path) -> None:
    weight = torch.ones(10)
    save({"a": weight, "b": weight}, tmp_path / "x.pt")
    assert read_torch(tmp_path / "x.pt")["b"].shape == (10,)
    save({"a": torch.ones(1).expand(10**12)}, tmp_path / "y.pt")
    with pytest.raises(WeightsError, match="'a' claims 4000000000000 bytes"):
        read_torch(tmp_path / "y.pt")


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw", "raw protocol 0", "hidden in a state dict"])
def test_code_is_never_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open the lock
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    if kind.startswith("raw"):
        path.write_bytes(pickle.dumps(Canary(canary), protocol=0 if "0" in kind else 4))
    else:
        content = {"model": some(), "extra": Canary(canary)} if "state" in kind else Canary(canary)
        save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(WeightsError, match=r"x\.pt: (contains posix\.system|truncated, damaged or not)") as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_canary_would_have_sung(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


class Opaque:
    """A class of somebody else's code base."""


BENIGN: dict[str, tuple[object, str]] = {
    "whole module": (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear.*state_dict"),
    "namespace": ({"model": some(), "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace"),
    "own class": ({"model": Opaque()}, "Opaque"),
    "number": ({"a": torch.ones(1), "step": 3}, "'step' is a int, not a tensor"),
    "nested": ({"net": {"a": torch.ones(1)}}, "'net' is a dict, not a tensor"),
    "number as key": ({3: torch.ones(1)}, "the key '3' is a int"),
    "list": ([torch.ones(1)], "holds a list"),
    "tensor": (torch.ones(1), "holds a Tensor"),
    "nothing": ({}, "holds nothing"),
    "empty model": ({"model": {}}, "holds nothing"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "'a' is a sparse"),
    "nan": ({"a": torch.tensor([1.0, float("nan")])}, r"NaN or infinity in 1 tensors \(a\)"),
}


@pytest.mark.parametrize("name", BENIGN)
def test_anything_but_named_finite_tensors_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, words = BENIGN[name]
    save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=words) as caught:
        read_torch(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_torchscript_is_refused_as_such(tmp_path: Path) -> None:
    save(some(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:  # the mark of torch.jit.save, which is deprecated
        archive.writestr("x/constants.pkl", b"\x80\x02).")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_torch(tmp_path / "x.pt")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    save({"a": torch.zeros(10**6)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.namelist():
            bomb.writestr(entry, source.read(entry))
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(WeightsError, match="compressed"):
        read_torch(tmp_path / "bomb.pt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_cut_anywhere_is_refused(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(some(), path, _use_new_zipfile_serialization=is_zip)
    size = path.stat().st_size
    for cut in sorted({1 + (size - 2) * part // 100 for part in range(101)}, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(WeightsError) as caught:
            read_torch(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(some(), tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    silent = naive = 0
    for position in np.random.default_rng(4).integers(0, len(data), 100):
        flipped = data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]
        (tmp_path / "y.pt").write_bytes(flipped)
        naive += is_other(lambda flipped=flipped: torch.load(io.BytesIO(flipped), weights_only=True))
        silent += is_other(lambda: read_torch(tmp_path / "y.pt"))
    assert silent == 0
    assert naive > 50  # what torch alone would have believed


def is_other(read: Any) -> bool:
    """Whether reading gives other weights without a word."""
    try:
        found = read()
    except Exception:  # torch has many
        return False
    return not all(torch.equal(tensor, some()[name]) for name, tensor in found.items())


def test_a_torch_with_known_holes_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(some(), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(EnvironmentFault, match=r"install torch 2\.10"):
        read_torch(tmp_path / "x.pt")


def test_what_is_written_is_read_back_by_torch_alone_and_is_the_same_each_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.pth"
    digest = write_torch(path, some())
    same(torch.load(path, weights_only=True))
    same(read_torch(path))
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest == write_torch(path, some())
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_views_and_shared_tensors_are_written_without_what_lies_around_them(tmp_path: Path) -> None:
    large = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))
    state = {"row": large[3], "column": large[:, 3], "again": large[3], "parameter": torch.nn.Parameter(large[:2].T)}
    write_torch(tmp_path / "x.pth", state)
    assert (tmp_path / "x.pth").stat().st_size < 40_000
    found = torch.load(tmp_path / "x.pth", weights_only=True)
    assert all(torch.equal(found[name], state[name]) and found[name].is_contiguous() for name in state)
    assert len({tensor.data_ptr() for tensor in found.values()}) == 4


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensors \(a\)"):
        write_torch(tmp_path / "x.pth", {"a": torch.tensor([float("inf")])})
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the writer's writes in turn."""
    path = tmp_path / "x.pth"
    path.write_bytes(b"mine")
    real, left = torch_files._Watched.write, 0

    def write(self: Any, data: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            self.stream = FullDisk()
        return real(self, data)

    monkeypatch.setattr(torch_files._Watched, "write", write)
    faults = 0
    while path.read_bytes() == b"mine":
        left = faults
        try:
            write_torch(path, some())
        except EnvironmentFault as fault:
            faults += 1
            assert "x.pth: cannot write: No space left on device (needs" in str(fault)
            assert list(tmp_path.iterdir()) == [path]
    assert faults > 5
    same(read_torch(path))


def test_a_file_that_does_not_read_back_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "_save", lambda state, path: torch.save(state | {"a.bias": torch.zeros(5)}, path))
    with pytest.raises(EnvironmentFault, match="read back differs"):
        write_torch(tmp_path / "x.pth", some())
    assert list(tmp_path.iterdir()) == []
