"""``memorysam prepare hha``: HHA images from metric depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.errors import UsageError


def hha(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of the data set.")],
    depth: Annotated[str, typer.Option("--depth", metavar="PATTERN", help="The depth images below ROOT.")],
    camera: Annotated[str, typer.Option("--camera", metavar="FX,FY,CX,CY", help="In pixels of the depth images.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Where to, below ROOT.")] = Path("hha"),
    depth_scale: Annotated[
        float | None,
        typer.Option("--depth-scale", metavar="X", help="Metres per unit (else 0.001, for floating point 1)."),
    ] = None,
    farthest: Annotated[
        float | None, typer.Option("--farthest", metavar="M", help="What is farther counts as not measured.")
    ] = None,
    camera_height: Annotated[
        float | None,
        typer.Option("--height", metavar="M", help="Of the camera above the ground (else from the lowest points)."),
    ] = None,
    gravity: Annotated[
        str | None,
        typer.Option("--gravity", metavar="X,Y,Z", help="Where down is, as 0,1,0 (else found in each image)."),
    ] = None,
    nearest: Annotated[
        float, typer.Option("--nearest", metavar="M", show_default="1.216", help="The distance that becomes 255.")
    ] = 310 / 255,
    tallest: Annotated[float, typer.Option("--tallest", metavar="M", help="The height that becomes 255.")] = 2.55,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Compute HHA images from metric depth.

    An 8-bit PNG of horizontal disparity, height above ground and angle with gravity for each depth image. Depth lies
    along the optical axis; 0 and the largest whole number mean 'not measured' and become 0. Images that are done and
    newer than their depth are kept.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    positive = {
        "--depth-scale": depth_scale, "--farthest": farthest, "--height": camera_height, "--nearest": nearest,
        "--tallest": tallest,
    }  # fmt: skip
    for option, value in positive.items():
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"{option} {value}: must be a number above 0, in metres")
    from memorysam_cli.data.own import hha as hha_files
    from memorysam_cli.data.own.hha import Camera, Encoding
    from memorysam_cli.data.own.patterns import Pattern
    from memorysam_cli.report import console

    fx, fy, cx, cy = _numbers("--camera", camera, "fx,fy,cx,cy")
    if fx <= 0 or fy <= 0:
        raise UsageError(f"--camera {camera}: the focal lengths fx and fy must be above 0, in pixels")
    x, y, z = _numbers("--gravity", gravity or "0,0,0", "x,y,z")
    if gravity is not None and x == y == z == 0:
        raise UsageError(f"--gravity {gravity}: has no direction; a camera held level has 0,1,0")
    settings = hha_files.HhaSettings(
        camera=Camera(fx, fy, cx, cy),
        depths=hha_files.Depths(scale=depth_scale, farthest=farthest),
        encoding=Encoding(nearest, tallest, camera_height, gravity=None if gravity is None else (x, y, z)),
    )
    work = hha_files.plan_conversion(root, Pattern(depth), root / out, settings=settings)
    with console.progress(len(work.jobs), "hha") as bar:
        hha_files.convert(work, advance=bar.advance)
    console.say(f"HHA images  {len(work.jobs)} made, {work.done} kept")
    console.say(f"folder      {work.out}")
    if json:
        console.answer(
            {"schema_version": 1, "root": str(root.absolute()), "out": str(work.out.absolute()), "made": len(work.jobs),
             "kept": work.done}
        )  # fmt: skip


def _numbers(option: str, text: str, form: str) -> list[float]:
    """Numbers separated by commas, as many as ``form`` has words."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != len(form.split(",")) or not all(abs(number) < 1e6 for number in found):
        raise UsageError(f"{option} {text}: must be {form}, finite numbers separated by commas")
    return found
