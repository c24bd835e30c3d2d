"""The one place where torch opens a pickle. ``weights_only`` is the lock on it; there is no option here to turn it.

Files of others are opened in a process of its own only (:mod:`memorysam_cli.storage.torch_child`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memorysam_cli.errors import is_out_of_memory
from memorysam_cli.storage import pickle_words, sandbox
from memorysam_cli.storage.tensor_format import DTYPES, MAX_TENSORS
from memorysam_cli.storage.torch_zip import AGAIN, EXPORT, Refused
from memorysam_cli.text import shown

_WRAPPERS = ("model", "model_state_dict", "state_dict")
_NAME_LENGTH = 80

# Plain NumPy numbers (an epoch's best score, say) are common beside weights and can do no harm.
_HARMLESS: list[Any] = [
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # NumPy 1's name for it
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


def parse(path: Path, *, is_zip: bool) -> dict[str, torch.Tensor]:
    """The named tensors of a ``.pt`` or ``.pth`` file, detached, on the CPU; those of a zip are mapped, not copied.

    Args:
        path: a state dict, plain or under ``model``, ``model_state_dict`` or ``state_dict``.
        is_zip: what :func:`memorysam_cli.storage.torch_zip.check` found.

    Raises:
        Refused: damaged, code or other objects inside, values that are not tensors; names the culprit.
    """
    with _load_faults(path), torch.serialization.safe_globals(_HARMLESS):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    return _state_dict(content)


@contextmanager
def _load_faults(path: Path) -> Iterator[None]:
    """torch tells a damaged file by at least seven kinds of exception."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        text = text.rpartition("WeightsUnpickler error: ")[2]  # what stands before it is advice
        if isinstance(error, sandbox.Attempt):
            raise Refused(f"made Python try {error}, which weights never need; refused. Instead {EXPORT}") from error
        if is_out_of_memory(error):
            raise Refused("asks for more memory than a file of its size may; refused as a possible bomb") from error
        if "TorchScript" in text:
            raise Refused(f"a TorchScript archive, which is a program; {EXPORT}") from error
        named = re.search(r"GLOBAL (\S+)", text)
        found = pickle_words.culprit(path, name=named[1] if named else None)
        if named or found:
            name = shown((named[1] if named else found.name if found else "")[:_NAME_LENGTH])
            key = f" (at '{shown(found.key[:_NAME_LENGTH])}')" if found and found.key is not None else ""
            raise Refused(f"contains {name}{key}, which could run code; refused. Instead {EXPORT}") from error
        reason = f"{type(error).__name__}: {shown(text[:_NAME_LENGTH])}"
        raise Refused(f"truncated, damaged or not a torch file ({reason}); {AGAIN}") from error


def _state_dict(content: object) -> dict[str, torch.Tensor]:
    """Unwrap and check, entry by entry."""
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
        raise Refused(f"the key '{shown(name[:_NAME_LENGTH])}' is no Unicode text; {EXPORT}") from None
    return name


def _tensor(value: object, *, name: object) -> torch.Tensor:
    where = f"'{shown(str(name)[:_NAME_LENGTH])}'"
    if not isinstance(value, torch.Tensor):
        raise Refused(f"{where} is {_kind(value)}, not a tensor; {EXPORT}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise Refused(f"{where} is a sparse, quantized or empty-shell tensor; save it dense")
    if value.dtype not in DTYPES:
        raise Refused(f"{where} is {value.dtype}; weights are one of {', '.join(DTYPES.values())}")
    if value.nbytes > value.untyped_storage().nbytes():
        raise Refused(f"{where} claims {value.nbytes} bytes, stored are {value.untyped_storage().nbytes()}; refused")
    return value.detach()


def _kind(value: object) -> str:
    return "nothing" if value is None or (isinstance(value, dict) and not value) else f"a {type(value).__name__}"
