"""Other people's weights. This file may pickle: it makes the files that we refuse."""

from __future__ import annotations

import argparse
import collections
import errno
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli.errors import EnvironmentFault, WeightsError
from memorysam_cli.storage import children, foreign, tensors, torch_format
from memorysam_cli.storage.foreign import read_torch, write_torch
from memorysam_cli.storage.torch_format import Refused


def save(content: object, path: Path, **options: Any) -> None:
    torch.save(content, path, **options)


def some() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {"a.weight": torch.randn(40, 50, generator=random), "a.bias": torch.arange(5, dtype=torch.bfloat16)}


def parse(path: Path) -> dict[str, torch.Tensor]:
    """What the reader's own process does, without the process: for files by the hundred."""
    return foreign.parse(path, is_zip=torch_format.check_archive(path))


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
        same(parse(path))
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


@pytest.mark.parametrize(
    "kind",
    [
        "zip",
        "raw",
        "hidden in a state dict",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("legacy", "raw protocol 0")),
    ],
)
def test_code_is_never_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open the lock
    path, canary = tmp_path / "x.pt", tmp_path / "canary"
    if kind.startswith("raw"):
        path.write_bytes(pickle.dumps(Canary(canary), protocol=0 if "0" in kind else 4))
    else:
        content = {"model": some(), "extra": Canary(canary)} if "state" in kind else Canary(canary)
        save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(WeightsError, match=r"x\.pt: contains posix\.system") as caught:
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
    "module under a key": ({"net": torch.nn.Linear(2, 2)}, r"torch\.nn\.modules\.linear\.Linear \(at 'net'\)"),
    "namespace": ({"model": some(), "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace \(at 'args'\)"),
    "own class": ({"model": Opaque()}, r"Opaque \(at 'model'\)"),
    "complex": ({"a": torch.ones(1, dtype=torch.complex64)}, r"'a' is torch\.complex64; weights are one of F64"),
    "not Unicode": ({"\ud800": torch.ones(1)}, "is not Unicode text"),
    "number": ({"a": torch.ones(1), "step": 3}, "'step' is a int, not a tensor"),
    "nested": ({"net": {"a": torch.ones(1)}}, "'net' is a dict, not a tensor"),
    "number as key": ({3: torch.ones(1)}, "the key '3' is a int"),
    "list": ([torch.ones(1)], "holds a list"),
    "tensor": (torch.ones(1), "holds a Tensor"),
    "nothing": ({}, "holds nothing"),
    "empty model": ({"model": {}}, "holds nothing"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "'a' is a sparse"),
}


@pytest.mark.parametrize("name", BENIGN)
def test_anything_but_named_finite_tensors_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, words = BENIGN[name]
    save(content, tmp_path / "x.pt")
    with pytest.raises(Refused, match=words) as caught:
        parse(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x.pt: NaN or infinity in 1 tensor \(a\)"):
        read_torch(tmp_path / "x.pt")


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
        with pytest.raises(Refused) as caught:
            parse(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(some(), tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    silent = naive = 0
    for position in np.random.default_rng(4).integers(0, len(data), 100):
        flipped = data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]
        (tmp_path / "y.pt").write_bytes(flipped)
        naive += is_other(lambda flipped=flipped: torch.load(io.BytesIO(flipped), weights_only=True))
        silent += is_other(lambda: parse(tmp_path / "y.pt"))
    assert silent == 0
    assert naive > 50  # what torch alone would have believed


def is_other(read: Any) -> bool:
    """Whether reading gives other weights without a word."""
    try:
        found = read()
    except Exception:  # torch has many
        return False
    return not all(torch.equal(tensor, some()[name]) for name, tensor in found.items())


def test_an_archive_that_two_readers_could_read_differently_is_refused(tmp_path: Path) -> None:
    save(some(), tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt") as source:
        program = source.read("x/data.pkl")
    for name, make, words in [
        ("twice", lambda archive: archive.writestr("x/data.pkl", program), "one name"),
        ("two programs", lambda archive: archive.writestr("y/data.pkl", program), "2 records data.pkl"),
        ("comment", lambda archive: setattr(archive, "comment", b"PK"), "two files in one"),
    ]:
        (tmp_path / name).write_bytes(data)
        with zipfile.ZipFile(tmp_path / name, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(archive)
        with pytest.raises(Refused, match=words):
            torch_format.check_archive(tmp_path / name)
    (tmp_path / "before").write_bytes(b"PK\x03\x04 something else" + data)
    with pytest.raises(Refused, match="two files in one"):
        torch_format.check_archive(tmp_path / "before")
    with zipfile.ZipFile(tmp_path / "plain.pt", "w") as archive:
        archive.writestr("a.txt", b"a")
    with pytest.raises(Refused, match=r"0 records data\.pkl"):
        torch_format.check_archive(tmp_path / "plain.pt")


def test_many_names_for_the_same_memory_are_a_bomb(tmp_path: Path) -> None:
    weight = torch.ones(1_000_000)
    save({str(number): weight for number in range(1000)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="share memory and claim 4000000000 bytes"):
        read_torch(tmp_path / "x.pt")


ANSWERS = {
    "an end by a signal": ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
    "too much processor time": ("import os; os.kill(os.getpid(), 24)", "takes more processor time than a file"),
    "no answer": ("pass", "ended by exit code 0"),
    "words": ("print('hello')", "ended by exit code 0"),
    "a list": ("print('[]')", "ended by exit code 0"),
    "no tensors behind the word": ("print('{}')", "ended by exit code 0"),
    "more than the file can hold": (
        'import os, struct; t = b\'{"a":{"dtype":"U8","shape":[9000000],"data_offsets":[0,9000000]}}\'; '
        "os.write(1, b'{}\\n' + struct.pack('<Q', len(t)) + t)",
        "ended by exit code 0",
    ),
    "an end in the midst": (
        'import os, struct; t = b\'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}\'; '
        "os.write(1, b'{}\\n' + struct.pack('<Q', len(t)) + t + b'1234')",
        "ended by exit code 0",
    ),
    "silence": ("import time; time.sleep(60)", "is not done after 1 s"),
    "deafness": ("import time, os; os.write(1, b'nonsense\\n'); time.sleep(60)", "does not answer as it must"),
    "a refusal with control characters": (
        r"""print('{"refused": "a\\u001b[2Jb"}')""",
        r"x\.pt: a\\x1b\[2Jb",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_reader_s_process_is_not_believed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, words = ANSWERS[name]
    save(some(), tmp_path / "x.pt")

    def start(module: str, *arguments: str, environment: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(children, "start", start)
    monkeypatch.setattr(foreign, "_PATIENCE_S", 1.0 if name == "silence" else 30)
    monkeypatch.setattr(foreign, "_END_S", 0.5)
    with pytest.raises(WeightsError, match=words) as caught:
        read_torch(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("afresh")
def test_a_process_that_cannot_work_is_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(some(), tmp_path / "x.pt")
    with monkeypatch.context() as without_torch:
        without_torch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
        with pytest.raises(EnvironmentFault, match="failed: ModuleNotFoundError: No module named"):
            read_torch(tmp_path / "x.pt")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EnvironmentFault, match="cannot start a process: No such file"):
        read_torch(tmp_path / "x.pt")


RECEIVED: dict[str, tuple[dict[str, Any], bytes]] = {
    "a gap": ({"a": [4, 8]}, bytes(8)),
    "an overlap": ({"a": [0, 4], "b": [2, 6]}, bytes(8)),
    "too many bytes": ({"a": [0, 400]}, bytes(400)),
    "negative": ({"a": [-4, 0]}, bytes(8)),
    "truth for a number": ({"a": [False, 4]}, bytes(8)),
    "three offsets": ({"a": [0, 4, 8]}, bytes(8)),
    "text": ({"a": "04"}, bytes(8)),
    "cut": ({"a": [0, 4]}, bytes(3)),
}


@pytest.mark.parametrize("name", RECEIVED)
def test_what_comes_through_the_pipe_keeps_the_format_s_rules(name: str) -> None:
    entries, data = RECEIVED[name]

    def sent(dtype: str) -> io.BytesIO:
        header = {}
        for key, offsets in entries.items():
            size = offsets[1] - offsets[0] if name not in {"three offsets", "text"} else 4
            header[key] = {"dtype": dtype, "shape": [size], "data_offsets": offsets}
        text = json.dumps(header).encode()
        return io.BytesIO(struct.pack("<Q", len(text)) + text + data)

    with pytest.raises(tensors.Malformed):
        tensors.receive(sent("U8"), most=100)
    with pytest.raises(tensors.Malformed):
        tensors.receive(sent("F99"), most=100)


def test_a_torch_with_known_holes_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(some(), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(EnvironmentFault, match=r"install torch 2\.10"):
        read_torch(tmp_path / "x.pt")


@pytest.mark.usefixtures("afresh")
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
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensor \(a\)"):
        write_torch(tmp_path / "x.pth", {"a": torch.tensor([float("inf")])})
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the writer's writes in turn."""
    path = tmp_path / "x.pth"
    path.write_bytes(b"mine")
    real, left = foreign._Watched.write, 0

    def write(self: Any, data: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            self.stream = FullDisk()
        return real(self, data)

    monkeypatch.setattr(foreign._Watched, "write", write)
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
    monkeypatch.setattr(foreign, "_save", lambda state, path: torch.save(state | {"a.bias": torch.zeros(5)}, path))
    with pytest.raises(EnvironmentFault, match="read back differs"):
        write_torch(tmp_path / "x.pth", some())
    assert list(tmp_path.iterdir()) == []
