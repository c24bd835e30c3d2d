"""The process in which other people's torch files are opened: it gives up all it can, and sends bare tensors back.

Its answer is one line of JSON, and behind a good one a safetensors file. torch is imported only for what has passed
as an archive, so that most bad files cost a tenth of a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from memorysam_cli.storage import children, sandbox, torch_zip
from memorysam_cli.storage.torch_zip import Refused

if TYPE_CHECKING:
    import torch

MEMORY = 512_000_000
"""Bytes beside twice the file, which is read or mapped once, and may have to be made dense."""
SECONDS = 3.0
"""Of processor time, beside that for the file's bytes."""
BYTES_PER_SECOND = 50_000_000


def most_bytes(size: int) -> int:
    """How many bytes the tensors of a file may have; some share their memory in the file, and none in the answer."""
    return 2 * size + 1_000_000


def main(arguments: list[str]) -> None:
    """Read the file that the one argument names."""
    network = sandbox.leave_network()  # first of all: the kernel asks for a single thread
    children.watch_parent(lambda: os._exit(1))
    path = Path(arguments[0])
    with children.claim_stdout() as answers:
        try:
            tensors = read(path)
        except (Refused, sandbox.Attempt) as error:
            _say(answers, {"refused": str(error)})
        except MemoryError:
            _say(answers, {"refused": "asks for more memory than a file of its size may; refused as a possible bomb"})
        except Exception as error:  # of this process's own making: torch cannot be imported, say
            _say(answers, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        else:
            _send(answers, tensors, network=network)
    os._exit(0)  # whatever the file may have left behind is not run at exit


def read(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a file; this process can do little else from here on.

    Raises:
        Refused: names the reason.
    """
    size = path.stat().st_size
    seconds = SECONDS + size / BYTES_PER_SECOND
    with sandbox.bounded(memory=MEMORY, seconds=seconds):
        is_zip = torch_zip.check(path)
    from memorysam_cli.storage import torch_parsing

    sandbox.close(memory=MEMORY + 2 * size, seconds=seconds)
    tried = sandbox.watch()
    found = torch_parsing.parse(path, is_zip=is_zip)
    if tried:
        raise Refused(f"made Python try {tried[0]}; refused. Instead {torch_zip.EXPORT}")
    if (total := sum(tensor.nbytes for tensor in found.values())) > most_bytes(size):
        raise Refused(f"its tensors share memory and claim {total} bytes, the file has {size}; refused")
    return found


def _send(answers: IO[bytes], tensors: Mapping[str, torch.Tensor], *, network: str) -> None:
    from memorysam_cli.storage import tensor_format

    pieces = tensor_format.pieces(tensors, {})
    _say(answers, {"network": network})
    for piece in pieces:
        answers.write(piece)
    answers.flush()


def _say(answers: IO[bytes], answer: Mapping[str, str]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()
