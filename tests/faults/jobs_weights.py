"""What the weights' fault tests do in children: open one hostile file, or many that were bent, as the product does."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from memorysam_cli.storage import sandbox, torch_child, torch_parsing, torch_zip
from memorysam_cli.storage.torch_zip import Refused
from tests.faults import malice
from tests.faults.naive import loading

ACCEPTED, REFUSED = 0, 5


def warm() -> None:
    """Do the slow imports of a first load, which the product's process does for each file."""
    path = Path(sys.argv[0]).with_suffix(".none")
    try:
        torch_parsing.parse(path, is_zip=False)
    except Refused:
        return


def open_one(path: str) -> int:
    """The very function that the product's own process runs, limits and all."""
    sandbox.leave_network()
    try:
        torch_child.read(Path(path))
    except (Refused, MemoryError, sandbox.Attempt) as error:
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
    sandbox.close(memory=torch_child.MEMORY, seconds=60)
    sandbox.watch()
    refused = 0
    for path in paths:
        try:
            torch_parsing.parse(path, is_zip=torch_zip.check(path))
        except Refused:
            refused += 1
    print(f"refused {refused}", file=sys.stderr)
    return ACCEPTED
