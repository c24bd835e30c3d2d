"""What the 44 bad inputs of RELIABILITY §4 share: a case, the ways to run it, and what is wrong with how it ended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.forks import ROOT, Forks

PROGRAM = (sys.executable, "-m", "memorysam_cli")
ERROR = "memorysam: error ["
LIMITED = (
    "import os, resource, sys; size = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""Runs a Python program whose files cannot grow."""
CACHES = (".cache", ".config/matplotlib", "torchinductor_")
"""What other people's libraries leave in $HOME and $TMPDIR."""
HERE, HOME, TEMPORARY = "here", "home", "tmp"
"""Inside a case's folder: where it runs, and what it takes for $HOME and $TMPDIR."""


@dataclass(frozen=True)
class Place:
    """A case's folder, and the one that its inputs are copied from."""

    root: Path
    template: Path

    @property
    def here(self) -> Path:
        """Where the command runs."""
        return self.root / HERE

    def take(self, *names: str) -> None:
        """Copy folders or files of the template."""
        for name in names:
            source, target = self.template / name, self.here / name
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, target, symlinks=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)

    def write(self, name: str, content: bytes | str) -> Path:
        """A file of the case's own."""
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


Arguments = Sequence[str]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        row: of RELIABILITY §4.
        name: what is bad.
        make: lays it out in a place, and returns the command line.
        code: the exit code that it must end with; 0 where the row says that it works.
        words: parts of the one line of the error.
        said: parts of all that stderr says.
        outputs: below the working folder, what the command may change or add; all else stays as it was.
        recorded: the output folder whose ``errors.jsonl`` holds the line, if the command had begun to own one.
        environment: variables of its own.
        answers: whether an answer on stdout is right, as for work that is done but for some scenes.
        file_limit: bytes after which no file grows: a disk that is full; 0 for no limit.
    """

    row: int
    name: str
    make: Callable[[Place], Arguments]
    code: int
    words: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    recorded: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    answers: bool = False
    file_limit: int = 0

    def __str__(self) -> str:
        return f"{self.row}, {self.name}"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last line of stderr."""
        return self.err.rstrip("\n").rpartition("\n")[2]


def place_for(folder: Path, template: Path) -> Place:
    """Empty folders for a case."""
    for name in (HERE, HOME, TEMPORARY):
        (folder / name).mkdir(parents=True)
    return Place(folder, template)


def environment(place: Place, case: Case) -> dict[str, str]:
    """Variables of a user who has nothing but the case's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMORYSAM_", "XDG_"))}
    own = {"HOME": str(place.root / HOME), "TMPDIR": str(place.root / TEMPORARY), "OMP_NUM_THREADS": "1"}
    return kept | own | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | dict(case.environment)


def really(case: Case, place: Place, arguments: Arguments, *, program: Sequence[str] = PROGRAM) -> Ended:
    """Run the program as a user does: a process of its own."""
    if case.file_limit:
        program = (sys.executable, "-c", LIMITED, str(case.file_limit), *program[1:])
    done = subprocess.run(
        [*program, *arguments], cwd=place.here, env=environment(place, case), capture_output=True, check=False
    )  # fmt: skip
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def forked(case: Case, place: Place, arguments: Arguments, forks: Forks) -> Ended:
    """Run the program in a fork of a process that has imported everything: the same, and two seconds quicker."""
    own = {name: value for name, value in environment(place, case).items() if name in {"HOME", "TMPDIR"}}
    variables = own | dict(case.environment)
    ended = forks.run(
        "bad input", str(place.here), str(place.root / "stdout"), variables, list(arguments), case.file_limit
    )
    written = (place.root / "stdout").read_text()
    (place.root / "stdout").unlink()
    return Ended(ended.code, written, ended.said)


def tree(folder: Path) -> dict[str, str]:
    """Kind, mode and content of everything below a folder."""
    return {str(path.relative_to(folder)): _fingerprint(path) for path in folder.rglob("*")}


def _fingerprint(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    mode = oct(stat.S_IMODE(path.stat().st_mode))
    return f"{mode} {hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else 'folder'}"


def violations(case: Case, ended: Ended, before: Mapping[str, str], after: Mapping[str, str], root: Path) -> list[str]:
    """Every way in which a case did not end as promised; nothing if all is well.

    Args:
        case: what was tried.
        ended: how it ended.
        before: :func:`tree` of the case's folder before the command ran.
        after: the same when it had ended.
        root: that folder.
    """
    found = [f"exit code {ended.code}, not {case.code}"] if ended.code != case.code else []
    if "Traceback" in ended.err:
        found.append("a traceback")
    if ended.out and not case.answers:
        found.append(f"an answer on stdout: {ended.out[:80]!r}")
    if case.code:
        found += _faults_of_the_line(case, ended)
    found += [f"stderr lacks {part!r}" for part in case.said if part not in ended.err]
    found += _changes(case, before, after)
    if case.recorded:
        found += _faults_of_the_record(root / HERE / case.recorded / "errors.jsonl", ended)
    return found


def _faults_of_the_line(case: Case, ended: Ended) -> list[str]:
    lines = [line for line in ended.err.splitlines() if line.startswith(ERROR)]
    if len(lines) != 1 or lines[0] != ended.line:
        return [f"{len(lines)} lines of error, or not the last one"]
    found = [f"the line lacks {part!r}" for part in case.words if part not in ended.line]
    if not ended.line.startswith(f"{ERROR}{case.code}]: "):
        found.append("the line has another code")
    return found


def _changes(case: Case, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What was lost, changed or left behind outside the declared outputs."""
    declared = tuple(f"{HERE}/{name}" for name in case.outputs)
    caches = tuple(f"{folder}/{name}" for folder in (HOME, TEMPORARY) for name in CACHES)

    def is_declared(name: str) -> bool:
        is_output = any(name == output or name.startswith(f"{output}/") for output in declared)
        return is_output or name.startswith(caches) or name == f"{HOME}/.config"

    names = before.keys() | after.keys()
    changed = [name for name in names if before.get(name) != after.get(name) and not is_declared(name)]
    found = [f"changed: {name} ({before.get(name)} -> {after.get(name)})" for name in sorted(changed)]
    return found + [f"a temporary stays: {name}" for name in sorted(after) if ".tmp-" in name]


def _faults_of_the_record(path: Path, ended: Ended) -> list[str]:
    if not path.is_file():
        return [f"no {path.name} in the output folder"]
    last = json.loads(path.read_text().splitlines()[-1])
    told = f"{ERROR}{last['code']}]: {last['message']}"
    return [] if told == ended.line else [f"{path.name} says {last}, not what stderr says"]
