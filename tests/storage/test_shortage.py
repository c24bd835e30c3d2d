"""No reader blames a file, and passes over none, where the machine has no descriptor left to open it with."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from memorysam_cli.data import listing
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.storage import documents, images, tensors

READERS: dict[str, Callable[[Path], object]] = {
    "weights": tensors.read,
    "weights' card": tensors.read_metadata,
    "weights at first sight": tensors.check_file,
    "sum": tensors.sha256,
    "image": images.read,
    "image's size": images.shape,
    "JSON": documents.read_json,
    "folder": lambda path: list(listing.walk(path.parent)),
}


@contextmanager
def no_descriptors() -> Iterator[None]:
    """As under ``ulimit -n`` where all are in use."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    taken = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("reader", READERS)
def test_want_of_descriptors_is_the_machines_fault(reader: str, tmp_path: Path) -> None:
    path, read = tmp_path / "file.png", READERS[reader]
    if reader.startswith("weights"):
        save_file({"a": np.ones(3, np.float32)}, path)
    elif reader.startswith("image"):
        images.write_png(path, np.zeros((4, 4), np.uint8))
    else:
        path.write_text("{}")
    read(path)
    with no_descriptors(), pytest.raises(EnvironmentFault, match="Too many open files"):
        read(path)
    read(path)
