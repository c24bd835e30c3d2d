"""``memorysam export``: a trained network for other runtimes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands.options import (
    Json,
    Modalities,
    Quiet,
    Verbose,
    WeightsFile,
    begin,
    names,
    out_or,
    refuse_taken,
)
from memorysam_cli.errors import UsageError
from memorysam_cli.text import megabytes

SCHEMA_VERSION = 1
SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx"}
EXAMPLES = [
    ("export runs/latest/checkpoints/best.safetensors --format onnx --out model.onnx", "for onnxruntime"),
    ("export best.safetensors --format onnx --dynamic batch,size --half", "any batch and size, in float16"),
    ("export best.safetensors --format torch-export --size 384x640 --modalities img,depth", "for torch, two sensors"),
]


def export(
    file: WeightsFile,
    form: Annotated[
        Literal["torch-export", "onnx"],
        typer.Option("--format", help="For torch.export.load, or for onnxruntime (needs memorysam[onnx])."),
    ],
    modalities: Modalities = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="PX|HxW", help="Size of the images, in multiples of 32 (else that of training)."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Scenes at once.")] = 1,
    dynamic: Annotated[
        str | None,
        typer.Option("--dynamic", metavar="batch,size", help="What an ONNX file leaves open: any batch, any size."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="ONNX with float16 products: half the file size.")] = False,
    out: Annotated[Path | None, out_or("beside the weights")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export a trained model as one file for other programs.

    The file holds base, LoRA and decoder for a fixed number of sensors, size and batch (--dynamic batch,size leaves
    these open; sizes are multiples of 32). Input: normalized float32 frames (batch, sensors, 3, height, width).
    Output: logits at a quarter of the size, and each pixel's class and confidence. The file is loaded and compared
    with PyTorch on random input (exit code 10, and no file, if they differ). A .json beside it has classes, colors and
    normalization. docs/export.md has ten lines that use it.
    """
    from memorysam_cli.engine import surroundings

    begin(json=json, verbose=verbose, quiet=quiet)
    suffix = SUFFIXES[form]
    target = file.with_suffix(suffix) if out is None else out
    if target.suffix != suffix:
        raise UsageError(f"--out {target}: must end in {suffix}, as --format {form} is read by its name")
    sides, free = _size(size), _free(dynamic)
    for option, given in (("--dynamic", bool(free)), ("--half", half)):
        if given and form != "onnx":
            raise UsageError(f"{option}: is for --format onnx; --format {form} is of one shape, in float32")
    if form == "onnx":
        surroundings.refuse_missing_extra("onnx", option="--format onnx")
    refuse_taken(target, source=file, overwrite=overwrite)
    refuse_taken(target.with_suffix(".json"), source=file, overwrite=overwrite)
    from memorysam_cli.engine.infer.inference import choose_modalities
    from memorysam_cli.model import read_card

    chosen = choose_modalities(read_card(file).modalities, names(modalities))
    # Imported here, after the checks of options, because torch takes seconds.
    from memorysam_cli.engine.weights import portable
    from memorysam_cli.report import console

    made = portable.export(
        file,
        target,
        form=form,
        modalities=[each.name for each in chosen],
        size=sides,
        batch=batch,
        free=free,
        half=half,
    )
    likeness, shape = made.likeness, "x".join(map(str, made.shape.frames))
    if json:
        console.answer(
            {
                "schema_version": SCHEMA_VERSION, "file": str(file), "out": str(made.out),
                "metadata": str(made.metadata), "format": form, "input": list(made.shape.frames),
                "sha256": made.sha256, "bytes": made.out.stat().st_size, "difference": likeness.difference,
                "relative": likeness.relative, "agreement": likeness.agreement, "dynamic": list(free),
                "half": half, "checked": made.to_json(),
            }
        )  # fmt: skip
    console.say(f"{made.out} ({form}, {megabytes(made.out.stat().st_size)}, input {shape}, SHA-256 {made.sha256})")
    console.say(f"{made.metadata} (classes, colors, normalization)")
    for each, likeness in made.checked:
        seen = f" at {'x'.join(map(str, each.frames))}" if free else ""
        console.say(
            f"against PyTorch{' in float32' if half else ''}{seen}: logits differ by {likeness.difference:.2g} at most "
            f"({likeness.relative:.1g} of their size), {likeness.agreement:.2f} % of the pixels get the same class"
        )


def _free(text: str | None) -> tuple[Literal["batch", "size"], ...]:
    """The open dimensions of ``batch,size``."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in ("batch", "size"):
            raise UsageError(f"--dynamic {text}: '{word}' cannot stay open; must be batch, size or batch,size")
    every: tuple[Literal["batch", "size"], ...] = ("batch", "size")
    return tuple(word for word in every if word in words)


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width of ``512`` or ``384x640``."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip())
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not height or not width or height % 32 or width % 32:
        raise UsageError(f"--size {text}: must be PX or HxW in multiples of 32, such as 512 or 384x640")
    return height, width
