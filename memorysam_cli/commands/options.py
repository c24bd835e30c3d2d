"""The options that commands share, with one name, one letter and one meaning each; their completion and their parsing.

Each is the annotation of a parameter. A parameter without a default is required::

    def predict(scenes: Path, out: Out, weights: Weights = None, json: Json = False) -> None:
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from memorysam_cli.errors import DataError, MemorySamError, UsageError, WeightsError, refuse_gone_folder
from memorysam_cli.text import shown, typed_path


def must_exist(fault: type[MemorySamError], where: str = "", *, but: str = "") -> Callable[[Any], Any]:
    """A callback that checks a parameter's paths before anything else; the message is ``nosuch: does not exist``.

    Args:
        fault: decides the exit code.
        where: the option, before the path in the message.
        but: a word that is not a path.

    Returns:
        The ``callback`` of a parameter that is read; a parameter that is written has none.
    """

    def look(value: Any) -> Any:
        for path in value if isinstance(value, list | tuple) else [value]:
            if path is not None and str(path) != but and is_missing(path):
                refuse_gone_folder()
                raise fault(f"{where}{shown(path)}: does not exist; check the path")
        return value

    return look


def weights_must_exist(where: str = "", *, fault: type[MemorySamError] = WeightsError) -> Callable[[Any], Any]:
    """As :func:`must_exist` for a weights file; one on the Hub is downloaded.

    Its header and its card are also read, unless another ``fault`` means that the command itself judges the file.
    """
    look = must_exist(fault, where)

    def found(value: Any) -> Any:
        if value is None:
            return value
        from memorysam_cli.model import read_card
        from memorysam_cli.storage import hub

        path = hub.local_path(value) if str(value).startswith("hf:/") else look(value)
        if fault is WeightsError:
            read_card(typed_path(path))
        return path

    return found


def path_option(name: str, letter: str, *, metavar: str, help: str, fault: type[MemorySamError]) -> Any:
    """An option with a path that is read and must exist; otherwise ``fault`` is raised."""
    return typer.Option(name, letter, metavar=metavar, help=help, callback=must_exist(fault, f"{name} "))


def is_missing(path: str | Path) -> bool:
    """Whether a path does not exist, with ``~`` expanded or not; False if this cannot be checked, because the reader
    will report it."""
    try:
        os.stat(os.path.expanduser(path))  # noqa: PTH111, PTH116  (Path.exists says no for what may well be there)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def recipe_must_exist(text: str | None) -> str | None:
    """The callback of parameters for a shipped recipe's name or a file."""
    if text is not None and text.endswith((".yaml", ".yml")) and is_missing(text):
        raise UsageError(
            f"recipe {shown(text)}: does not exist; check the path, or give a name of: memorysam recipes list"
        )
    return text


def out_or(otherwise: str) -> Any:
    """``--out`` of a command that does without; ``otherwise`` says where its results go then."""
    return typer.Option("--out", "-o", metavar="PATH", help=f"Where the results go; else {otherwise}.")


def may_be_a_device(name: str) -> str:
    """The callback of ``--device``: a word that cannot be a device of any machine is refused before anything else is
    done."""
    from memorysam_cli.engine import surroundings

    surroundings.refuse_no_device(name)
    return name


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes, and recipe files below the folder in the typed path."""
    package = Path(__file__).parent.parent
    folders = (package / "recipes", package.parent / "recipes")  # as recipe.reading finds them
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    return [*_beginning(names, incomplete), *_files(incomplete, (".yaml", ".yml"))]


def devices(incomplete: str) -> list[str]:
    """Values of ``--device``."""
    return _beginning(("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps"), incomplete)


def splits(incomplete: str) -> list[str]:
    """Usual names of splits."""
    return _beginning(("train", "val", "test"), incomplete)


def data_sets(incomplete: str) -> list[str]:
    """Published data sets, and those prepared in the data root."""
    from memorysam_cli.data import DATASETS

    prepared = (path.parent.name for path in (data_root() / "memorysam").glob("*/dataset.json"))
    return _beginning(sorted({*DATASETS, *prepared}), incomplete)


def data_root() -> Path:
    """The data root without ``--data``."""
    return Path(os.environ.get("MEMORYSAM_DATA") or "data")


def runs(incomplete: str) -> list[str]:
    """The runs below ``runs/``, and folders."""
    found = (path.parent for path in Path("runs").glob("[!.]*/recipe.yaml"))
    return list(dict.fromkeys([*_beginning(sorted(map(str, found)), incomplete), *_files(incomplete, ())]))


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """Files with these suffixes, and folders, whose path begins with the typed text."""
    folder, _, name = incomplete.rpartition("/")
    place = Path(f"{folder}/" if incomplete.startswith("/") else folder or ".")
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    found = [entry for entry in entries if entry.name.startswith(name) and (name or not entry.name.startswith("."))]
    prefix = f"{folder}/" if "/" in incomplete else ""
    return [
        f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in found
        if (entry.is_dir() or entry.suffix in endings) and entry.name.isprintable()  # the shell prints them unchanged
    ]


Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")]

Data = Annotated[
    Path | None,
    path_option(
        "--data",
        "-d",
        metavar="ROOT",
        help="Folder of the data sets (else $MEMORYSAM_DATA, else ./data).",
        fault=DataError,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Where the results go.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "-w",
        metavar="FILE",
        help="A .safetensors file, or hf://OWNER/NAME (else the best of runs/latest).",
        callback=weights_must_exist("--weights "),
    ),
]
WeightsFile = Annotated[
    Path,
    typer.Argument(
        metavar="WEIGHTS",
        help="A .safetensors file written by memorysam, or hf://OWNER/NAME[/FILE].",
        callback=weights_must_exist(),
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="A shipped recipe's name, or a .yaml file.",
        autocompletion=recipe_names,
        callback=recipe_must_exist,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe value, such as optim.lr=1e-4 (repeatable)."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:1 or mps; a missing device is an error.",
        autocompletion=devices,
        callback=may_be_a_device,
    ),
]
OptionalSplit = Annotated[
    str | None,
    typer.Option("--split", metavar="NAME", help="Only this split's scenes.", autocompletion=splits),
]
Modalities = Annotated[
    str | None,
    typer.Option("--modalities", "-m", metavar="A,B", help="Use only these modalities, such as img,depth."),
]

Missing = Annotated[
    Literal["drop", "zero"],
    typer.Option(help="How to feed missing modalities: not at all, or as zeros after normalization."),
]
OptionalMissing = Annotated[
    Literal["drop", "zero"] | None,
    typer.Option(
        help="How to feed missing modalities: not at all (default), or as zeros; --robustness any does both by default."
    ),
]
Tta = Annotated[
    bool, typer.Option("--tta", help="Average over scales 0.5 to 1.75 and mirrored images: slower, steadier.")
]
TtaScales = Annotated[
    str | None, typer.Option("--tta-scales", metavar="A,B", help="As --tta, with these scales, such as 0.75,1,1.25.")
]
Tile = Annotated[bool, typer.Option("--tile", help="Process large images at full resolution, in overlapping windows.")]
TileOverlap = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.9,
        metavar="SHARE",
        help="Least overlap of neighboring windows with --tile, as a share of their side.",
    ),
]

Batch = Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Scenes per batch.")]
Workers = Annotated[int, typer.Option("--workers", min=0, metavar="N", help="Data worker processes.")]
Precision = Annotated[
    Literal["fp32", "tf32", "bf16", "fp16"],
    typer.Option(help="Precision: exact, or faster on GPUs (tf32, bf16, fp16; bf16 also on new CPUs)."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: takes minutes, then runs faster; for long runs.")
]
OnError = Annotated[
    Literal["stop", "skip"], typer.Option(help="For an unreadable scene: stop, or list it and continue.")
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Refuse sensors whose type or range differs from training (exit 3) instead of warning."
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Only part I of N, counted from 0; the last one to finish merges all."),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="This process (or those of torchrun), or a Ray cluster (needs memorysam[ray])."),
]


def begin(*, json: bool = False, verbose: bool = False, quiet: bool = False) -> None:
    """Set up the console for a command's options; of several processes only the first one prints more than errors.

    Raises:
        UsageError: both ``-v`` and ``-q``.
        EnvironmentFault: the working folder was removed.
    """
    refuse_gone_folder()
    from memorysam_cli.engine import surroundings
    from memorysam_cli.report import console

    if verbose and quiet:
        raise UsageError("--verbose and --quiet exclude each other; give one")
    is_first = surroundings.world() == 1 or surroundings.rank() == 0
    level = console.QUIET if quiet or not is_first else console.VERBOSE if verbose else console.NORMAL
    console.setup(verbosity=level, json=json)


def names(text: str | None) -> tuple[str, ...] | None:
    """The words of ``--modalities``, such as ``img,depth``; None stays None.

    Raises:
        UsageError: an empty word.
    """
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if "" in words:
        raise UsageError(
            f"--modalities '{text}': a name is missing; separate names by single commas, such as img,depth"
        )
    return words


def scales(text: str | None, *, tta: bool) -> tuple[float, ...]:
    """The scales of ``--tta`` and ``--tta-scales``; none without either.

    Raises:
        UsageError: a scale that is not a number from 0.1 to 4, or is given twice.
    """
    if text is None and tta:
        from memorysam_cli.engine.infer.views import SCALES

        return SCALES
    if text is None:
        return ()
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) != len(found) or not all(0.1 <= scale <= 4 for scale in found):
        raise UsageError(f"--tta-scales '{text}': must be different numbers from 0.1 to 4, such as 0.75,1,1.25")
    return found


def refuse_special(values: Iterable[object]) -> None:
    """Refuse paths whose reading might never end or start, and whose writing would replace a device; for all commands.

    Args:
        values: of a command's parameters; paths and lists of paths are checked.

    Raises:
        UsageError: one is a device, a FIFO or a socket.
    """
    for path in (each for value in values for each in (value if isinstance(value, list | tuple) else (value,))):
        if not isinstance(path, Path):
            continue
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):  # missing, or not a valid name: the command that reads it reports that
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
            what = kinds.get(stat.S_IFMT(mode), "a device")
            raise UsageError(f"{shown(path)}: is {what}; name a file or a folder (copy what comes out of it to a file)")


def refuse_taken(out: Path, *, source: Path, overwrite: bool) -> None:
    """Refuse an ``--out`` that would replace an existing file or the input file, or that cannot be written.

    Raises:
        UsageError: either of the first two.
        EnvironmentFault: its folder is read-only or not a folder, or the disk has less space than the input's size.
    """
    from memorysam_cli.storage import atomic

    if out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already; give another name or --overwrite")
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"--out {out}: is the file that is read; give another name")
    atomic.refuse_unwritable(out.parent, needed_bytes=source.stat().st_size if source.is_file() else 1)


def refuse_several(command: str) -> None:
    """Refuse to measure in several processes, which would use each other's memory and time.

    Raises:
        UsageError: torchrun or a similar launcher started this process.
    """
    from memorysam_cli.engine import surroundings

    if surroundings.world() != 1:
        raise UsageError(f"{command}: measures from one process; start it without torchrun or accelerate launch")
