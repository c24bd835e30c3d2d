"""Other people's ``.pt`` and ``.pth`` files, opened without running what is inside them; and files for other people.

A torch file is a pickle, that is: a program. ``weights_only`` is the lock on it, and there is no option here
to turn it. The zip around it is checked first, since torch neither compares its checksums nor minds bombs.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memorysam_cli.errors import EnvironmentFault, WeightsError
from memorysam_cli.storage import atomic
from memorysam_cli.storage.atomic import shown
from memorysam_cli.storage.weights_checks import check_file, check_finite, sha256

_WRAPPERS = ("model", "model_state_dict", "state_dict")
_SAFE_TORCH = (2, 10)
_EXPANSION = 1.05
_ZIP = b"PK\x03\x04"
_NAME_LENGTH = 80
_EXPORT = "export its state_dict: torch.save(model.state_dict(), file)"
_AGAIN = "get the file again"

# Plain NumPy numbers (an epoch's best score, say) are common beside weights and can do no harm.
_HARMLESS: list[Any] = [
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # NumPy 1's name for it
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


class _Refused(Exception):
    """Why a file is refused, and what to do."""


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.pt`` or ``.pth`` file.

    Args:
        path: a state dict, plain or under ``model``, ``model_state_dict`` or ``state_dict``; what stands beside
            such a key (epoch, optimizer) is left alone.

    Returns:
        Detached CPU tensors by name, dtype as stored; large files are mapped, not copied.

    Raises:
        WeightsError: missing, damaged, code or other objects inside, TorchScript, compressed, values that are not
            tensors, NaN or infinity; the message names the culprit.
        EnvironmentFault: a torch whose ``weights_only`` has known holes.
    """
    check_file(path)
    _check_torch_version()
    try:
        is_zip = _check_zip(path)
        state = _state_dict(_load(path, is_zip=is_zip))
    except _Refused as error:
        raise WeightsError(f"{shown(path)}: {error}") from error
    check_finite(state, where=shown(path))
    return state


def write_torch(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a plain state dict as a ``.pt`` or ``.pth`` file, all or nothing, and read it back.

    The one pickle that we write, for code that reads nothing else; ours reads safetensors. It holds names and
    tensors only, so that ``torch.load(weights_only=True)`` opens it.

    Args:
        path: the target; an existing file is replaced.
        tensors: any device, layout or sharing; written contiguous, each with a storage of its own.

    Returns:
        SHA-256 of the file, in hex.

    Raises:
        WeightsError: NaN or infinity; nothing is written.
        EnvironmentFault: it cannot be written, or does not read back as written; ``path`` is as it was.
    """
    check_finite(tensors, where=shown(path))
    # A view's whole storage would be written, and shared storages would come back shared.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic.new_file(path, needed_bytes=sum(tensor.nbytes for tensor in state.values())) as temporary:
        _save(state, temporary)
        found = _state_dict(_load(temporary, is_zip=_check_zip(temporary)))
        if found.keys() != state.keys() or not all(torch.equal(found[name], state[name]) for name in state):
            raise OSError(None, "what was read back differs from what was written")
        return sha256(temporary)


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        watched = _Watched(stream)
        try:
            torch.save(state, watched)  # type: ignore[arg-type]
        except RuntimeError:  # how torch tells of a full disk
            if watched.fault is not None:
                raise watched.fault from None
            raise


class _Watched:
    """A stream that remembers why it could not be written; torch forgets."""

    def __init__(self, stream: FileIO) -> None:
        self.stream = stream
        self.fault: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        left = memoryview(data)
        try:
            while left.nbytes:
                left = left[self.stream.write(left) :]
        except OSError as fault:
            self.fault = fault
            raise
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing is held back."""


def _check_torch_version() -> None:
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise EnvironmentFault(f"torch {torch.__version__} can be tricked by a .pt file; install torch 2.10 or later")


def _check_zip(path: Path) -> bool:
    """Refuse archives that torch would believe; False for the older formats, which are no archives."""
    with path.open("rb") as stream:
        if stream.read(4) != _ZIP:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _Refused("its records are compressed, which torch never does; refused as a possible bomb")
            if sum(entry.file_size for entry in entries) > _EXPANSION * path.stat().st_size:
                raise _Refused("its records claim more bytes than the file has; refused as a possible bomb")
            if any(re.search(r"(^|/)(constants\.pkl$|code/)", entry.filename) for entry in entries):
                raise _Refused(f"a TorchScript archive, which is a program; {_EXPORT}")
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise _Refused(f"truncated or damaged ({error}); {_AGAIN}") from error
    if broken is not None:
        raise _Refused(f"damaged: the checksum of its record {shown(broken)} does not hold; {_AGAIN}")
    return True


def _load(path: Path, *, is_zip: bool) -> object:
    with _load_faults(), torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


@contextmanager
def _load_faults() -> Iterator[None]:
    """torch tells a damaged file by at least seven kinds of exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if found := re.search(r"GLOBAL (\S+)", text):
            raise _Refused(f"contains {shown(found[1])}, which could run code; refused. Instead {_EXPORT}") from error
        if "TorchScript" in text:
            raise _Refused(f"a TorchScript archive, which is a program; {_EXPORT}") from error
        reason = f"{type(error).__name__}: {text[:_NAME_LENGTH]}"
        raise _Refused(f"truncated, damaged or not a torch file ({reason}); {_AGAIN}") from error


def _state_dict(content: object) -> dict[str, torch.Tensor]:
    """Unwrap and check, entry by entry."""
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise _Refused(f"holds {_kind(content)}, not named tensors; {_EXPORT}")
    return {_name(name): _tensor(value, name=name) for name, value in content.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise _Refused(f"the key {str(name)[:_NAME_LENGTH]!r} is {_kind(name)}, not text; {_EXPORT}")
    return name


def _tensor(value: object, *, name: object) -> torch.Tensor:
    where = f"'{shown(str(name)[:_NAME_LENGTH])}'"
    if not isinstance(value, torch.Tensor):
        raise _Refused(f"{where} is {_kind(value)}, not a tensor; {_EXPORT}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise _Refused(f"{where} is a sparse, quantized or empty-shell tensor; save it dense")
    if value.nbytes > value.untyped_storage().nbytes():
        raise _Refused(f"{where} claims {value.nbytes} bytes, stored are {value.untyped_storage().nbytes()}; refused")
    return value.detach()


def _kind(value: object) -> str:
    return "nothing" if value is None or (isinstance(value, dict) and not value) else f"a {type(value).__name__}"
