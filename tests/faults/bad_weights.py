"""Rows 27 to 36: weights and checkpoints that must not be believed; it pickles what is refused."""

from __future__ import annotations

import argparse
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

from tests.faults.bad_images import EVALUATE, PREDICT, RESULTS, spoilt
from tests.faults.bad_inputs import Arguments, Case, Place

NAME = "checkpoints/best.safetensors"
BEST = f"runs/small/{NAME}"
RESUME = ("train", "--resume", "runs/small")
RUN = ("runs",)
Bytes = Callable[[], bytes]


class Canary:
    """Would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


def torch_file(content: object, **options: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def some() -> dict[str, Any]:
    import torch

    return {"a.weight": torch.ones(40, 50), "a.bias": torch.zeros(40)}


def module() -> bytes:
    import torch

    return torch_file(torch.nn.Linear(2, 2))


def torchscript() -> bytes:
    """With the mark of ``torch.jit.save``."""
    stream = io.BytesIO(torch_file(some()))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    return stream.getvalue()


def bomb() -> bytes:
    """A hundred megabytes of zeros in a hundred kilobytes."""
    import torch

    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_file({"a": torch.zeros(25_000_000)}))) as source,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    return stream.getvalue()


def safetensors(header: object, *, length: int | None = None, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, *, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def many_empty() -> bytes:
    return safetensors({str(number): tensor(0, 0, shape=(0,)) for number in range(300_000)}, data=b"")


def imported(row: int, name: str, content: Bytes, *words: str, file: str = "x.pth") -> Case:
    """A file of somebody else's, to be taken in; no canary sings, and nothing is written."""

    def make(place: Place) -> Arguments:
        place.write(file, content())
        return ["weights", "import", file, "--recipe", "deliver", "--out", "new.safetensors"]

    return Case(row, name, make, 5, words=(f"{file}: ", *words))


def shown(name: str, content: Bytes, *words: str) -> Case:
    """A file that says to be one of ours."""

    def make(place: Place) -> Arguments:
        place.write("x.safetensors", content())
        return ["weights", "info", "x.safetensors"]

    return Case(33, name, make, 5, words=("x.safetensors: ", *words))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(here: Path) -> None:
    os.truncate(here / BEST, (here / BEST).stat().st_size * 2 // 3)


def newest_is_damaged(here: Path) -> None:
    flip(max((here / "runs/small/checkpoints").glob("step-*")) / "model.safetensors")


def all_are_damaged(here: Path) -> None:
    for path in (here / "runs/small/checkpoints").glob("step-*"):
        flip(path / "optimizer.safetensors")


def none_is_there(here: Path) -> None:
    for path in (here / "runs/small/checkpoints").glob("step-*"):
        shutil.rmtree(path)


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Our own weights, whole by their sums, but not what they should be."""

    def spoil(here: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(here / BEST, "pt") as opened:
            card = opened.metadata()
        state = load_file(here / BEST)
        change(state)
        save_file(state, here / BEST, card)

    return spoil


def not_a_number(state: dict[str, Any]) -> None:
    next(iter(state.values())).flatten()[0] = float("nan")


def one_is_missing(state: dict[str, Any]) -> None:
    del state[sorted(state)[0]]


def one_is_turned(state: dict[str, Any]) -> None:
    name = next(name for name, value in sorted(state.items()) if value.ndim == 2 and len(set(value.shape)) == 2)
    state[name] = state[name].T.contiguous()


def another_label(here: Path) -> None:
    """The data set is another one than the run began with, and is prepared anew."""
    lines = (here / "data/memorysam/tiny/scenes.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "rain/train/b/000001" not in line]
    (here / "data/memorysam/tiny/scenes.jsonl").write_text("".join(kept))
    from memorysam_cli.data import manifest as manifests

    found = manifests.read_unsigned(here / "data", "tiny")
    manifests.write(here / "data", found.info, found.scenes)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
PAGE = b"<!DOCTYPE html><p>404</p>"
FOUR_GB = b"\x80\x04\x8d" + struct.pack("<Q", 4 * 10**9) + b"x"
ONE = {"a": tensor(0, 8)}

CASES = [
    imported(27, "zip", lambda: torch_file(Canary()), "contains posix.system", "refused"),
    imported(27, "protocol 0", lambda: pickle.dumps(Canary(), protocol=0), "contains posix.system", "refused"),
    imported(28, "namespace", lambda: torch_file({"model": some(), "args": argparse.Namespace(lr=1)}),
             "argparse.Namespace", "state_dict"),
    imported(28, "module", module, "torch.nn.modules.linear.Linear", "state_dict"),
    imported(29, "TorchScript", torchscript, "TorchScript"),
    imported(30, "LFS pointer", lambda: LFS, "Git-LFS pointer", f"{len(LFS)} bytes"),
    imported(30, "page", lambda: PAGE, "a web page"),
    Case(31, "cut", spoilt(cut, *PREDICT), 5, words=(NAME, "truncated"), outputs=RESULTS),
    Case(31, "bit", spoilt(lambda here: flip(here / BEST), *PREDICT), 5, words=(NAME,), outputs=RESULTS),
    Case(31, "bit in the newest checkpoint", spoilt(newest_is_damaged, *RESUME), 0, outputs=RUN, answers=True,
         said=("memorysam: warning: runs/small/checkpoints/step-00000006: is damaged", "step-00000006.corrupt")),
    Case(31, "bit in all checkpoints", spoilt(all_are_damaged, *RESUME), 5, outputs=RUN,
         words=("runs/small", "no valid checkpoint", "2 damaged")),
    imported(32, "bomb", bomb, "compressed"),
    imported(32, "length of 4 GB", lambda: FOUR_GB, "truncated"),
    shown("header of 2^63", lambda: safetensors({}, length=2**63), "9223372036854775808"),
    shown("header of 101 MB", lambda: safetensors({}, length=101_000_000), "101000000"),
    shown("no JSON", lambda: safetensors(b"hello, I am no JSON"), "not JSON"),
    shown("hole", lambda: safetensors({"a": tensor(0, 8), "b": tensor(12, 20)}, data=bytes(20))),
    shown("overlap", lambda: safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, data=bytes(12))),
    shown("trailing bytes", lambda: safetensors(ONE, data=bytes(99))),
    shown("shape overflow", lambda: safetensors({"a": tensor(0, 8, shape=(2**62, 2**62))})),
    shown("dtype", lambda: safetensors({"a": tensor(0, 8, dtype="F99")})),
    shown("key twice", lambda: safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}'), "'a'"),
    shown("no tensor", lambda: safetensors({}), "0 tensors"),
    shown("300,000 empty ones", many_empty,
          "16000000 allowed"),
    Case(34, "one missing", spoilt(rewritten(one_is_missing), *PREDICT), 5, words=(NAME,), outputs=RESULTS),
    Case(34, "one turned", spoilt(rewritten(one_is_turned), *PREDICT), 5, words=(NAME,), outputs=RESULTS),
    imported(34, "another model", lambda: safetensors(ONE), "none of its 1 tensors", file="x.safetensors"),
    Case(35, "NaN", spoilt(rewritten(not_a_number), *EVALUATE), 5, words=(NAME,), outputs=RESULTS),
    Case(36, "another recipe", spoilt(lambda here: None, *RESUME, "--set", "optim.lr=1"), 2,
         words=("runs/small", "optim.lr was 0.001, is 1.0", "undo the change")),
    # The run's own data lie where the template was made: --data names the copy.
    Case(36, "other data", spoilt(another_label, *RESUME, "--data", "data"), 2, words=("runs/small", "data set"),
         outputs=("data",)),
    Case(36, "no run", spoilt(lambda here: None, "train", "--resume", "photos"), 5,
         words=("--resume photos", "neither a run folder nor a checkpoint")),
    Case(36, "no checkpoint", spoilt(none_is_there, *RESUME), 5, words=("runs/small", "no valid checkpoint", "start"),
         outputs=RUN),
]  # fmt: skip
