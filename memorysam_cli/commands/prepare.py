"""``memorysam prepare``: render or check a data set, and write the manifest that all other commands read.

``synthetic`` renders one. ``deliver`` and similar commands check a published one, and unpack it if necessary.
``folder`` and ``manifest`` are for the user's own sensors. ``hha`` computes HHA images from metric depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli import data
from memorysam_cli.commands import prepare_options as words
from memorysam_cli.commands.options import Json, Quiet, Verbose, begin, must_exist
from memorysam_cli.commands.prepare_options import DropIncomplete, ExistingRoot, HeadersOnly, MaxPixels, Root
from memorysam_cli.commands.prepare_report import agree, check_and_write, measuring, show_proposal, surveyed
from memorysam_cli.data import DATASETS
from memorysam_cli.errors import DataError, UsageError

Where = Annotated[
    Path,
    typer.Argument(
        metavar="ROOT", help="The data set's folder, one above it, or its archive (.zip, .tar, .tar.gz, .tar.xz)."
    ),
]
MaxExpand = Annotated[
    float | None,
    typer.Option("--max-expand", min=0, metavar="GB", help="Largest unpacked size (else 200 × the archive's size)."),
]
AllowCase = Annotated[
    bool, typer.Option("--allow-case", help="Unpack names that differ only in case, if the disk can store both.")
]
Measure = Annotated[bool, typer.Option("--measure", help="Store each sensor's mean, deviation and range over train.")]
Named = list[str] | None
app = typer.Typer(
    help="Render or check a data set and write its manifest. All other commands read the manifest.",
    no_args_is_help=True,
)
EXAMPLES = {
    "": [
        ("prepare synthetic ./data", "render scenes"),
        ("prepare deliver ./data", "a published data set, unpacked or an archive"),
        ("prepare folder ./data", "your own sensors: shows a proposal and asks"),
    ],
    "synthetic": [
        ("prepare synthetic ./data", "240 scenes in DELIVER's layout"),
        ("prepare synthetic ./data --scenes 60 --size 128", "fewer and smaller ones"),
        ("prepare synthetic ./data --layout mcubes --seed 7", "other scenes, in MCubeS's layout"),
    ],
    "folder": [
        (
            "prepare folder ./data --modality 'rgb=images/*.png' --modality 'depth=depth/*.png' "
            "--labels 'masks/*.png' --classes classes.txt",
            "pairs by name; splits are drawn",
        ),
        (
            "prepare folder ./data --modality 'rgb=s2/*.tif' --bands rgb=4,3,2 --modality 'nir=s2/*.tif' --bands nir=8",
            "two sensors of one raster's bands, counted from 1",
        ),
        (
            "prepare folder ./data --modality 'nir=nir/*.tif' --labels 'masks/*.png' --classes classes.txt "
            "--name field --drop-incomplete",
            "leave out incomplete scenes",
        ),
        (
            "prepare folder ./data --modality 'rgb=rgb/*.png' --modality 'ir=ir/*.tif' --pair nearest --tolerance 20ms",
            "by the times in the names",
        ),
    ],
    "manifest": [
        ("prepare manifest ./data sensors", "accept a manifest that was edited by hand"),
        ("prepare manifest ./data sensors --headers-only", "the same in seconds"),
    ],
    "hha": [
        ("prepare hha ./data --depth 'depth/*.png' --camera 525,525,319.5,239.5", "from 16-bit millimeters"),
        ("prepare hha ./data --depth 'd/*.npy' --camera 525,525,319.5,239.5 --height 1.4", "from meters; height known"),
    ],
} | {
    name: [
        (f"prepare {name} ./data", "unpacked in or below ./data"),
        (f"prepare {name} ./{name}.zip", "the archive is unpacked beside it"),
        (f"prepare {name} ./data --drop-incomplete", "leave out scenes with problems, and list them"),
    ]
    for name in DATASETS
}


def synthetic(
    root: Root,
    scenes: Annotated[int, typer.Option("--scenes", min=1, metavar="N", help="How many scenes in all.")] = 240,
    size: Annotated[int, typer.Option("--size", min=32, metavar="PX", help="Height of the pictures.")] = 160,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Seed of the scenes.")] = 0,
    layout: Annotated[Literal["deliver", "mcubes"], typer.Option(help="Folder and file layout to write.")] = "deliver",
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Render street scenes in DELIVER's (or MCubeS') own layout.

    They become the data set 'synthetic'.
    """
    from memorysam_cli.data import preparation
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    with console.progress(scenes, "render") as bar:
        is_new = preparation.render_synthetic(
            root, layout=layout, scenes=scenes, size=size, seed=seed, advance=bar.advance
        )
    if not is_new:
        console.note(f"{preparation.synthetic_folder(root, layout=layout)}: these scenes exist already; kept")
    check_and_write(preparation.survey_synthetic(root, layout=layout), json=json)


def command_of(name: str) -> Callable[..., None]:
    """The command that prepares a published data set."""

    def prepare(
        root: Where,
        drop_incomplete: DropIncomplete = False,
        headers_only: HeadersOnly = False,
        max_pixels: MaxPixels = None,
        max_expand: MaxExpand = None,
        allow_case: AllowCase = False,
        measure: Measure = False,
        json: Json = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        begin(json=json, verbose=verbose, quiet=quiet)
        inside = None
        if root.is_file():
            inside = _unpacked(root, max_expand=max_expand, allow_case=allow_case)
            root = root.parent
        # After the archive: an archive bomb is refused at once and with little memory.
        from memorysam_cli.data import preparation
        from memorysam_cli.data.layout import DataNotFound
        from memorysam_cli.report import console

        try:
            found = preparation.survey(name, root, inside=inside)
        except DataNotFound as fault:
            for line in (f"expected below {inside or root}:", *fault.expected_tree.splitlines()):
                console.note(line)
            raise
        check_and_write(
            found,
            json=json,
            drop_incomplete=drop_incomplete,
            headers_only=headers_only,
            max_pixels=max_pixels,
            measure=measuring(max_pixels=max_pixels, normalize=False) if measure else None,
        )

    return prepare


def _unpacked(path: Path, *, max_expand: float | None, allow_case: bool) -> Path:
    """The folder beside an archive with its content; unpacks it if this was not done before."""
    from memorysam_cli.report import console
    from memorysam_cli.storage import archive

    if max_expand is not None and not math.isfinite(max_expand):
        raise UsageError(f"--max-expand {max_expand}: must be a number of gigabytes, such as 50")
    limit = None if max_expand is None else int(max_expand * 1e9)
    with console.progress(archive.megabytes(path), f"unpack {path.name}, MB") as bar:
        folder, is_new = archive.unpack_beside(path, max_bytes=limit, allow_case=allow_case, advance=bar.advance)
    console.note(f"{folder}: {'unpacked from' if is_new else 'is already unpacked from'} {path.name}")
    return folder


def folder(
    context: typer.Context,
    root: ExistingRoot,
    modality: Annotated[
        Named,
        typer.Option(
            "--modality",
            "-m",
            metavar="NAME=PATTERN",
            help="A sensor and its files below ROOT, such as 'depth=depth/*.png' (repeatable); else proposed.",
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="The label files; without them, scenes can only be predicted.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A class per line: name, name r g b, or value: name r g b; else the labels' values are the classes.",
        ),
    ] = None,
    palette: Annotated[
        Literal["given", "safe"],
        typer.Option(help="Colors of --classes as given, or color-blind safe ones."),
    ] = "given",
    split: Annotated[
        Named, typer.Option("--split", metavar="SHARES|NAME=FILE", help="0.8/0.1/0.1, or a list of scenes per split.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the data set; else that of ROOT.")] = None,
    kind: Annotated[
        Named,
        typer.Option(
            "--kind",
            metavar="NAME=KIND",
            help="Kind: rgb, gray, depth, hha, event, lidar, thermal or angle (repeatable).",
        ),
    ] = None,
    channels: Annotated[
        Named,
        typer.Option(
            "--channels",
            metavar="NAME=A,B,C",
            help="The three stored channels to use, counted from 0; more, as 0-5, become several frames (repeatable).",
        ),
    ] = None,
    bands: Annotated[
        Named,
        typer.Option(
            "--bands",
            metavar="NAME=A,B,C",
            help="The three bands of a TIFF to use, or more, counted from 1 or by names, as s2=B4,B3,B2 (repeatable).",
        ),
    ] = None,
    scale: Annotated[
        Named,
        typer.Option(
            "--scale", metavar="NAME=X", help="Factor for stored values, as depth=0.001 for mm to m (repeatable)."
        ),
    ] = None,
    nodata: Annotated[
        Named,
        typer.Option(
            "--nodata",
            metavar="NAME=VALUE",
            help="Stored values that are not measurements, as depth=65535 (repeatable), besides NaN and TIFF nodata.",
        ),
    ] = None,
    resize: Annotated[
        Named,
        typer.Option(
            "--resize",
            metavar="NAME=WAY",
            help="How a sensor of another size is resampled: nearest or bilinear (repeatable); else by its kind.",
        ),
    ] = None,
    pair: words.Pair = "name",
    tolerance: words.Tolerance = None,
    times: words.Times = None,
    ignore: Annotated[
        list[int] | None, typer.Option(metavar="VALUE", help="Label value to ignore, else 255 (repeatable).")
    ] = None,
    label_shift: Annotated[
        int, typer.Option(min=-65535, max=65535, metavar="N", help="Added to label values, as -1 for 1..K.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the division into splits.")] = 0,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Normalize photos (rgb, gray) too, by the mean and deviation of train."),
    ] = False,
    stored: Annotated[
        bool, typer.Option("--stored", help="Measure no sensor: keep stored ranges, with 8 and 16 bits as 0..1.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the proposal made without --modality.")] = False,
    drop_incomplete: DropIncomplete = False,
    headers_only: HeadersOnly = False,
    max_pixels: MaxPixels = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Prepare the files of any number of your own sensors.

    Without --modality it looks at ROOT, proposes sensors, labels and splits with a picture sheet, and asks; --yes
    accepts. Reads PNG, JPEG, TIFF, BMP, WebP, NPY and NPZ. Files of one scene have the same text where the wildcards
    are; {split} in a pattern is the scene's split. An angle has two patterns, sine and cosine:
    'aolp=sin/*.npy+cos/*.npy'.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.data.own.classes import read_classes
    from memorysam_cli.data.own.folder import FolderRequest, survey
    from memorysam_cli.data.own.patterns import Pattern
    from memorysam_cli.data.own.sensors import names_to_measure

    class_file = None if classes is None else words.existing("--classes ", classes, root)
    divided = words.split(split or [], root)
    tables = words.tables(times or [], root)
    own_name = words.dataset_name(name, root)
    proposal = None if modality else words.proposed(root, labels=labels, classes=class_file, kind=kind)
    if proposal is not None:
        modality = [f"{sensor}={pattern}" for sensor, pattern in proposal.modalities.items()]
        kind = words.beside(proposal.kinds, kind)
        channels, bands = words.beside(proposal.channels, channels), words.beside(proposal.bands, bands)
        labels, class_file = proposal.labels, proposal.classes
        show_proposal(proposal, root)
    patterns = words.patterns(modality or [])
    span = words.nanoseconds(tolerance, pair=pair, times=times or [])
    if measure and stored:
        raise UsageError(
            "--measure and --stored exclude each other; give one, or neither to measure all sensors except photos"
        )
    if labels is None and class_file is not None:
        raise UsageError("--classes: is for --labels; give both, or neither to predict only")
    chosen = words.channels(words.pairs("--channels", channels, known=patterns))
    request = FolderRequest(
        name=own_name,
        modalities=patterns,
        labels=None if labels is None else Pattern(labels),
        classes=None if class_file is None else read_classes(class_file, is_safe=palette == "safe"),
        split=divided,
        kinds=words.kinds(words.pairs("--kind", kind, known=patterns)),
        channels=chosen,
        bands=words.bands(words.pairs("--bands", bands, known=patterns), channels=chosen),
        scale=words.scales(words.pairs("--scale", scale, known=patterns)),
        resize=words.resize(words.pairs("--resize", resize, known=patterns)),
        pair=pair,
        tolerance_ns=span,
        times=tables,
        ignore=tuple(ignore) if ignore else None,
        label_shift=label_shift,
        seed=seed,
        nodata=words.nodata(nodata, known=patterns),
        measured="all" if measure else "none" if stored else "others",
    )
    if proposal is None:
        found = survey(root, request)
    else:
        typed = words.given(context, but=("modality", "labels", "classes", "kind", "channels", "bands", "yes", "json"))
        found, pairing = (survey(root, request), []) if "--pair" in typed else surveyed(root, request)
        counted = [*words.options("--channels", channels), *words.options("--bands", bands)]
        more = [*words.options("--kind", kind), *counted, *typed, *pairing]
        agree(proposal, found, [*proposal.words(), *more], is_agreed=yes, json=json)
    measured = names_to_measure(found.manifest.info.modalities, request.measured)
    check_and_write(
        found.manifest,
        json=json,
        drop_incomplete=drop_incomplete,
        headers_only=headers_only,
        max_pixels=max_pixels,
        measure=measuring(max_pixels=max_pixels, normalize=True, names=measured) if measured else None,
        notes=found.notes,
        laws=found.laws,
        shows_choices=True,
    )


def manifest(
    root: ExistingRoot,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set: a folder in ROOT/memorysam/.")],
    measure: Annotated[
        bool, typer.Option("--measure", help="Store each sensor's mean, deviation and range over train.")
    ] = False,
    drop_incomplete: DropIncomplete = False,
    headers_only: HeadersOnly = False,
    max_pixels: MaxPixels = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check and accept a data set that was edited by hand.

    Until then, the other commands refuse the edited scenes.jsonl.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.data import manifest as manifests

    found = manifests.read_unsigned(root, name)
    check_and_write(
        found,
        json=json,
        drop_incomplete=drop_incomplete,
        headers_only=headers_only,
        max_pixels=max_pixels,
        measure=measuring(max_pixels=max_pixels, normalize=False) if measure else None,
        accepts_edits=True,
    )


def hha(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder of the data set.", callback=must_exist(DataError))
    ],
    depth: Annotated[str, typer.Option("--depth", metavar="PATTERN", help="The depth images below ROOT.")],
    camera: Annotated[
        str,
        typer.Option(
            "--camera", metavar="FX,FY,CX,CY", help="Focal lengths and center, in pixels of the depth images."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="Folder of the HHA images, below ROOT.")
    ] = Path("hha"),
    depth_scale: Annotated[
        float | None,
        typer.Option("--depth-scale", metavar="X", help="Meters per unit (else 0.001, for floating point 1)."),
    ] = None,
    farthest: Annotated[
        float | None, typer.Option("--farthest", metavar="M", help="Larger distances count as not measured.")
    ] = None,
    camera_height: Annotated[
        float | None,
        typer.Option(
            "--height", metavar="M", help="Height of the camera above the ground (else from the lowest points)."
        ),
    ] = None,
    gravity: Annotated[
        str | None,
        typer.Option("--gravity", metavar="X,Y,Z", help="Direction of gravity, as 0,1,0 (else found in each image)."),
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

    Writes an 8-bit PNG of horizontal disparity, height above ground and angle with gravity for each depth image. Depth
    is measured along the optical axis; 0 and the largest whole number mean 'not measured' and become 0. Existing
    images that are newer than their depth are kept.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    positive = {
        "--depth-scale": depth_scale, "--farthest": farthest, "--height": camera_height, "--nearest": nearest,
        "--tallest": tallest,
    }  # fmt: skip
    for option, value in positive.items():
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"{option} {value}: must be a number above 0, in meters")
    from memorysam_cli.data.own.hha import Camera, Depths, Encoding, HhaSettings, convert, plan_conversion
    from memorysam_cli.data.own.patterns import Pattern
    from memorysam_cli.report import console

    fx, fy, cx, cy = _numbers("--camera", camera, "fx,fy,cx,cy")
    if fx <= 0 or fy <= 0:
        raise UsageError(f"--camera {camera}: the focal lengths fx and fy must be above 0, in pixels")
    x, y, z = _numbers("--gravity", gravity or "0,0,0", "x,y,z")
    if gravity is not None and x == y == z == 0:
        raise UsageError(f"--gravity {gravity}: has no direction; a level camera has 0,1,0")
    settings = HhaSettings(
        camera=Camera(fx, fy, cx, cy),
        depths=Depths(scale=depth_scale, farthest=farthest),
        encoding=Encoding(nearest, tallest, camera_height, gravity=None if gravity is None else (x, y, z)),
    )
    work = plan_conversion(root, Pattern(depth), root / out, settings=settings)
    for line in work.notes:
        console.note(line)
    with console.progress(len(work.jobs), "hha") as bar:
        convert(work, advance=bar.advance)
    console.say(f"HHA images  {len(work.jobs)} made, {work.done} kept")
    console.say(f"folder      {work.out}")
    if json:
        console.answer(
            {"schema_version": 1, "root": str(root.absolute()), "out": str(work.out.absolute()), "made": len(work.jobs),
             "kept": work.done}
        )  # fmt: skip


def _numbers(option: str, text: str, form: str) -> list[float]:
    """Numbers separated by commas, as many as ``form`` has parts."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if len(found) != len(form.split(",")) or not all(abs(number) < 1e6 for number in found):
        raise UsageError(f"{option} {text}: must be {form}, finite numbers separated by commas")
    return found


def about(name: str) -> str:
    """What a published data set shows: the first line of its declaration, which is read and not loaded."""
    module = DATASETS[name].partition(":")[0].rpartition(".")[2]
    try:
        with (Path(data.__file__).parent / "datasets" / f"{module}.py").open(encoding="utf-8") as source:
            return source.readline().strip('" \n')
    except OSError:  # an installation without source files
        return f"The published data set {name}."


app.command()(synthetic)
for _name in DATASETS:
    _about = about(_name)
    _help = f"{_about}\n\nChecks the data set, unpacked or archived, and writes the manifest for the other commands."
    app.command(_name, short_help=_about, help=_help)(command_of(_name))
app.command()(folder)
app.command()(manifest)
app.command()(hha)
