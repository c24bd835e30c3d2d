"""The folder that predictions are written into.

It holds ``masks/<scene id>.png`` (and ``color``, ``overlay``, ``confidence`` where asked), ``classes.json``, the
ledger ``predictions.jsonl`` with one line per scene, and, written last, ``_SUCCESS.json``. Until then what is done is
noted below ``.parts``; see :mod:`~memorysam_cli.engine.prediction.parts`.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock
from memorysam_cli.text import few

LEDGER = "predictions.jsonl"
CLASSES = "classes.json"
SUCCESS = "_SUCCESS.json"
LEGEND = "legend.png"
MASKS = "masks"
EXTRAS = ("color", "overlay", "confidence")
"""What can be written beside the masks, each in a tree of its own."""
PARTS = ".parts"
"""The folder of what shards have done; there only until the last of them is."""

Line = dict[str, Any]
"""Of the ledger: ``id``, ``status`` and more."""

SHOWN_COLLISIONS = 10


def refuse_collisions(scenes: Sequence[Scene]) -> None:
    """Refuse scenes whose outputs would meet in one file, also on a file system that ignores case.

    Raises:
        DataError: the first ten pairs and how many there are; or an id that would leave the output folder.
    """
    owners: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for scene in scenes:
        path = PurePosixPath(scene.id)
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in scene.id:
            raise DataError(f"scene {scene.id!r}: is no name for an output file; rename the scene")
        key = _key(f"{path}.png")
        if key in owners:
            pairs.append((owners[key], scene.id))
        owners.setdefault(key, scene.id)
    for scene in scenes:  # `a` is written as a.png, and so `a.png/b` cannot be a file in a folder of that name
        for parent in PurePosixPath(scene.id).parents:
            if _key(str(parent)) in owners:
                pairs.append((owners[_key(str(parent))], scene.id))
    if pairs:
        listed = few([f"{first!r} and {second!r}" for first, second in pairs], SHOWN_COLLISIONS)
        raise DataError(f"{len(pairs)} pairs of scenes would share an output file: {listed}; rename them")


def refuse_foreign(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something else than earlier predictions.

    Raises:
        UsageError: it is a file, or it is not empty and has no ledger.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    is_ours = (out / LEDGER).is_file() or (out / PARTS).is_dir()
    # Weights that are refused leave no more than these in an otherwise untouched folder.
    own = {*lock.NAMES, lock.FAULTS}
    foreign = out.is_dir() and any(entry.name not in own for entry in out.iterdir())
    if foreign and not is_ours and not overwrite:
        raise UsageError(f"--out {out}: is not empty and holds no predictions; give another folder, or --overwrite")


def begin(out: Path, info: DatasetInfo) -> None:
    """Remove what an earlier prediction wrote, so that none of its masks passes for a new one, and name the classes.

    Args:
        out: the output folder, locked by the caller.
        info: classes and palette.
    """
    (out / SUCCESS).unlink(missing_ok=True)
    (out / LEGEND).unlink(missing_ok=True)  # of other classes, perhaps
    count = clear(out / LEDGER, out)
    if count:
        console.note(f"{out}: replaces the predictions of an earlier run ({count} scenes)")
    documents.write_json(out / CLASSES, class_list(info))


def clear(ledger: Path, out: Path) -> int:
    """Remove the files that a ledger names, and then the ledger; returns how many lines it had."""
    count = 0
    for count, line in enumerate(lines(ledger), 1):  # noqa: B007
        remove(out, line)
    ledger.unlink(missing_ok=True)
    return count


def lines(ledger: Path) -> Iterator[Line]:
    """The lines of a ledger that are objects; what else somebody wrote there is passed over."""
    if not ledger.is_file():
        return
    with atomic.faults(ledger), ledger.open("rb") as stream:
        for text in stream:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def remove(out: Path, line: Line) -> None:
    """Remove the files that a line of a ledger names; whatever else it says, nothing outside of the trees is touched.

    Args:
        out: the folder of the predictions.
        line: its keys ``mask``, ``color``, ``overlay`` and ``confidence`` count.
    """
    for key in ("mask", *EXTRAS):
        path = PurePosixPath(str(line.get(key, "")))
        if len(path.parts) > 1 and path.parts[0] in (MASKS, *EXTRAS) and ".." not in path.parts:
            remove_file(out / path, tree=out / path.parts[0])


def remove_file(path: Path, *, tree: Path) -> None:
    """Remove a file of a tree, if it is there; not through a link that leads out of the tree, and no folder.

    Raises:
        EnvironmentFault: it is there and cannot be removed.
    """
    try:
        is_ours = not stat.S_ISDIR(path.lstat().st_mode) and path.parent.resolve().is_relative_to(tree.resolve())
    except (OSError, ValueError):  # not there, or a name that no file can have
        return
    if is_ours:
        with atomic.faults(path):
            path.unlink(missing_ok=True)


def sweep(out: Path) -> int:
    """Remove the temporaries that killed writers left; returns how many.

    Args:
        out: the output folder, locked by the caller, of a prediction that nobody works on any more.
    """
    count = 0
    with atomic.faults(out):
        for name in (LEDGER, SUCCESS, CLASSES):
            for path in out.glob(f".{name}.tmp-*"):
                path.unlink(missing_ok=True)
                count += 1
        for tree in (MASKS, *EXTRAS):
            for place, _, names in os.walk(out / tree):  # does not follow links
                for name in filter(atomic.is_temporary, names):
                    Path(place, name).unlink(missing_ok=True)
                    count += 1
    return count


def class_list(info: DatasetInfo) -> list[dict[str, Any]]:
    """The content of ``classes.json``."""
    named = zip(info.classes, info.palette, strict=True)
    return [{"id": index, "name": name, "color": list(shade)} for index, (name, shade) in enumerate(named)]


def _key(path: str) -> str:
    """Equal for paths that are one file on a file system that ignores case and Unicode form."""
    return unicodedata.normalize("NFC", path).casefold()
