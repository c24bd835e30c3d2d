"""What the weights' fault tests do in children: open one hostile file, or many that were bent, as the product does."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from memorysam_cli.storage import foreign, torch_child, torch_format
from memorysam_cli.storage.torch_format import Refused
from tests.faults import malice
from tests.faults.naive import loading

ACCEPTED, REFUSED = 0, 5


def warm() -> None:
    """Do the slow imports of a first load, which the product's process does for each file."""
    path = Path(sys.argv[0]).with_suffix(".none")
    try:
        foreign.parse(path, is_zip=False)
    except Refused:
        return


def open_one(path: str) -> int:
    """The very function that the product's own process runs, limits and all."""
    torch_child.leave_network()
    try:
        torch_child.read(Path(path))
    except (Refused, MemoryError, torch_format.Attempt) as error:
        print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    return ACCEPTED


def open_naively(path: str) -> int:
    """Without any of it."""
    try:
        loading.load_anything(Path(path))
    except Exception:
        return REFUSED
    return ACCEPTED


def open_bent(folder: str, seed: str, count: int) -> int:
    """Flip one bit of the pickle in each file, with checksums that agree, and open them all."""
    rng = random.Random(seed)
    program = malice.inner(malice.saved(malice.state()))
    legacy = malice.saved(malice.state(), _use_new_zipfile_serialization=False)
    paths = []
    for index in range(count):
        data = bytearray(program if index % 2 else legacy[: len(legacy) - 350])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path = Path(folder, f"{index}.pt")
        path.write_bytes(malice.archive(bytes(data)) if index % 2 else bytes(data) + legacy[-350:])
        paths.append(path)
    torch_child.confine(memory=torch_child.MEMORY, seconds=60)
    torch_child.watch_calls()
    refused = 0
    for path in paths:
        try:
            foreign.parse(path, is_zip=torch_format.check_archive(path))
        except Refused:
            refused += 1
    print(f"refused {refused}", file=sys.stderr)
    return ACCEPTED
