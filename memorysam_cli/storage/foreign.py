"""Untrusted ``.pt`` and ``.pth`` files, opened without running their content; and such files for other programs.

A torch file is a pickle, which is a program. It is opened in a child process that has no network, little memory and
time, and cannot write (:mod:`memorysam_cli.storage.torch_child`). Only plain tensors come back.

:func:`parse` is the only place where torch opens a pickle. It always uses ``weights_only``; no option can change this.
Untrusted files are parsed only in the child process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from memorysam_cli.errors import EnvironmentFault, WeightsError, is_out_of_memory
from memorysam_cli.storage import atomic, children
from memorysam_cli.storage.tensors import (
    DTYPES,
    MAX_TENSORS,
    Malformed,
    check_file,
    check_finite,
    dtype_name,
    receive,
    sha256,
)
from memorysam_cli.storage.torch_format import AGAIN, EXPORT, Attempt, Refused, check_archive, culprit, most_bytes
from memorysam_cli.text import is_text, shown

_CHILD = "memorysam_cli.storage.torch_child"
"""Named, not imported: the confined module imports this one."""
_SAFE_TORCH = (2, 10)
_PATIENCE_S = 60.0
_END_S = 5.0
_SLOWEST = 5_000_000
"""Bytes per second of a slow network drive."""
_LINE_BYTES = 10_000
_LEFT_OUT = ("TORCH_", "HF_TOKEN", "HUGGING_FACE_", "CUDA_VISIBLE_DEVICES")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "CUDA_VISIBLE_DEVICES": ""}
"""One thread, one heap, no GPU, so that the limits can be small."""
_ENDS = {"SIGXCPU": "it takes more processor time than a file of its size may", "SIGKILL": "out of memory, or a kill"}
_WRAPPERS = ("model", "model_state_dict", "state_dict")
_NAME_LENGTH = 80

# Plain NumPy numbers (an epoch's best score, say) are common beside weights and can do no harm.
_HARMLESS: list[Any] = [
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # NumPy 1's name for it
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]

logger = logging.getLogger(__name__)


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.pt`` or ``.pth`` file.

    Args:
        path: a state dict, plain or under ``model``, ``model_state_dict`` or ``state_dict``; other entries beside such
            a key (epoch, optimizer) are ignored.

    Returns:
        CPU tensors by name, dtype as stored, each with its own memory.

    Raises:
        WeightsError: missing, damaged, code or other objects inside, TorchScript, compressed, values that are not
            tensors, NaN or infinity; the message names the cause. Or the child process was ended.
        EnvironmentFault: this torch's ``weights_only`` has known security holes, or no process could be started.
    """
    check_file(path)
    _check_torch_version()
    try:
        state = _confined(path)
    except Refused as error:
        raise WeightsError(f"{shown(path)}: {error}") from error
    check_finite(state, where=shown(path))
    return state


def _check_torch_version() -> None:
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise EnvironmentFault(f"torch {torch.__version__} can be tricked by a .pt file; install torch 2.10 or later")


def _confined(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, read by a child process."""
    size = path.stat().st_size
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
    process = children.start(_CHILD, str(path.absolute()), environment=environment | _ENVIRONMENT)
    patience = _PATIENCE_S + size / _SLOWEST
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    clock = threading.Timer(patience, stop)
    clock.daemon = True
    clock.start()
    try:
        assert process.stdout is not None
        return _answer(process.stdout, size=size)
    except (Malformed, ValueError, OSError) as error:
        how = f"is not done after {patience:.0f} s" if late.is_set() else _end(process)
        raise Refused(f"the process that opened it {how}; refused: {AGAIN}, or {EXPORT}") from error
    finally:
        clock.cancel()
        children.end(process)


def _end(process: subprocess.Popen[bytes]) -> str:
    """How a child process ended that gave no valid answer."""
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return "does not answer as it must"
    name = children.signal_name(code) if code < 0 else f"exit code {code}"
    return f"ended by {name} ({_ENDS.get(name, 'a damaged or hostile file')})"


def _answer(stream: IO[bytes], *, size: int) -> dict[str, torch.Tensor]:
    """The child process's answer, which is checked completely.

    Raises:
        Refused: it refuses the file.
        EnvironmentFault: it could not work.
        Malformed, ValueError: the answer has a wrong form, or ends too early.
    """
    answer = json.loads(stream.readline(_LINE_BYTES))
    if not isinstance(answer, dict) or not all(isinstance(value, str) for value in answer.values()):
        raise ValueError("no answer of ours")
    if "refused" in answer:
        raise Refused(shown(answer["refused"][:1000]))
    if "failed" in answer:
        raise EnvironmentFault(f"the process that opens .pt files failed: {shown(answer['failed'][:400])}; fix that")
    logger.debug("network: %s", shown(answer.get("network", "")))
    return receive(stream, most=most_bytes(size))


def parse(path: Path, *, is_zip: bool) -> dict[str, torch.Tensor]:
    """The named tensors of a ``.pt`` or ``.pth`` file, detached, on the CPU; those in a zip are memory-mapped.

    Args:
        path: a state dict, plain or under ``model``, ``model_state_dict`` or ``state_dict``.
        is_zip: the result of :func:`memorysam_cli.storage.torch_format.check_archive`.

    Raises:
        Refused: damaged, code or other objects inside, values that are not tensors; the message names the cause.
    """
    with _load_faults(path), torch.serialization.safe_globals(_HARMLESS):
        if is_text(str(path)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        else:  # torch maps files by name, and supports only names that are text
            with path.open("rb") as stream:
                content = torch.load(stream, map_location="cpu", weights_only=True)
    return _state_dict(content)


@contextmanager
def _load_faults(path: Path) -> Iterator[None]:
    """The exceptions of torch for a damaged file, at least seven kinds."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        text = text.rpartition("WeightsUnpickler error: ")[2]  # the text before it is advice
        if isinstance(error, Attempt):
            raise Refused(f"made Python try {error}, which weights never need; refused. Instead {EXPORT}") from error
        if is_out_of_memory(error):
            raise Refused("asks for more memory than a file of its size may; refused as a possible bomb") from error
        if "TorchScript" in text:
            raise Refused(f"a TorchScript archive, which is a program; {EXPORT}") from error
        named = re.search(r"GLOBAL (\S+)", text)
        found = culprit(path, name=named[1] if named else None)
        if named or found:
            name = shown((named[1] if named else found.name if found else "")[:_NAME_LENGTH])
            key = f" (at '{shown(found.key[:_NAME_LENGTH])}')" if found and found.key is not None else ""
            raise Refused(f"contains {name}{key}, which could run code; refused. Instead {EXPORT}") from error
        reason = f"{type(error).__name__}: {shown(text[:_NAME_LENGTH])}"
        raise Refused(f"truncated, damaged or not a torch file ({reason}); {AGAIN}") from error


def _state_dict(content: object) -> dict[str, torch.Tensor]:
    """Unwrap the state dict and check each entry."""
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise Refused(f"holds {_kind(content)}, not named tensors; {EXPORT}")
    if len(content) > MAX_TENSORS:
        raise Refused(f"holds {len(content)} entries; 1 to {MAX_TENSORS} are allowed; {EXPORT}")
    return {_name(name): _tensor(value, name=name) for name, value in content.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise Refused(f"the key {str(name)[:_NAME_LENGTH]!r} is {_kind(name)}, not text; {EXPORT}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Refused(f"the key '{shown(name[:_NAME_LENGTH])}' is not Unicode text; {EXPORT}") from None
    return name


def _tensor(value: object, *, name: object) -> torch.Tensor:
    where = f"'{shown(str(name)[:_NAME_LENGTH])}'"
    if not isinstance(value, torch.Tensor):
        raise Refused(f"{where} is {_kind(value)}, not a tensor; {EXPORT}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise Refused(f"{where} is a sparse, quantized or empty-shell tensor; save it dense")
    if dtype_name(value) not in DTYPES:
        raise Refused(f"{where} is {value.dtype}; weights are one of {', '.join(DTYPES.values())}")
    if value.nbytes > value.untyped_storage().nbytes():
        raise Refused(f"{where} claims {value.nbytes} bytes, stored are {value.untyped_storage().nbytes()}; refused")
    return value.detach()


def _kind(value: object) -> str:
    return "nothing" if value is None or (isinstance(value, dict) and not value) else f"a {type(value).__name__}"


def write_torch(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a plain state dict as a ``.pt`` or ``.pth`` file, all or nothing, and read it back.

    This is the only pickle that we write, for code that reads nothing else; our own format is safetensors. It has only
    names and tensors, so ``torch.load(weights_only=True)`` opens it.

    Args:
        path: the target; an existing file is replaced.
        tensors: any device, layout or sharing; written contiguous, each with its own storage.

    Returns:
        SHA-256 of the file, in hex.

    Raises:
        WeightsError: NaN or infinity; nothing is written.
        EnvironmentFault: it cannot be written, or the file differs when read back; ``path`` does not change.
    """
    check_finite(tensors, where=shown(path))
    # A view's whole storage would be written, and shared storages would come back shared.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic.new_file(path, needed_bytes=sum(tensor.nbytes for tensor in state.values())) as temporary:
        _save(state, temporary)
        if not _holds(temporary, state):
            raise OSError(None, "what was read back differs from what was written")
        return sha256(temporary)


def _holds(path: Path, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file that we have just written has these tensors; this needs no child process."""
    try:
        found = parse(path, is_zip=check_archive(path))
    except Refused:
        return False
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        watched = _Watched(stream)
        try:
            torch.save(state, watched)  # type: ignore[arg-type]
        except RuntimeError:  # torch's error for a full disk
            if watched.error is not None:
                raise watched.error from None
            raise


class _Watched:
    """A stream that stores its error, because torch drops it."""

    def __init__(self, stream: FileIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        left = memoryview(data)
        try:
            while left.nbytes:
                left = left[self.stream.write(left) :]
        except OSError as error:
            self.error = error
            raise
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing to do, because nothing is buffered."""
