"""Block S: a command line that works for every command of the program, and every path that one can give it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from typer.main import get_command

from memorysam_cli import app

HERE = "@"
"""Begins a word that is a path below the try's folder: it is typed relative to it, or absolute."""
CHANGES = (
    *("--set", "data.image_size=32", "--set", "data.workers=0", "--set", "train.batch=1", "--set", "train.max_steps=1"),
)
DEVICE = ("--device", "cpu")
WEIGHTS = "@w.safetensors"
ON_DATA = ("-w", WEIGHTS, "--data", "@data", "--out", "@out", "--batch", "1")


@dataclass(frozen=True)
class Line:
    """A command line that works on the files of the template.

    Attributes:
        words: as typed, without the program's name; see :data:`HERE`.
        takes: what of the template it needs.
        outputs: below the try's folder, what may be new when it has ended; nothing that was there may change.
        code: how it ends where all is well.
        is_slow: takes seconds.
    """

    words: tuple[str, ...]
    takes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("out",)
    code: int = 0
    is_slow: bool = False

    @property
    def command(self) -> str:
        """Its command, such as ``weights info``."""
        return max((name for name in COMMANDS if self.words[: len(name.split())] == tuple(name.split())), key=len)


def _commands() -> dict[str, Any]:
    """Every command of the program, without the groups, by what one types."""

    def below(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", {})
        if not children:
            yield " ".join(path), command
        for name, child in children.items():
            yield from below((*path, name), child)

    return dict(below((), get_command(app.build())))


COMMANDS = _commands()
PUBLISHED = ("deliver", "mcubes", "mfnet", "fmb", "pst900", "nyu", "kitti360", "urbanlf", "muses")
LINES: tuple[Line, ...] = (
    Line(("prepare", "synthetic", "@out", "--scenes", "4", "--size", "32")),
    *(
        Line(("prepare", name, f"@{name}"), (name,), (f"{name}/memorysam", "memorysam", f"{name}/{name}/memorysam"))
        for name in PUBLISHED
    ),
    Line(
        ("prepare", "folder", "@own", "-m", "rgb=images/**/*.jpg", "-m", "depth=depth/**/*_depth.png", "--labels",
         "masks/**/*.png", "--classes", "@own/classes.txt"), ("own",), ("own/memorysam",),
    ),
    Line(("prepare", "manifest", "@ready", "ready"), ("ready",), ("ready/memorysam",)),
    Line(("prepare", "hha", "@own", "--depth", "depth/**/*_depth.png", "--camera", "50,50,28,20", "--out", "out"),
         ("own",), ("own/out",)),
    Line(("check", "@data", "--out", "@out.json"), ("data",),
         ("out.json", "out", "data/memorysam/tiny/checked.jsonl")),
    Line(("plan", "-r", "@tiny.yaml", "--data", "@data", *DEVICE), ("data", "tiny.yaml"), (), is_slow=True),
    Line(("train", "-r", "@tiny.yaml", "--data", "@data", "--out", "@out", *CHANGES, *DEVICE), ("data", "tiny.yaml"),
         ("out", "runs", "latest")),
    Line(("train", "-r", "@tiny.yaml", "--data", "@data", "--out", "@out", *CHANGES, "--set",
          "data.workers=2", *DEVICE), ("data", "tiny.yaml"), ("out", "runs", "latest")),
    Line(("train", "--resume", "@runs/small", "--data", "@data", *DEVICE), ("data", "runs"), ("runs",)),
    Line(("watch", "@runs/small", "--once"), ("runs",), ()),
    Line(("evaluate", *ON_DATA, "--workers", "0", *DEVICE), ("data", "w.safetensors")),
    Line(("evaluate", *ON_DATA, "--workers", "2", *DEVICE), ("data", "w.safetensors")),
    Line(("predict", "@data", "-w", WEIGHTS, "--out", "@out", "--workers", "0", *DEVICE), ("data", "w.safetensors")),
    Line(("predict", "@photos", "-w", WEIGHTS, "--out", "@out", "--map", "img=rgb", "--workers", "0", "--color",
          *DEVICE), ("photos", "w.safetensors")),
    Line(("predict", "@photos", "-w", WEIGHTS, "--out", "@out", "--map", "img=rgb", "--workers", "2", "--overlay",
          *DEVICE), ("photos", "w.safetensors")),
    Line(("convert", "@masks", "--to", "coco", "--out", "@out.json"), ("masks",), ("out.json",)),
    Line(("convert", "@own/masks", "--to", "cvat", "--classes", "@own/classes.txt", "--out", "@out"), ("own",)),
    Line(("report", "@runs/small", "--out", "@out.html"), ("runs", "data"), ("out.html",)),
    Line(("report", "@masks", "--out", "@out.html"), ("masks", "photos", "runs"), ("out.html",)),
    Line(("report", "@runs/small", "@runs/second", "--out", "@out.html"), ("runs", "data"), ("out.html",)),
    Line(("demo", "--out", "@out", "--scenes", "40", *CHANGES, *DEVICE), is_slow=True),
    Line(("recipes", "list")),
    Line(("recipes", "show", "@tiny.yaml"), ("tiny.yaml",)),
    Line(("recipes", "copy", "@tiny.yaml", "@out.yaml"), ("tiny.yaml",), ("out.yaml",)),
    Line(("recipes", "check", "@tiny.yaml"), ("tiny.yaml",)),
    Line(("recipes", "diff", "@tiny.yaml", "demo"), ("tiny.yaml",)),
    Line(("recipes", "schema")),
    Line(("weights", "info", WEIGHTS), ("w.safetensors",)),
    Line(("weights", "verify", WEIGHTS), ("w.safetensors",)),
    Line(("weights", "merge", WEIGHTS, "--out", "@out.safetensors"), ("w.safetensors",), ("out.safetensors",)),
    Line(("weights", "import", "@RGBD_epoch1_2.0.pth", "--out", "@out.safetensors"), ("RGBD_epoch1_2.0.pth",),
         ("out.safetensors",), is_slow=True),
    Line(("weights", "export", WEIGHTS, "--format", "merged", "--out", "@out.pth"), ("w.safetensors",), ("out.pth",)),
    Line(("weights", "fetch", "sam2-hiera-tiny"), code=7),
    Line(("weights", "push", "alice/demo", WEIGHTS), ("w.safetensors",)),
    Line(("export", WEIGHTS, "--format", "torch-export", "-m", "img", "--size", "32", "--out", "@out.pt2"),
         ("w.safetensors",), ("out.pt2", "out.pt2.json", "out.json"), is_slow=True),
    Line(("card", WEIGHTS, "--out", "@out.md"), ("w.safetensors",), ("out.md",)),
    Line(("bench", "--mode", "predict", "--backbone", "nano", "--size", "64", "--modalities", "1", "--batch", "1",
          "--repeats", "1", *DEVICE), is_slow=True),
    Line(("doctor",), is_slow=True),
)  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A place of a command line where a path stands, or could stand.

    Attributes:
        name: the parameter's.
        at: which word it is; past the end where the line lacks it.
        option: what has to be typed before it there, if anything.
        prefix: what of the word is not a path, such as ``rgb=``.
        is_output: what is written, in contrast to what is read.
    """

    name: str
    at: int
    option: str = ""
    prefix: str = ""
    is_output: bool = False

    def put(self, words: tuple[str, ...], path: str) -> tuple[str, ...]:
        """The line with another path in this spot."""
        if self.at < len(words):
            return (*words[: self.at], f"{self.prefix}{path}", *words[self.at + 1 :])
        return (*words, *([self.option] if self.option else []), f"{self.prefix}{path}")


FILES = ("FILE", "PATH", "PATTERN", "ROOT")
"""Of a text's metavar: it may be a path."""
PREFIXES = {"--modality": "rgb=", "--split": "train="}
OUTPUTS = {"out"}


def path_parameters(command: Any) -> list[Any]:
    """The parameters of a command that take a path, by their types, and texts that may be paths by their metavars."""

    def takes_path(each: Any) -> bool:
        descriptor = getattr(each, "type_descriptor", None)
        annotation = str(descriptor.annotation) if descriptor is not None else ""
        return "Path" in annotation or ("str" in annotation and any(word in (each.metavar or "") for word in FILES))

    return [each for each in command.params if takes_path(each)]


def spots(line: Line) -> list[Spot]:
    """Where paths stand in a line, and where its command would take some more."""
    command = COMMANDS[line.command]
    begin, found = len(line.command.split()), []
    for each in path_parameters(command):
        is_output = each.name in OUTPUTS or line.command == "prepare synthetic"
        if each.param_type_name == "option":
            places = [at + 1 for at, word in enumerate(line.words) if word in each.opts] or [len(line.words)]
            prefix = next((PREFIXES[name] for name in each.opts if name in PREFIXES), "")
            found += [Spot(each.name, at, each.opts[0], prefix, is_output) for at in places]
        else:
            at = begin + [other.name for other in command.params if other.param_type_name == "argument"].index(
                each.name
            )
            found.append(Spot(each.name, at, is_output=is_output))
    return found
