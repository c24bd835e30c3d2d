"""The frame of the program: its help, its exit codes, and what stderr says."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from memorysam_cli import __version__, app, errors, model
from memorysam_cli.commands import options
from memorysam_cli.data import DATASETS
from memorysam_cli.report import console
from memorysam_cli.storage import hub
from tests import imported


def memorysam(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memorysam_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group of the program, by what one types."""

    def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from below(f"{path} {name}", child)

    return below("memorysam", get_command(app.build()))


ALL = dict(commands())


def examples(path: str) -> list[str]:
    """The command lines that end a help, without the program's name."""
    return [line.removeprefix("  memorysam ") for line in ALL[path].epilog.splitlines()[2::2]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Puts one command, ``fail``, in place of all others; it raises what it is given."""

    def install(fault: BaseException) -> None:
        def fail() -> None:
            print("something on stdout")
            raise fault

        module = types.ModuleType("failing_command")
        module.__dict__.update(fail=fail)
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setattr(app, "COMMANDS", {"fail": "failing_command:fail", "recipes": app.COMMANDS["recipes"]})

    return install


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported.run(["--help"], tmp_path) == ([0], "", {"typer", "pyyaml"})


def test_the_catalog_is_complete() -> None:
    assert list(app.COMMANDS) == [
        *("prepare", "check", "plan", "train", "watch", "evaluate", "predict", "convert", "report", "demo", "recipes"),
        *("weights", "export", "card", "bench", "doctor"),
    ]
    out = memorysam("--help").stdout
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()]
    assert listed == list(app.COMMANDS)


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_help_ends_with_examples(path: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([*path.split()[1:], flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    shown = out.partition("Examples:\n")[2].rstrip("\n").split("\n")
    lines, remarks = shown[::2], shown[1::2]
    assert 2 <= len(lines) == len(remarks) <= 4
    assert all(line.startswith("    memorysam ") for line in lines), "cannot be copied"
    assert all(remark.startswith(" " * 8) and remark.strip() for remark in remarks)


WORKED = [(path, line) for path in ALL if not hasattr(ALL[path], "commands") for line in examples(path)]


@pytest.mark.parametrize(("path", "line"), WORKED)
def test_every_example_is_a_command_line_of_its_command(path: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "is_missing", lambda _: False)
    monkeypatch.setattr(model, "read_card", lambda _: None)
    monkeypatch.setattr(hub, "local_path", Path)
    name = path.removeprefix("memorysam ")
    words = shlex.split(re.split(r" (?:\|\||>|\|) ", line)[0])
    assert words[: len(name.split())] == name.split(), "the example shows another command"
    ALL[path].make_context(name, words[len(name.split()) :])  # an unknown option, or one too few, raises


DATA, WEIGHTS, OTHER, CHECK = 3, 5, 2, 10
"""Exit codes of data, weights, a recipe or a run, and a check."""
NOWHERE = [
    # Each has a second fault, which is never told instead.
    ("prepare folder nosuch --modality rgb=x --labels y", DATA),
    ("prepare folder . --modality rgb=x --labels y --classes nosuch", OTHER),
    ("prepare folder . --modality rgb=x --split train=nosuch", OTHER),
    ("prepare folder . --modality rgb=x --pair nearest --tolerance 1s --times nosuch --labels y", OTHER),
    ("prepare manifest nosuch ..", DATA),
    ("prepare hha nosuch --depth x --camera 0", DATA),
    *((f"prepare {name} nosuch", DATA) for name in ("deliver", "mcubes", "fmb")),
    ("check nosuch --dataset x", DATA),
    ("plan --recipe x --data nosuch", DATA),
    ("plan --recipe nosuch.yaml --modalities x", OTHER),
    ("train --data nosuch --batch x", DATA),
    ("train --recipe nosuch.yaml --batch x", OTHER),
    ("train --resume nosuch --recipe x", WEIGHTS),
    ("train --init nosuch --recipe x", WEIGHTS),
    ("watch nosuch --verbose --quiet", OTHER),
    ("evaluate --data nosuch --tta-scales x", DATA),
    ("evaluate --weights nosuch --tta-scales x", WEIGHTS),
    ("predict nosuch --resume --overwrite", DATA),
    ("predict --data nosuch --shard x", DATA),
    ("predict . --weights nosuch --modalities ,", WEIGHTS),
    ("report . nosuch", OTHER),
    ("report nosuch . --verbose --quiet", OTHER),
    ("recipes show nosuch.yaml", OTHER),
    ("recipes diff x nosuch.yaml", OTHER),
    ("recipes copy nosuch.yaml x", OTHER),
    ("weights info nosuch", WEIGHTS),
    ("weights verify nosuch", CHECK),
    ("weights merge nosuch --out .", WEIGHTS),
    ("weights import nosuch --out x", WEIGHTS),
    ("weights import . --recipe nosuch.yaml --out x", OTHER),
    ("weights import . --data nosuch --out x", DATA),
    ("weights export nosuch --out x", WEIGHTS),
    ("weights push x nosuch", WEIGHTS),
    ("export nosuch --format onnx --out x", WEIGHTS),
    ("card nosuch --out .", WEIGHTS),
    ("--extend nosuch recipes show x", OTHER),
]


@pytest.mark.parametrize(("line", "code"), NOWHERE)
def test_a_path_that_is_not_there_is_told_before_anything_else(
    line: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(line.split()) == code
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert re.search(r"nosuch(\.yaml)?: does not exist", last) and last.startswith(f"memorysam: error [{code}]")
    assert out == "" and not list(tmp_path.iterdir())


OWN_WORDS = {
    "root of prepare synthetic", "out of recipes copy", "classes of prepare folder",
    "times of prepare folder", "times of predict",
}  # fmt: skip
"""Paths that are made, or may lie in another folder as well."""


def test_every_path_that_is_read_is_looked_at_first() -> None:
    for path, command in ALL.items():
        for parameter in getattr(command, "params", ()) if not hasattr(command, "commands") else ():
            is_path = "Path" in str(parameter.type_descriptor.annotation) or "FILE" in str(parameter.metavar)
            name = f"{parameter.name} of {path.removeprefix('memorysam ')}"
            is_published = path.removeprefix("memorysam prepare ") in DATASETS  # their layouts say where to get them
            if is_path and parameter.name not in ("out", "split") and name not in OWN_WORDS and not is_published:
                assert parameter.callback is not None, f"{name}: has no must_exist"


def test_groups_show_examples_of_their_own_commands() -> None:
    for group in [path for path in ALL if hasattr(ALL[path], "commands")]:
        name = group.removeprefix("memorysam").strip()
        assert all(f"{line} ".startswith(name) and len(line.split()) > len(name.split()) for line in examples(group))


@pytest.mark.parametrize("path", ALL)
def test_a_help_is_whole_in_80_columns(path: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    app.run([*path.split()[1:], "--help"])
    out = capsys.readouterr().out
    assert not [line for line in out.splitlines() if line.endswith("...") and not line.startswith("Usage")], "cut"
    assert "range>" not in out, "a type of Python's in place of a word"


@pytest.mark.parametrize("path", [path for path in ALL if not hasattr(ALL[path], "commands")])
def test_the_same_word_is_the_same_option_everywhere(path: str) -> None:
    letters = {"--data": "-d", "--out": "-o", "--recipe": "-r", "--weights": "-w", "--verbose": "-v", "--quiet": "-q"}
    found = {name: option.opts for option in ALL[path].params for name in option.opts}
    assert {"--json", "--verbose", "--quiet"} <= set(found)
    for word, letter in letters.items():
        assert letter in found.get(word, [letter]), word


def test_version_and_completion_are_there() -> None:
    done = memorysam("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"memorysam {__version__}\n", "")
    # Which shell asks is read off the processes above: here a bash, whoever started the tests.
    line = ["bash", "-c", '"$0" -m memorysam_cli --show-completion; exit $?', sys.executable]
    shown = subprocess.run(line, capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "_MEMORYSAM_COMPLETE" in shown.stdout, shown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?; see memorysam --help"),
        (
            ["recipes", "list", "--jsn"],
            "No such option: --jsn (Possible options: --json); see memorysam recipes list --help",
        ),
        (["recipes", "show"], "Missing argument 'NAME|FILE'; see memorysam recipes show --help"),
        (["recipes", "list", "extra"], "Got unexpected extra argument(s) (extra); see memorysam recipes list --help"),
        (
            ["prepare", "synthetic", "x", "--layout", "kitti"],
            "--layout: 'kitti' is not one of 'deliver', 'mcubes'; see memorysam prepare synthetic --help",
        ),
        (["train", "--epochs", "x"], "--epochs: must be a whole number; see memorysam train --help"),
        (
            ["train", "--modalities", "rgb"],
            "No such option: --modalities; in a recipe: --set data.modalities=…; see memorysam train --help",
        ),
        (["recipes", "list", "-v", "-q"], "--verbose and --quiet exclude each other; give one"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(arguments) == 2
    assert capsys.readouterr() == ("", f"memorysam: error [2]: {message}\n")


LEAVES = [path for path in ALL if not hasattr(ALL[path], "commands")]


def test_a_word_where_a_number_belongs_is_refused_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    options = [(path, each) for path in LEAVES for each in ALL[path].params if each.param_type_name == "option"]
    numbers = [(path, each.opts[0]) for path, each in options if each.type_descriptor.annotation in (int, float)]
    assert len(numbers) > 20
    for path, option in numbers:
        app.run([*path.split()[1:], option, "x"])
        said = capsys.readouterr().err
        assert f"{option}: must be a" in said or "Missing argument" in said or "Missing option" in said, (path, said)


@pytest.mark.parametrize("path", LEAVES)
@pytest.mark.parametrize("wrong", [("--no-such-option",), ("-v", "-q")], ids=["typer", "ours"])
def test_every_command_fails_with_one_json_object(
    path: str, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code = app.run([*shlex.split(examples(path)[0]), "--json", *wrong])
    out, err = capsys.readouterr()
    assert code == 2 or "does not exist" in err  # the examples' paths: that comes before the faults of our own
    assert err.startswith(f"memorysam: error [{code}]: ") and out.count("\n") == 1
    message = err.removeprefix(f"memorysam: error [{code}]: ").rstrip("\n")
    assert json.loads(out) == {"schema_version": 1, "error": {"code": code, "message": message}}


def test_a_wrong_line_above_the_commands_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["trian", "--json"], ["recipes", "--json"], ["--extend", "nosuch.py", "doctor", "--json"]):
        assert app.run(arguments) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == 2
    assert app.run(["recipes", "show", "nosuch", "--", "--json"]) == 2  # behind -- it is a name
    assert capsys.readouterr().out == ""


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["recipes"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: memorysam recipes [OPTIONS] COMMAND") and "Examples:\n    memorysam" in err


USERS_FAULTS = [
    errors.UsageError,
    errors.DataError,
    errors.PartialError,
    errors.WeightsError,
    errors.EnvironmentFault,
    errors.NetworkError,
    errors.DivergedError,
    errors.FolderInUseError,
    errors.CheckFailedError,
]


@pytest.mark.parametrize("kind", USERS_FAULTS)
def test_a_users_fault_is_one_line_and_its_exit_code(
    kind: type[errors.MemorySamError], failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(kind("a.png: [bold]odd[/bold]\nname; " + "do this " * 40))
    code = app.run(["fail"])
    assert code == kind.exit_code
    assert code in errors.EXIT_CODES
    err = capsys.readouterr().err
    assert err == f"memorysam: error [{code}]: a.png: [bold]odd[/bold]\\nname; {'do this ' * 40}\n"


def test_each_kind_of_fault_has_a_code_of_its_own() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MemorySamError)
    ]
    assert set(kinds) == {*USERS_FAULTS, errors.MemorySamError, errors.Stopped}
    assert [kind.exit_code for kind in USERS_FAULTS] == list(range(2, 11))
    assert set(errors.EXIT_CODES) == {0, 1, *range(2, 11), 141, *errors.SIGNAL_EXIT_CODES.values()}


class OutOfMemoryError(RuntimeError):
    """As torch's own, without torch."""


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (errors.Stopped("checkpoint step 3 saved", exit_code=143), 143, "checkpoint step 3 saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 6, "/x/y: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 6, "/x/y: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 6, "/x/y: Read-only file system"),
        (MemoryError(), 6, "out of memory (MemoryError); use a smaller batch"),
        (OutOfMemoryError("CUDA out of memory. Tried to\nallocate"), 6, "out of memory (CUDA out of memory. Tried to)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 6, "out of memory ("),
    ],
)
def test_a_fault_of_the_world_has_its_code_and_no_traceback(
    fault: BaseException,
    code: int,
    words: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(fault)
    assert app.run(["fail"]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"memorysam: error [{code}]: {words}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "fault", [KeyError("x"), RuntimeError("x"), FileNotFoundError(errno.ENOENT, "no", "x"), AssertionError()]
)
def test_anything_else_is_our_bug_with_its_traceback(
    fault: Exception, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(fault)
    assert app.run(["fail"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert type(fault).__name__ in err
    assert err.splitlines()[-1].startswith("memorysam: error [1]: this is a bug in memorysam")


ENDS = [
    *((kind("a.png: empty"), kind.exit_code, "a.png: empty") for kind in USERS_FAULTS),
    (errors.Stopped("step 3 is saved", exit_code=143), 143, "step 3 is saved"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (app.Terminated(signal.SIGTERM), 143, "terminated (SIGTERM)"),
    (OSError(errno.ENOSPC, "No space left", "x"), 6, "x: No space left; fix that and run the same command again"),
    (KeyError("x"), 1, "this is a bug in memorysam; please report it with the traceback above and the command line"),
    (typer.Exit(4), 4, "finished, but some scenes were left out; the list is written"),
]


@pytest.mark.parametrize(("fault", "code", "message"), ENDS, ids=[type(fault).__name__ for fault, *_ in ENDS])
@pytest.mark.parametrize("answered", [{}, {"done": 7}], ids=["alone", "beside the answer"])
def test_under_json_every_end_is_one_object(
    fault: BaseException,
    code: int,
    message: str,
    answered: dict[str, int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(json: options.Json = False) -> None:
        options.begin(json=json)
        if answered:
            console.answer({"schema_version": 1, **answered})
        raise fault

    module = types.ModuleType("failing_command")
    module.__dict__.update(fail=fail)
    monkeypatch.setitem(sys.modules, "failing_command", module)
    monkeypatch.setattr(app, "COMMANDS", {"fail": "failing_command:fail", "recipes": app.COMMANDS["recipes"]})
    assert app.run(["fail", "--json"]) == code
    expected = {"schema_version": 1, **answered, "error": {"code": code, "message": message}}
    assert json.loads(capsys.readouterr().out) == expected


def raised(*faults: BaseException) -> BaseException:
    """The last of faults of which each came up while the one before was being handled."""
    for before, fault in itertools.pairwise((None, *faults)):
        fault.__context__ = before
    return faults[-1]


def _machines_faults() -> list[tuple[BaseException, str]]:
    """What Python says where a machine is short of something, and what of it the line tells."""
    loop = RuntimeError("Symlink loop from '/data/a'")
    library = f"libx.so.1: cannot open shared object file: {os.strerror(errno.EMFILE)}"
    return [
        (RuntimeError("can't start new thread"), "no more processes or threads may be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "a: Too many levels"),
        (loop, "/data/a: the link leads to itself"),
        (ImportError(library), library),
    ]


@pytest.mark.parametrize(("fault", "words"), _machines_faults(), ids=lambda value: type(value).__name__)
def test_a_shortage_of_the_machine_is_told_as_such(
    fault: BaseException, words: str, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(fault)
    assert app.run(["fail"]) == 6
    err = capsys.readouterr().err
    assert err.startswith(f"memorysam: error [6]: {words}") and err.count("\n") == 1


def test_other_faults_of_the_same_classes_are_bugs_of_ours() -> None:
    for fault in (RuntimeError("a thread"), ImportError("No module named 'x'"), OSError(errno.EBADF, "odd")):
        assert errors.environment_fault(fault) is None
        errors.raise_shortage(fault)


DIVERGED, FULL = errors.DivergedError("step 7: loss nan"), errors.EnvironmentFault("run: the disk is full")
BAD_SCENE, NO_HUB = errors.DataError("a.png: empty"), errors.NetworkError("hub: HTTP 500")
BAD_WEIGHTS, PARTLY = errors.WeightsError("w: truncated"), errors.PartialError("1 of 2 scenes were left out")


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ((DIVERGED, FULL), 8, "step 7: loss nan; besides: run: the disk is full"),
        ((FULL, DIVERGED), 8, "step 7: loss nan; besides: run: the disk is full"),
        ((FULL, BAD_WEIGHTS), 6, "run: the disk is full; besides: w: truncated"),
        ((BAD_SCENE, BAD_WEIGHTS), 5, "w: truncated; besides: a.png: empty"),
        ((NO_HUB, BAD_SCENE), 3, "a.png: empty; besides: hub: HTTP 500"),
        ((PARTLY, NO_HUB, BAD_SCENE, BAD_WEIGHTS, FULL, DIVERGED), 8, "step 7: loss nan; besides: run: the disk is"),
        ((BAD_SCENE, errors.UsageError("--out x: is a file")), 2, "--out x: is a file\n"),
        ((DIVERGED, errors.Stopped("step 3 is saved", exit_code=143)), 143, "step 3 is saved\n"),
        ((OSError(errno.ENOTDIR, "Not a directory"), BAD_SCENE), 3, "a.png: empty\n"),
    ],
)
def test_of_several_faults_the_worst_one_decides_and_none_is_hidden(
    faults: tuple[BaseException, ...],
    code: int,
    words: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(raised(*faults))
    assert app.run(["fail"]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"memorysam: error [{code}]: {words}") and err.count("\n") == 1


def test_a_fault_that_explains_another_stands_for_both(failing: Callable[[BaseException], None]) -> None:
    for raise_from in (BAD_WEIGHTS, None):
        fault = raised(BAD_WEIGHTS, errors.CheckFailedError("w: does not verify"))
        fault.__cause__ = raise_from
        failing(fault)
        assert app.run(["fail"]) == 10


def test_a_path_that_is_too_long_for_the_system_is_cut_for_people() -> None:
    told = errors.environment_fault(OSError(errno.ENAMETOOLONG, "File name too long", "a/" * 3000))
    assert told is not None and len(str(told)) < 600 and "… " not in str(told)
    assert "a/a/" in str(told) and "(6,000 characters): File name too long" in str(told)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (4, 4), (10, 10)])
def test_a_command_may_choose_its_exit_code(
    code: int, expected: int, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(typer.Exit(code))
    assert app.run(["fail"]) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["option", "environment", "neither"])
def test_debug_adds_the_traceback(
    how: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(errors.DataError("a.png: empty"))
    if how == "environment":
        monkeypatch.setenv("MEMORYSAM_DEBUG", "1")
    assert app.run(["--debug", "fail"] if how == "option" else ["fail"]) == 3
    err = capsys.readouterr().err
    assert ("Traceback" in err) == (how != "neither")
    assert err.splitlines()[-1] == "memorysam: error [3]: a.png: empty"


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "show", "demo"], ["recipes", "list", "--json"]])
def test_a_reader_that_goes_away_ends_it_quietly_with_141(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "memorysam_cli", *arguments]
    with os.fdopen(write, "w") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_ends_with_6() -> None:
    command = [sys.executable, "-m", "memorysam_cli", "recipes", "list", "--json"]
    with Path("/dev/full").open("w") as stdout:
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("memorysam: error [6]: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated (SIGTERM)"),
        (signal.SIGUSR1, 143, "terminated (SIGUSR1)"),
        (signal.SIGHUP, 129, "terminated (SIGHUP)"),
        (signal.SIGXCPU, 152, "terminated (SIGXCPU)"),
    ],
)
def test_a_signal_ends_with_its_code_one_line_and_no_temporary(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    program = (
        "import sys, types, time; from pathlib import Path; from memorysam_cli import app\n"
        "from memorysam_cli.storage import atomic\n"
        "def wait():\n"
        f"    with atomic.new_folder(Path({str(tmp_path / 'new')!r})):\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "module = sys.modules['waiting'] = types.ModuleType('waiting')\n"
        "module.wait = wait\n"
        "app.COMMANDS = {'wait': 'waiting:wait', 'recipes': app.COMMANDS['recipes']}\n"
        "sys.argv = ['memorysam', 'wait']; app.main()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (code, f"memorysam: error [{code}]: {said}\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_that_python_drops_in_a_callback_comes_again() -> None:
    """What is raised in a weak reference's callback is lost, with a traceback on stderr."""
    program = (
        "import os, signal, sys, time, weakref; from memorysam_cli import app\n"
        "class Thing: pass\n"
        "def lose(_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    for _ in range(1000): pass\n"
        "def work(_):\n"
        "    thing = Thing(); known = weakref.ref(thing, lose); del thing\n"
        "    print('continues', flush=True); time.sleep(20); return 0\n"
        "app.run = work; app.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "continues\n", "")


@pytest.mark.parametrize("is_debugged", [False, True])
def test_what_other_libraries_warn_of_is_not_shown(is_debugged: bool) -> None:
    program = (
        "import logging, warnings; from memorysam_cli import app; from memorysam_cli.report import console\n"
        "def work(_):\n"
        "    warnings.warn('theirs'); logging.getLogger('torch.other').warning('theirs, too'); console.warn('ours')\n"
        "    return 0\n"
        "app.run = work; app.main()"
    )
    environment = os.environ | {"MEMORYSAM_DEBUG": str(int(is_debugged)), "PYTHONWARNINGS": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "memorysam: warning: ours\n" in done.stderr
    assert ("theirs\n" in done.stderr) == ("theirs, too\n" in done.stderr) == is_debugged


def test_the_number_of_a_closed_stream_is_no_file_s() -> None:
    """Libraries write to it, and what they say there is diverted while pictures are decoded."""
    program = (
        "import os, sys; from memorysam_cli import app\n"
        "def look(_):\n"
        "    print(*(os.readlink(f'/proc/self/fd/{number}') for number in (0, 2)), open(os.devnull).fileno() > 2)\n"
        "    print(sys.stdin.isatty(), repr(sys.stdin.readline()))\n"
        "    return 0\n"
        "app.run = look; app.main()"
    )
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- 2>&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "/dev/null /dev/null True\nFalse ''\n")


def test_an_ignored_signal_stays_ignored() -> None:
    program = (
        "import os, signal, sys; from memorysam_cli import app\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGUSR1, lambda *_: print('mine'))\n"
        "sys.argv = ['memorysam', '--version']; run = app.run\n"
        "def kill_first(arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGUSR1); return run(arguments)\n"
        "app.run = kill_first; app.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"mine\nmemorysam {__version__}\n")


@pytest.mark.parametrize(
    ("closed", "code"),
    [(">&-", 0), ("2>&-", 2), (">&- 2>&-", 2), ("<&- >&- 2>&-", 0), ("1</dev/null", 0), ("1</dev/null 2</dev/null", 2)],
)
def test_a_closed_stream_is_no_crash(closed: str, code: int) -> None:
    name = "demo" if code == 0 else "nonsense"
    line = f"exec {shlex.quote(sys.executable)} -m memorysam_cli recipes show {name} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("arguments", [["train", "--recipe", "demo"], ["demo"]])
def test_a_recipe_is_refused_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    program = (
        f"import sys; from memorysam_cli import app; code = app.run({[*arguments, '--set', 'optim.lrr=1']})\n"
        "sys.exit(str({'torch', 'cv2', 'accelerate'} & set(sys.modules) or code))"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "2"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["evaluate"], ["predict", "scenes"]])
def test_missing_weights_are_told_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    program = (
        f"import sys; from memorysam_cli import app; code = app.run({arguments})\n"
        "sys.exit(str({'torch', 'cv2', 'accelerate'} & set(sys.modules) or code))"
    )
    (tmp_path / "scenes").mkdir()
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "5"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "unset"),
    ],
    ids=["unset", "own count", "own policy"],
)
def test_waiting_threads_give_way_to_other_programs_unless_the_user_says_how_they_wait(
    own: dict[str, str], expected: str
) -> None:
    script = (
        "import atexit, os, sys; from memorysam_cli import app; sys.argv = ['memorysam', '--version'];"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT', 'unset'))); app.main()"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    }
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment | own
    )
    assert result.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    "line",
    [
        "prepare folder . -m rgb=a --labels b --classes {}", "watch {} --once", "weights info {}", "report {}",
        "report -o {}", "card {}", "predict . -o out -w {}", "evaluate -w {}", "check {}",
        "prepare deliver {}", "weights merge a -o {}", "recipes copy demo {}", "--extend {} doctor",
        "train -r {}", "train --resume {}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_a_path_that_is_no_file_is_refused_and_never_opened(
    line: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To open the FIFO would wait for its writer, to read the device would never end; a name may lead there, too."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "fifo":
            os.mkfifo("special")
        elif kind == "device":
            Path("special").symlink_to("/dev/zero")
        else:
            listener.bind("special")
        before = [(path, path.lstat().st_mode) for path in tmp_path.iterdir()]
        assert app.run(line.format("special").split()) in {2, 5}
        err = capsys.readouterr().err
        assert err.startswith("memorysam: error") and err.count("\n") == 1
        assert [(path, path.lstat().st_mode) for path in tmp_path.iterdir()] == before


def test_helps_and_recipe_keys_are_the_same_where_python_drops_docstrings() -> None:
    """``PYTHONOPTIMIZE=2``, as some images set it."""
    script = (
        "import typer.main, json; from memorysam_cli import app\n"
        "from memorysam_cli.recipe import comparing\n"
        "def show(name, command):\n"
        "    print(command.get_help(command.make_context(name, [], resilient_parsing=True)))\n"
        "    for child, below in getattr(command, 'commands', {}).items(): show(f'{name} {child}', below)\n"
        "show('memorysam', typer.main.get_command(app.build()))\n"
        "print(json.dumps(comparing.json_schema(), sort_keys=True))"
    )
    said = [
        subprocess.run(
            [sys.executable, *flags, "-c", script], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        ).stdout
        for flags in ((), ("-OO",))
    ]  # fmt: skip
    assert "Train a model from a recipe." in said[0] and said[0] == said[1]


@pytest.mark.parametrize(("words", "code"), [(["recipes", "list"], 6), (["train"], 6), (["--version"], 0)])
def test_a_working_folder_that_is_gone_is_told_in_one_line(words: list[str], code: int, tmp_path: Path) -> None:
    line = f'mkdir gone && cd gone && rmdir ../gone && exec {shlex.quote(sys.executable)} -m memorysam_cli "$@"'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        ["sh", "-c", line, "sh", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    if code:
        assert done.stderr == ("memorysam: error [6]: the working folder was removed; cd to an existing folder\n")


def test_a_working_folder_that_goes_away_later_explains_what_fails_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert errors.environment_fault(fault) is None  # the folder is there: a bug of ours
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert "was removed" in str(errors.environment_fault(fault))
