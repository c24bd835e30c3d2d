"""Torch files that mean harm, made by the dozen: programs in every container, bombs, and pickles that were bent."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Made = Iterator[tuple[str, bytes]]


class Calls:
    """Pickled: a call of any function with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def state() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(64.0).reshape(8, 8), "a.bias": torch.ones(8)}


def saved(content: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def archive(program: bytes, *, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as torch writes it, with true checksums, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        content = {"x/data.pkl": program, "x/byteorder": b"little", "x/version": b"3\n", "x/data/0": bytes(256)}
        for name, data in (content | (records or {})).items():
            made.writestr(name, data)
    return stream.getvalue()


def inner(data: bytes) -> bytes:
    """The pickle inside a zip of torch."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return source.read(next(name for name in source.namelist() if name.endswith("data.pkl")))


def payloads(canary: Path, port: int) -> dict[str, Calls]:
    """What leaves a file in ``canary`` or calls at ``port``, were it obeyed."""
    import builtins
    import cProfile
    import importlib
    import runpy
    import socket
    import subprocess
    import timeit

    def touch(name: str) -> str:
        return f"touch '{canary / name}'"

    def code(name: str) -> str:
        return f"open({str(canary / name)!r}, 'w').close()"

    script = canary.parent / "script.py"
    script.write_text(code("runpy"))
    nested = canary.parent / "nested.pt"
    torch.save(Calls(os.system, touch("nested")), nested)
    return {
        "system": Calls(os.system, touch("system")),
        "popen": Calls(os.popen, touch("popen")),
        "subprocess": Calls(subprocess.check_call, ["touch", str(canary / "subprocess")]),
        "eval": Calls(builtins.eval, code("eval")),
        "exec": Calls(builtins.exec, code("exec")),
        "open": Calls(builtins.open, str(canary / "open"), "w"),
        "mkdir": Calls(os.mkdir, str(canary / "mkdir")),
        "runpy": Calls(runpy.run_path, str(script)),
        "timeit": Calls(timeit.timeit, code("timeit"), "pass", timeit.default_timer, 1),
        "profile": Calls(cProfile.run, code("profile"), str(canary / "profile.out")),
        "pickle": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch("pickle")))),
        "torch.load": Calls(_load_again, str(nested)),
        "socket": Calls(socket.create_connection, ("127.0.0.1", port), 2),
        "import": Calls(importlib.import_module, "antigravity_of_nobody"),
        "getattr": Calls(builtins.getattr, Calls(importlib.import_module, "os"), "system"),
    }


def _load_again(path: str) -> Any:
    return torch.load(path, weights_only=False)


def programs(canary: Path, port: int) -> Made:
    """Every payload as a whole zip; each in turn in one of the other containers."""
    others: list[tuple[str, Callable[[Calls], bytes]]] = [
        ("legacy", lambda it: saved(it, _use_new_zipfile_serialization=False)),
        ("raw 4", lambda it: pickle.dumps(it, protocol=4)),
        ("raw 2", lambda it: pickle.dumps(it, protocol=2)),
        ("raw 0", lambda it: pickle.dumps(it, protocol=0)),
        ("beside weights", lambda it: saved({"model": state(), "extra": it})),
        ("as a weight", lambda it: saved(state() | {"b": it})),
        ("protocol 5 in a zip", lambda it: archive(pickle.dumps(it, protocol=5))),
        ("behind weights", lambda it: archive(inner(saved(state())) + pickle.dumps(it, protocol=2))),
        ("before a zip", lambda it: pickle.dumps(it, protocol=4) + saved(state())),
        ("tar", in_tar),
        ("torchscript", lambda it: archive(pickle.dumps(it), records={"x/constants.pkl": b"\x80\x02)."})),
        ("two programs", lambda it: archive(inner(saved(state())), records={"y/data.pkl": pickle.dumps(it)})),
        ("deflated", lambda it: archive(pickle.dumps(it), compression=zipfile.ZIP_DEFLATED)),
    ]
    for index, (name, payload) in enumerate(payloads(canary, port).items()):
        yield f"{name} in a zip", saved(payload)
        for kind, make in (others[index % len(others)], others[(index + 5) % len(others)]):
            yield f"{name}, {kind}", make(payload)


def in_tar(payload: Calls) -> bytes:
    """The oldest of torch's formats."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(payload, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def bombs() -> Made:
    """What asks for memory or time without end."""
    yield "deflated tensors", deflated(saved({"a": torch.zeros(20_000_000)}))
    yield "4 GB text", b"\x80\x04\x8d" + struct.pack("<Q", 4 * 10**9) + b"x"
    yield "4 GB text in a zip", archive(b"\x80\x04\x8d" + struct.pack("<Q", 4 * 10**9) + b"x")
    yield "2^62 bytes", archive(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x")
    yield "list of lists of lists", archive(b"\x80\x02]q\x00" + b"".join(laughs()) + b".")
    yield "long number", archive(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff")
    yield "claims of a petabyte", saved({"a": torch.ones(1).expand(10**15)})
    yield "a thousand names", saved(shared())
    yield "work without end", archive(b"\x80\x02N" + b"q\x00" * 15_000_000 + b".")
    yield "marks", archive(b"\x80\x02" + b"(" * 1_000_000 + b".")


def shared() -> dict[str, torch.Tensor]:
    weight = torch.ones(300_000)
    return {f"b{index}": weight for index in range(2000)}


def laughs() -> Iterator[bytes]:
    for level in range(60):
        yield b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * 10 + b"e"


def deflated(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name in source.namelist():
            made.writestr(name, source.read(name))
    return stream.getvalue()


def bent() -> Made:
    """Pickles that name only what is allowed, and ask of it what it cannot do."""
    tensor = inner(saved({"a": torch.zeros(64)}))
    number = b"K\x40"  # 64, the tensor's length
    for name, other in {"2^31": b"J" + struct.pack("<i", 2**31 - 1), "negative": b"J" + struct.pack("<i", -5)}.items():
        yield f"{name} for a length", archive(tensor.replace(number, other))
    yield "2^60 for a length", archive(tensor.replace(number, b"\x8a\x08" + struct.pack("<q", 2**60)))
    yield "a record outside", archive(tensor.replace(b"X\x01\x00\x00\x000", b"X\x0a\x00\x00\x00../../0000"))
    yield "no memo", archive(b"\x80\x02h\x63.")
    yield "an empty stack", archive(b"\x80\x02R.")
    yield "reduce of text", archive(b"\x80\x02X\x01\x00\x00\x00a)R.")
    yield (
        "build of a tensor",
        archive(b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__X\x01\x00\x00\x00asb."),
    )
    yield "an extension", archive(b"\x80\x02\x82\x01.")
    yield "instance", archive(b"(S'touch canary'\nios\nsystem\n.")
    yield "storage of objects", archive(tensor.replace(b"FloatStorage", b"ObjectStorage"))
    yield (
        "dtype of objects",
        archive(
            b"\x80\x02cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R"
            b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftbC\x08abcdefgh\x86R."
        ),
    )
    yield "noise", random.Random(1).randbytes(5000)
    yield "noise in a zip", archive(random.Random(2).randbytes(5000))


def everything(canary: Path, port: int) -> dict[str, bytes]:
    """All of it, by name."""
    return {name: data for kind in (programs(canary, port), bombs(), bent()) for name, data in kind}
