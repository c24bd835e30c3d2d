"""The ``memorysam`` program: its commands, and an exit code for every way in which it can end."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from memorysam_cli import __version__, registry
from memorysam_cli.commands import options
from memorysam_cli.errors import (
    EXIT_CODES,
    SIGNAL_EXIT_CODES,
    MemorySamError,
    Terminated,
    UsageError,
    environment_fault,
    most_severe,
    unwind,
)
from memorysam_cli.report import console
from memorysam_cli.storage import atomic
from memorysam_cli.text import docstring, requirement

_AGAIN_S = 0.02

Examples = Sequence[tuple[str, str]]
"""Example command lines without the program's name, each with a description."""
COMMANDS = {
    "prepare": "memorysam_cli.commands.prepare:app",
    "check": "memorysam_cli.commands.check:check",
    "plan": "memorysam_cli.commands.plan:plan",
    "train": "memorysam_cli.commands.train:train",
    "watch": "memorysam_cli.commands.watch:watch",
    "evaluate": "memorysam_cli.commands.evaluate:evaluate",
    "predict": "memorysam_cli.commands.predict:predict",
    "convert": "memorysam_cli.commands.convert:convert",
    "report": "memorysam_cli.commands.report:report",
    "demo": "memorysam_cli.commands.demo:demo",
    "recipes": "memorysam_cli.commands.recipes:app",
    "weights": "memorysam_cli.commands.weights:app",
    "export": "memorysam_cli.commands.export:export",
    "card": "memorysam_cli.commands.card:card",
    "bench": "memorysam_cli.commands.bench:bench",
    "doctor": "memorysam_cli.commands.doctor:doctor",
}
"""Command → ``module:object``: a group of commands, or a function.

The module's ``EXAMPLES`` are shown at the end of the help. For a group they are lists by command; its own are under
``""``.
"""
EXAMPLES = [
    ("demo", "everything in some minutes, on a CPU"),
    ("prepare synthetic ./data", "synthetic scenes for a trial"),
    ("train --recipe demo", "then evaluate, predict, report"),
]

USAGE, INTERRUPTED, BROKEN_PIPE, BUG = 2, 130, 141, 1


class OrderedGroup(TyperGroup):
    """Lists the commands in the order of COMMANDS; Typer alone lists the groups last."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # noqa: ARG002
        return [name for name in COMMANDS if name in self.commands]


@dataclass
class Frame:
    """The options before the command."""

    debug: bool = False


def build() -> typer.Typer:
    """The whole command line. Commands import heavy modules only when they run."""
    app = typer.Typer(
        name="memorysam",
        help="Multi-modal semantic segmentation with SAM 2's memory across the sensors of a scene. "
        "Options and recipe keys call a sensor a modality.",
        epilog=_epilog(EXAMPLES),
        cls=OrderedGroup,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: twice as fast, and without special brackets
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, where in COMMANDS.items():
        module, command = _found(where)
        if isinstance(command, typer.Typer):
            _add_texts(command, getattr(module, "EXAMPLES", {}))
            app.add_typer(command, name=name)
        else:
            epilog = _epilog(getattr(module, "EXAMPLES", ()))
            app.command(name, epilog=epilog, help=docstring(command))(_taking_files(command))
    return app


def _add_texts(group: typer.Typer, examples: Mapping[str, Examples]) -> None:
    """Add examples to the end of the help of a group and of each of its commands; give each command its docstring."""
    group.info.epilog = _epilog(examples.get("", ()))
    for each in group.registered_commands:
        own = each.name or (each.callback.__name__ if each.callback else "")
        each.epilog = _epilog(examples.get(own, ()))
        each.help = each.help or (docstring(each.callback) if each.callback else None)
        if each.callback is not None:
            each.callback = _taking_files(each.callback)


def _taking_files(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose paths are checked before it runs: none of them may be a device, a FIFO or a socket."""
    if hasattr(command, "__wrapped__"):  # groups belong to modules, so an earlier call of build has done it
        return command

    @functools.wraps(command)
    def run_with_files(*arguments: Any, **values: Any) -> Any:
        options.refuse_special((*arguments, *values.values()))
        return command(*arguments, **values)

    return run_with_files


def _epilog(examples: Examples) -> str | None:
    """The end of a command's help. ``\\b`` keeps the lines unwrapped, so that users can copy them."""
    lines = [f"  memorysam {line}\n      {remark}" for line, remark in examples]
    return "\n".join(["\b", "Examples:", *lines]) if lines else None


def main() -> None:
    """Entry point of the ``memorysam`` script."""
    try:
        try:
            _open_closed_streams()
            console.outlive_readers()
            console.hush_libraries()
            _wait_asleep()
            _end_politely()
            _hush_libraries()
            sys.unraisablehook = _hear_again
            code = run(sys.argv[1:])
        finally:
            _leave_signals_to_the_system()
    except (KeyboardInterrupt, Terminated) as signalled:  # just before the work, or just after it
        code = _explain(signalled)[0]
        _leave_signals_to_the_system()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # buffered output must not raise again while Python shuts down
            atomic.lead_nowhere(stream.fileno())
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open streams that the caller closed (``>&-``), so that no write fails and no file of ours gets their number.

    The same for a stream that was opened only for reading (``1< FILE``). These files are never closed, because
    libraries write to these numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the smallest number that is free: those below are open
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)  # is at its end, and not an interactive terminal
    for number, name in enumerate(("stdout", "stderr"), start=1):
        if getattr(sys, name) is None or not _takes_writing(number):
            setattr(sys, name, atomic.open_nowhere(number))


def _takes_writing(descriptor: int) -> bool:
    try:
        import fcntl

        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except (ImportError, OSError):  # Windows, or a stream that somebody put there has another number
        return True


def _wait_asleep() -> None:
    """Let OpenMP's threads spin briefly at a barrier, then sleep.

    This must be set before torch is loaded; child processes inherit it. By default they spin for milliseconds at each
    of the thousands of small operations of a step. With one other busy program, this wastes the time slice that the
    last thread waits for, and training becomes ten times as slow or worse. A thousand turns cost almost nothing on a
    quiet machine (docs/performance.md has the table). The user's own setting is kept. Only GNU's OpenMP reads the
    variable; PyTorch uses it on Linux.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _end_politely() -> None:
    """On SIGTERM and similar signals unwind as on Ctrl-C, so that temporary files are removed; ignored signals stay
    ignored."""
    for number in SIGNAL_EXIT_CODES:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, unwind)


def _hush_libraries() -> None:
    """Hide warnings of torch and other libraries, because users cannot act on them. The console prints our own
    warnings.

    They are shown with $PYTHONWARNINGS or ``python -W``, and with $MEMORYSAM_DEBUG=1.
    """
    if sys.warnoptions or _is_debugged():
        return
    import logging
    import warnings

    warnings.simplefilter("ignore")
    if logging.lastResort is not None:  # the handler that writes other records to stderr
        logging.lastResort.setLevel(logging.CRITICAL)


def _is_debugged() -> bool:
    return os.environ.get("MEMORYSAM_DEBUG", "0") not in {"", "0", "false"}


def _hear_again(lost: sys.UnraisableHookArgs) -> None:
    """Raise a signal again that Python dropped, because it came in a weak reference's callback or in garbage
    collection."""
    number = lost.exc_value.number if isinstance(lost.exc_value, Terminated) else signal.SIGINT
    if not isinstance(lost.exc_value, Terminated | KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return

    def send() -> None:
        time.sleep(_AGAIN_S)
        if signal.getsignal(number) != signal.SIG_DFL:  # else all is done
            os.kill(os.getpid(), number)

    with contextlib.suppress(RuntimeError):  # Python is ending
        threading.Thread(target=send, daemon=True).start()


def _leave_signals_to_the_system() -> None:
    """Leave signals to the system: the exit code is known and nothing is left to clean up, so no signal may cause a
    traceback."""
    for number in SIGNAL_EXIT_CODES:
        if signal.getsignal(number) not in {signal.SIG_IGN, None}:
            signal.signal(number, signal.SIG_DFL)


def program() -> Any:
    """The command line from :func:`build`, built once: reading its signatures takes 60 ms."""
    return _built(tuple((name, *_found(where)) for name, where in COMMANDS.items()))


@functools.lru_cache(maxsize=1)
def _built(commands: tuple[tuple[str, Any, Any], ...]) -> Any:  # noqa: ARG001  (what it is built of)
    return get_command(build())


def _found(where: str) -> tuple[Any, Any]:
    """The module and the object of an entry in COMMANDS."""
    module_name, _, attribute = where.partition(":")
    module = importlib.import_module(module_name)
    return module, getattr(module, attribute)


def run(arguments: Sequence[str]) -> int:
    """Run one command line, print errors on stderr, and return the exit code.

    With ``--json``, stdout gets exactly one object in every case: the answer, with ``error`` if the code is not 0.
    """
    frame = Frame(debug=_is_debugged())
    console.setup()  # resets the settings of an earlier command, also for an invalid line
    message = ""
    try:
        value = program().main(list(arguments), prog_name="memorysam", standalone_mode=False, obj=frame)
        code = value if isinstance(value, int) else 0
        if code == INTERRUPTED:  # Typer turns Ctrl-C into an exit
            message = "interrupted"
        if not code:
            console.finish()
        sys.stdout.flush()
    except BaseException as error:
        code, message = _explain(error)
        with contextlib.suppress(OSError):  # nobody reads stderr; the exit code is enough
            if code == BUG or (frame.debug and message):
                console.show_traceback(error)
    if code:
        with contextlib.suppress(OSError):
            if message:
                console.error(message, code=code)
        with contextlib.suppress(OSError):  # nobody reads stdout
            if _wants_json(arguments):
                console.finish(code=code, message=message or str(EXIT_CODES.get(code, "")))
    return code


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line requests JSON, even if it is wrong; of several processes only the first one prints it."""
    from memorysam_cli.engine import surroundings

    options = itertools.takewhile(lambda word: word != "--", arguments)
    return "--json" in options and (surroundings.world() == 1 or surroundings.rank() == 0)


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an exception; an empty message means that nothing is left to print."""
    # Typer and rich turn a broken pipe into SystemExit(1); the context still knows.
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return BROKEN_PIPE, ""
    if isinstance(error, Terminated):
        return error.exit_code, str(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0, ""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted"
    if isinstance(error, TyperException):
        return USAGE, _usage(error)
    known = most_severe(error) if isinstance(error, MemorySamError) else environment_fault(error)
    if known is not None:
        return known.exit_code, str(known)
    return BUG, "this is a bug in memorysam; please report it with the traceback above and the command line"


def _usage(error: TyperException) -> str:
    """One line for a wrong command line; a group without a command prints its help instead."""
    message = error.format_message()
    if message.startswith("Usage:"):
        print(message, file=sys.stderr)
        return ""
    context = getattr(error, "ctx", None)
    hint = f"{_as_recipe_key(error, context)}; see {context.command_path} --help" if context is not None else ""
    value = _OF_VALUE.match(message)
    if value is not None:
        message = f"{value['option']}: {requirement(message[value.end() :])}"
    return " ".join(message.split()).rstrip(".") + hint


_OF_VALUE = re.compile(r"Invalid value for '(?P<option>[^']+)'[^:]*: ")
"""Typer's text before a reason, with all names of the option or argument."""


def _as_recipe_key(error: TyperException, context: typer.Context) -> str:
    """How to change a recipe value for which another command has an option, but this one does not."""
    option = getattr(error, "option_name", "")
    if not option or not any("--set" in each.opts for each in context.command.params):
        return ""
    from memorysam_cli.recipe.refusals import keys_called
    from memorysam_cli.recipe.schema import Recipe

    keys = keys_called(option.lstrip("-").replace("-", "_"), Recipe)
    return f"; in a recipe: --set {keys[0]}=…" if len(keys) == 1 else ""


def _print_version(is_asked: bool) -> None:
    if is_asked:
        console.say(f"memorysam {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks too (also $MEMORYSAM_DEBUG=1).")] = False,
    extend: Annotated[
        list[Path] | None,
        typer.Option(
            "--extend",
            metavar="FILE",
            help="Run a Python file that adds encoders, fusions or losses (repeatable; also $MEMORYSAM_EXTEND).",
        ),
    ] = None,
    json: options.Json = False,
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.ensure_object(Frame).debug |= debug
    registry.add_files(extend or (), where="--extend")
    if context.invoked_subcommand is None:
        from memorysam_cli.commands import overview

        options.begin(json=json, verbose=False, quiet=False)
        overview.show(is_json=json)
    elif json:
        raise UsageError(f"--json: give it after the command: memorysam {context.invoked_subcommand} … --json")
