from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from memorysam_cli.errors import EnvironmentFault, WeightsError
from memorysam_cli.storage import foreign, tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def some(count: int = 3) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {f"layer.{index}.weight": torch.randn(4, 5, generator=random) for index in range(count)}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.detach().cpu(), rtol=0, atol=0)


def test_every_dtype_and_shape_comes_back_exactly(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(2)
    given = {f"d.{dtype}": (torch.randn(3, 7, generator=random) * 50).to(dtype) for dtype in DTYPES}
    given |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "one": torch.ones(1, dtype=torch.uint8)}
    metadata = {"recipe": '{"a": "é\n"}', "empty": ""}
    tensors.write(tmp_path / "x.safetensors", given, metadata)
    found, found_metadata = tensors.read(tmp_path / "x.safetensors")
    same(found, given)
    assert found_metadata == metadata
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == metadata


def test_views_shared_and_trained_tensors_are_written_dense(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    given = {"a": base, "b": base, "c": base.T, "d": base[1:3, ::2], "e": torch.zeros(1).expand(5)}
    given["f"] = torch.nn.Parameter(base + 1)
    tensors.write(tmp_path / "x", given, {})
    same(tensors.read(tmp_path / "x")[0], given)


def test_the_bytes_are_those_of_the_library_and_always_the_same(tmp_path: Path) -> None:
    given = some() | {"bytes": torch.arange(3, dtype=torch.uint8), "wide": torch.arange(3)}
    digest = tensors.write(tmp_path / "a", given, {})
    assert (tmp_path / "a").read_bytes() == safetensors.torch.save(given)
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest() == tensors.sha256(tmp_path / "a")
    metadata = {f"key {number}": str(number) for number in range(20)}
    first = tensors.write(tmp_path / "b", given, metadata)
    assert first == tensors.write(tmp_path / "c", dict(reversed(given.items())), metadata)


def test_a_file_gets_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        tensors.write(tmp_path / "x", some(), {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_named_and_neither_written_nor_read(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors.write(tmp_path / "x", some(), {})
    before = (tmp_path / "x").read_bytes()
    bad = some() | {"layer.1.weight": torch.tensor([1.0, value], dtype=dtype)}
    with pytest.raises(WeightsError, match=r"x: NaN or infinity in 1 tensor \(layer\.1\.weight\)"):
        tensors.write(tmp_path / "x", bad, {})
    assert (tmp_path / "x").read_bytes() == before
    safetensors.torch.save_file(bad, tmp_path / "y")
    with pytest.raises(WeightsError, match=r"y: NaN or infinity in 1 tensor \(layer\.1\.weight\)"):
        tensors.read(tmp_path / "y")


def test_what_the_format_cannot_hold_is_our_own_bug(tmp_path: Path) -> None:
    for bad in ({}, {"c": torch.zeros(1, dtype=torch.complex64)}, {"__metadata__": torch.zeros(1)}):
        with pytest.raises(ValueError, match="written"):
            tensors.write(tmp_path / "x", bad, {})
    assert not list(tmp_path.iterdir())


def test_a_write_that_does_not_read_back_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors.write(tmp_path / "x", some(), {})
    before = (tmp_path / "x").read_bytes()
    monkeypatch.setattr(tensors, "sha256", lambda path: "0" * 64)
    with pytest.raises(EnvironmentFault, match="differs from what was written"):
        tensors.write(tmp_path / "x", some(5), {})
    assert (tmp_path / "x").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


WRITE_A_MEGABYTE = """
import resource, signal, sys, torch
from collections.abc import Callable
from pathlib import Path
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.storage import tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    tensors.write(Path(sys.argv[1]), {"a": torch.zeros(250_000)}, {})
except EnvironmentFault as error:
    print(error)
"""


def test_a_full_disk_names_what_is_needed_and_keeps_the_old_file(tmp_path: Path) -> None:
    tensors.write(tmp_path / "x", some(), {})
    before = (tmp_path / "x").read_bytes()
    command = [sys.executable, "-c", WRITE_A_MEGABYTE, str(tmp_path / "x")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "needs 1.0 MB, free" in output
    assert (tmp_path / "x").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def header(entries: object, *, data: int = 0) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(start: int, end: int, *shape: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


ONE = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
BAD_HEADERS: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "2^63": (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes"),
    "101 MB": (struct.pack("<Q", 101_000_000) + b"{}", "header of 101000000 bytes"),
    "longer than the file": (struct.pack("<Q", 1000) + b"{}", "truncated inside its header"),
    "seven bytes": (b"1234567", "truncated after 7 bytes"),
    "not JSON": (header(b"{nope}"), "not JSON"),
    "not UTF-8": (header(b'{"\xff": 1}'), "not JSON"),
    "a list": (header([]), "not a JSON object"),
    "deep": (header(b"[" * 100_000), "not JSON"),
    "no tensors": (header({}), "0 tensors"),
    "only metadata": (header({"__metadata__": {"a": "b"}}), "0 tensors"),
    "number in metadata": (
        header({"__metadata__": {"a": 1}, "a": entry(0, 4, 4)}, data=4),
        "metadata that is not text",
    ),
    "a name twice": (header(ONE + b"," + ONE[1:] + b"}", data=4), "'a' occurs 2 times"),
    "300k empties": (lambda: header({f"{i}": entry(0, 0, 0) for i in range(210_000)}), "about 210000 tensors"),
    "210k hidden empties": (
        lambda: header(b"{" + b",".join(b'"%d":{"d\\u0061ta_offsets":[0,0]}' % i for i in range(210_000)) + b"}"),
        "about 190001 tensors",
    ),
    "5 million objects": (lambda: header(b"[" + b",".join([b"{}"] * 5_000_000) + b"]"), "tensors; 1 to 20000"),
    "hole": (header({"a": entry(0, 4, 4), "b": entry(8, 12, 4)}, data=12), "(?i)offset"),
    "overlap": (header({"a": entry(0, 4, 4), "b": entry(2, 6, 4)}, data=6), "(?i)offset"),
    "trailing": (header({"a": entry(0, 4, 4)}, data=9), "(?i)incomplete"),
    "missing data": (header({"a": entry(0, 4, 4)}, data=3), r"truncated \(\d+ of \d+ bytes\)"),
    "offsets of text": (
        header({"a": {"dtype": "U8", "shape": [4], "data_offsets": ["0", "4"]}}, data=4),
        "(?i)invalid",
    ),
    "no offsets": (header({"a": 1}, data=4), "(?i)invalid"),
    "torch.save": (b"PK\x03\x04" + bytes(60), r"a file of torch.save; 'memorysam weights import'"),
    "an old torch.save": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", r"a file of torch.save; 'memorysam weights import'"),
    "shape too large": (header({"a": entry(0, 4, 5)}, data=4), "(?i)invalid"),
    "shape overflow": (header({"a": entry(0, 4, 2**33, 2**33, dtype="F32")}, data=4), "(?i)overflow"),
    "bad dtype": (header({"a": entry(0, 4, 4, dtype="Q4")}, data=4), "(?i)unknown variant|dtype"),
    "negative": (header({"a": entry(-4, 0, 4)}, data=4), "(?i)invalid"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_malformed_file_is_refused_and_the_rule_is_named(name: str, tmp_path: Path) -> None:
    data, words = BAD_HEADERS[name]
    (tmp_path / "x.safetensors").write_bytes(data if isinstance(data, bytes) else data())
    begun = time.process_time()
    with pytest.raises(WeightsError, match=words) as caught:
        tensors.read(tmp_path / "x.safetensors")
    assert time.process_time() - begun < 10
    assert str(caught.value).startswith(f"{tmp_path / 'x.safetensors'}: ")
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors.write(path, some(), {"a": "b"})
    for cut in range(path.stat().st_size - 1, 0, -1):
        os.truncate(path, cut)
        for read in (tensors.read, tensors.read_metadata):
            with pytest.raises(WeightsError):
                read(path)


@pytest.mark.parametrize("read", [tensors.read, foreign.read_torch])
def test_what_is_no_weights_file_is_named(read: Any, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    for name, data, words in [
        ("lfs", pointer, rf"a Git-LFS pointer \({len(pointer)} bytes\)"),
        ("html", b"\n<!DOCTYPE html>", "a web page"),
        ("empty", b"", "empty"),
        ("text", b"not weights at all", "get .*again"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=words) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="no such file"):
        read(tmp_path / "missing")
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    best.parent.mkdir(parents=True)
    best.touch()
    with pytest.raises(WeightsError, match=f"a run's folder, not a file; its best weights are {best}"):
        read(tmp_path / "run")
    with pytest.raises(WeightsError, match="a folder"):
        read(tmp_path)
