"""The fork server of blocks O and S: good files, written once; then each child runs the program in hostile worlds."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults import disks
from tests.faults.search_worlds import WORLDS, in_order
from tests.forks import ROOT

LEFT_OUT = 99
"""Exit code: root must not be let at devices here, for the kernel does not let us fence it in."""
NAIVE = ROOT / "tests/faults/naive/searching.py"
ALWAYS = {
    "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT), "HOME": "{root}/home", "TMPDIR": "{root}/tmp", "HF_HOME": "{root}/home/hf",
}  # fmt: skip


def warm(template: str = "") -> None:
    """Write the files that the lines take, and import whatever the program needs; nothing without a folder."""
    if not template:
        return
    import torch

    from memorysam_cli import app
    from memorysam_cli.model.reference import reference_shapes
    from tests.data.own_sensors import write_sensors
    from tests.data.trees import write_tree
    from tests.faults import jobs_bad_inputs
    from tests.faults.search_lines import PUBLISHED
    from tests.model.upstream import drawn

    torch.set_num_threads(1)
    jobs_bad_inputs.warm(template)
    folder = Path(template)
    for name in PUBLISHED:
        write_tree(name, folder / name)
    write_sensors(folder / "own", scenes=4)
    write_sensors(folder / "ready", scenes=4)
    torch.save(drawn(reference_shapes("nano", tokens=25, rank=4)), folder / "RGBD_epoch1_2.0.pth")
    shutil.copy(folder / "runs/small/checkpoints/best.safetensors", folder / "w.safetensors")
    shutil.copytree(folder / "runs/small", folder / "runs/second", symlinks=True)
    before = Path.cwd()
    os.chdir(folder)
    lines = (
        ["prepare", "folder", "ready", "-m", "rgb=images/**/*.jpg", "-m", "depth=depth/**/*_depth.png"],
        ["report", "masks", "--out", "first.html"],
        ["report", "runs/small", "--out", "first.html"],
    )
    for line in lines:
        if app.run([*line, "-q"]):
            raise RuntimeError(f"{line}: failed")
    os.chdir(before)


def work(kind: str, *arguments: Any) -> int:
    """A try of block S, or a bad input of block O."""
    from tests.faults import jobs_bad_inputs

    done: int = {"try": run, "bad input": jobs_bad_inputs.run}[kind](*arguments)
    return done


def run(place: str, words: Sequence[str], worlds: Sequence[str], is_fresh: bool, loses_rights: bool) -> int:
    """One try: the program in a hostile world, in this child or in an interpreter of its own.

    Args:
        place: the try's own folder, with ``here``, ``home`` and ``tmp``.
        words: of the command line; the first may be ``naive``: not our program then.
        worlds: names of :data:`WORLDS`, entered one after the other.
        is_fresh: start an interpreter anew.
        loses_rights: root may not read everything, either.
    """
    root = Path(place)
    if not disks.fence(root) and os.getuid() == 0 and any(word.startswith("/") for word in words):
        return LEFT_OUT
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(root / "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 1)
    os.chdir(root / "here")
    for name in list(os.environ):
        if name.startswith(("MEMORYSAM_", "XDG_", "LC_", "LANG")):
            del os.environ[name]
    variables: dict[str, str | None] = dict(ALWAYS)
    for name in worlds:
        variables |= WORLDS[name].variables
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value.format(root=root)
    for name in in_order(worlds):
        enter = WORLDS[name].enter
        if enter is not None:
            enter(root)
            if name in {"here read-only", "tiny shm"}:
                os.chdir(root / "here")  # where the mount is
    if loses_rights:
        disks.lose_rights()
    is_ours = words[0] != "naive"
    program = ["-m", "memorysam_cli"] if is_ours else [str(NAIVE)]
    if is_fresh:
        os.closerange(3, 256)
        os.execv(sys.executable, [sys.executable, *program, *words[0 if is_ours else 1 :]])
    return _in_this_process(words if is_ours else words[1:], is_ours=is_ours)


def _in_this_process(words: Sequence[str], *, is_ours: bool) -> int:
    """As an interpreter begins: streams anew, encoded as the environment says, none where there is none."""
    import tempfile

    tempfile.tempdir = None
    sys.stdin, sys.stdout, sys.stderr = (_stream(number) for number in range(3))
    sys.argv = ["memorysam", *words]
    if is_ours:
        from huggingface_hub import constants

        from memorysam_cli import app

        constants.HF_HOME = os.environ["HF_HOME"]  # read when it was imported, for all children
        constants.HF_HUB_CACHE = f"{constants.HF_HOME}/hub"
        app.main()
    else:
        from tests.faults.naive import searching

        searching.main()
    return 0


def _stream(number: int) -> Any:
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    try:
        raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
    except OSError:
        return None
    rule = "backslashreplace" if number == 2 else errors or "strict"
    if number == 0:
        return io.TextIOWrapper(io.BufferedReader(raw), encoding=encoding, errors=rule)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=rule, line_buffering=number == 2)
