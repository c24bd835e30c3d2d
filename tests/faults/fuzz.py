"""Coverage-guided fuzzing of our own parsers: ``python -m tests.faults.fuzz TARGET [libFuzzer options] [corpus]``.

Whatever the bytes, a parser gives a value or one of our errors; another exception, a hang or much memory ends the run.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["memorysam_cli", "tests.faults.naive"], enable_loader_override=False):
    from memorysam_cli import recipe as recipes
    from memorysam_cli.data import manifest as manifests
    from memorysam_cli.errors import MemorySamError
    from memorysam_cli.storage import archive, documents, images, tensors
    from memorysam_cli.storage.archive import safe_parts
    from memorysam_cli.storage.headers import Refused
    from tests.faults.naive import parsing

SCRATCH = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
MOST_BYTES = 1_000_000


def _file(name: str, data: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def unpack(data: bytes) -> None:
    """The archive reader: zip and tar, by their content."""
    try:
        archive.unpack_beside(_file("x.zip", data), max_bytes=MOST_BYTES)
    finally:
        shutil.rmtree(SCRATCH / "x", ignore_errors=True)
    assert {path.name for path in SCRATCH.iterdir()} <= {"x.zip"}, "something was written outside"


def names(data: bytes) -> None:
    """Names in archives: those that are accepted stay inside."""
    name = data.decode("utf-8", "surrogateescape")
    parts = safe_parts(name)
    assert not {"", ".", "..", "/"} & set(parts) and "/" not in "".join(parts)


def image(data: bytes) -> None:
    """Headers of PNG, JPEG, TIFF, NPY and NPZ, and the checks before pixels are decoded."""
    images.header(_file("x.png", data))
    images.read(SCRATCH / "x.png", max_pixels=10_000)


def ledger(data: bytes) -> None:
    """JSON lines: read, and appended to; what is appended is there afterwards."""
    path = _file("x.jsonl", data)
    before = documents.read_json_lines(path)
    documents.append_json_line(path, {"id": 1})
    assert documents.read_json_lines(path) == [*before, {"id": 1}]


def manifest(data: bytes) -> None:
    """A data set's manifest."""
    folder = SCRATCH / "memorysam" / "x"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_bytes(data)
    manifests.read_info(SCRATCH, "x")


def recipe(data: bytes) -> None:
    """A recipe, from its bytes to its values."""
    recipes.load(_file("x.yaml", data))


def safetensors(data: bytes) -> None:
    """The header of a weights file."""
    tensors.read_metadata(_file("x.safetensors", data))


def naive(data: bytes) -> None:
    """What the fuzzer must find, or it finds nothing."""
    try:
        parsing.parse(data)
    except ValueError:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (unpack, names, image, ledger, manifest, recipe, safetensors, naive)
}


def main() -> None:
    """Fuzz one target."""
    target = TARGETS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            target(data)
        except (MemorySamError, Refused):
            return

    atheris.Setup(sys.argv, one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    main()
