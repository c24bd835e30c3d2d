"""The zip archive that ``torch.save`` writes, checked before torch sees it; torch is not imported here.

torch neither compares an archive's checksums nor minds bombs, and reads it by a library of its own: what two
libraries could read differently is refused.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

from memorysam_cli.text import shown

EXPORT = "export its state_dict: torch.save(model.state_dict(), file)"
AGAIN = "get the file again"
MAX_RECORDS = 100_000
MAX_PICKLE_BYTES = 64_000_000
_EXPANSION = 1.05
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER, _END_RECORD = 30, 22
_SCRIPT = re.compile(r"(^|/)(constants\.pkl$|code/)")


class Refused(Exception):
    """Why a file is refused, and what to do; one line without the file's name."""


def check(path: Path) -> bool:
    """Refuse archives that torch would believe.

    Returns:
        False for the older formats, which are no archives.

    Raises:
        Refused: damaged, compressed, TorchScript, or put together in a way that torch never does.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(archive, size=path.stat().st_size)
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Refused(f"truncated or damaged ({shown(reason)}); {AGAIN}") from error
    if broken is not None:
        raise Refused(f"damaged: the checksum of its record {shown(broken)[:120]} does not hold; {AGAIN}")
    return True


def _check_records(archive: zipfile.ZipFile, *, size: int) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_RECORDS:
        raise Refused(f"{len(entries)} records, more than the {MAX_RECORDS} allowed; refused as a possible bomb")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Refused("its records are compressed, which torch never does; refused as a possible bomb")
    if sum(entry.file_size for entry in entries) > _EXPANSION * size:
        raise Refused("its records claim more bytes than the file has; refused as a possible bomb")
    if any(_SCRIPT.search(entry.filename) for entry in entries):
        raise Refused(f"a TorchScript archive, which is a program; {EXPORT}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise Refused("two of its records have one name, which torch never does; refused")
    programs = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1:
        raise Refused(f"a zip archive with {len(programs)} records data.pkl, not 1: no file of torch.save; {EXPORT}")
    if programs[0].file_size > MAX_PICKLE_BYTES:
        raise Refused(f"its data.pkl has {programs[0].file_size} bytes, {MAX_PICKLE_BYTES} are allowed; refused")
    _check_places(archive, entries)


def _check_places(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """From the first byte to the last the file is this archive, and no two records share a byte."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end or (end == 0 and entry.header_offset):
            raise Refused("its records overlap, or something stands before them; refused as two files in one")
        end = entry.header_offset + _LOCAL_HEADER + len(entry.filename.encode()) + entry.file_size
    if end > archive.start_dir or archive.comment:
        raise Refused("its list of records is not where torch puts it; refused as two files in one")
