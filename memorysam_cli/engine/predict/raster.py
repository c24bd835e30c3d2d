"""Prediction of a raster: read, segmented and written in windows, so that memory does not grow with its size.

First come the checks of the request, then the processing of a stripe of the raster: windows of all sensors, blended as
with ``--tile``, and rows of classes that are on the disk before the next ones are computed. A killed run continues
after the last such rows. The result gets its name when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memorysam_cli import model as models
from memorysam_cli.data import decode, statistics
from memorysam_cli.data.transforms import STRIDE, Array, Mask, is_exact, to_tensor
from memorysam_cli.dataset import DatasetInfo, Modality, ValueRange
from memorysam_cli.engine import surroundings
from memorysam_cli.engine.infer.decision import ONE_BYTE, Share, Wanted, decide
from memorysam_cli.engine.infer.inference import Inference, by_frame, choose_modalities, compared, inference_mode
from memorysam_cli.engine.infer.views import Stripe, Tiled, View
from memorysam_cli.errors import DataError, UsageError, WeightsError, check_laws, did_you_mean
from memorysam_cli.model import WeightsCard, read_card
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, images, lock, rasters, tensors
from memorysam_cli.storage.headers import Header
from memorysam_cli.storage.rasters import Grid, Windows
from memorysam_cli.text import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUFFIXES = (".tif", ".tiff")
STRIPE_BYTES = 2**30
"""Limit of the bytes of a stripe's probabilities, unless a single column of windows needs more."""
BLOCK_BYTES = 2**28
"""Limit of the bytes of a tile or strip of a raster that is read in windows."""
COPY = 1.5
"""Space for a COG with its overviews, as a multiple of the bytes of its pixels."""
COVERED = 0.995
"""Share of the first sensor's raster: if another one covers at least this, its gaps are not reported."""
LOOKS = 8
"""Number of windows whose values are compared with those of training."""
PROGRESS, JOB, CLASSES, PROBABILITIES = "done.jsonl", "job.json", "classes.tif", "probabilities.tif"
"""File in the folder of an unfinished raster."""
Bands = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class RasterJob:
    """Which rasters to segment with which weights, and how."""

    weights: Path
    weights_sha256: str
    card: WeightsCard
    sources: Mapping[str, Path]
    """Modality → the raster with its bands; the result has the grid of the first one."""
    modalities: tuple[Modality, ...]
    """The modalities, in the order of the memory."""
    view: View
    precision: str = "fp32"
    is_compiled: bool = False
    probabilities: Share | None = None
    """``uint8`` or ``float16`` to write the probabilities, with a band for each class."""

    @property
    def wanted(self) -> Wanted:
        """What is computed for each pixel."""
        return Wanted(probabilities=self.probabilities)

    @property
    def stored(self) -> str:
        """The type of the file of probabilities, because TIFF readers do not support float16."""
        return "uint8" if self.probabilities == "uint8" else "float32"

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes per pixel of all output files."""
        every = 0 if self.probabilities is None else len(self.info.classes) * np.dtype(self.stored).itemsize
        return np.dtype(self.dtype).itemsize + every

    @property
    def info(self) -> DatasetInfo:
        """Classes and palette."""
        return self.card.dataset

    @property
    def dtype(self) -> str:
        """Type of the class raster."""
        return "uint8" if len(self.info.classes) <= ONE_BYTE else "uint16"

    @property
    def nodata(self) -> int:
        """The value of a pixel without any measurement."""
        return int(np.iinfo(self.dtype).max)

    def marks(self, grid: Grid) -> dict[str, Any]:
        """The values that must be equal for a run to continue an earlier one."""
        stamps = {name: path.stat() for name, path in self.sources.items()}
        return {
            "weights": self.weights_sha256,
            "sources": {
                name: [str(self.sources[name]), facts.st_size, facts.st_mtime_ns] for name, facts in stamps.items()
            },
            "modalities": [modality.model_dump(mode="json") for modality in self.modalities],
            **self.view.to_json(size=self.card.image_size),
            "grid": grid.to_json(),
            "--precision": self.precision,
            "--compile": self.is_compiled,
            "versions": surroundings.versions(),
            **({} if self.probabilities is None else {"--probabilities": self.probabilities}),
        }  # fmt: skip


def plan(
    weights: Path,
    *,
    scene: Path | None,
    sources: Mapping[str, Path],
    bands: Bands,
    names: Sequence[str] | None = None,
    view: View,
    precision: str = "fp32",
    is_compiled: bool = False,
    probabilities: Share | None = None,
) -> RasterJob:
    """Check that every sensor has a raster, and its bands are known.

    Args:
        weights: a weights file.
        scene: one raster with the bands of all sensors; None: each has its own.
        sources: modality → its raster; the result has the pixels of the first one.
        bands: modality → one or three bands, instead of those in the weights' card.
        names: the modalities of ``scene``; None: all.
        view: scales, flips and tiles.
        precision: of the computation.
        is_compiled: whether the network's blocks are compiled.
        probabilities: ``uint8`` or ``float16`` to write the probabilities of all classes.

    Raises:
        WeightsError: the weights are refused.
        UsageError: the weights do not have this modality, or its bands are unknown.
    """
    card = read_card(weights)
    known = [modality.name for modality in card.modalities]
    sources = by_frame(sources, known)
    for option, given in (("--modality", sources), ("--bands", bands)):
        for name in given:
            if name not in known:
                raise UsageError(f"{option} {name}=…: the weights know no such modality{did_you_mean(name, known)}")
    chosen = choose_modalities(card.modalities, names if scene is not None else tuple(sources))
    places = dict.fromkeys((modality.name for modality in chosen), scene) if scene is not None else dict(sources)
    made = tuple(_with_bands(modality, bands.get(modality.name)) for modality in chosen)
    for modality in made:
        shared = [name for name, path in places.items() if path == places[modality.name]]
        if len(shared) > 1 and modality.bands is None and modality.channels is None:
            raise UsageError(
                f"{shown(places[modality.name])}: the bands of '{modality.name}' are unknown; choose them, as "
                f"with --bands {modality.name}=1, or give a raster of its own: --modality {modality.name}=FILE"
            )
    missing = [name for name in known if name not in places]
    if missing:
        console.note(f"without '{', '.join(missing)}': predicting with the other modalities")
    paths = {name: path for name, path in places.items() if path is not None}
    return RasterJob(
        weights, tensors.sha256(weights), card, paths, made, replace(view, tile=True), precision, is_compiled,
        probabilities,
    )  # fmt: skip


def _with_bands(modality: Modality, bands: Sequence[int | str] | None) -> Modality:
    """A modality with other bands than in the card."""
    if not bands:
        return modality
    first, second, third = bands if len(bands) > 1 else [bands[0]] * 3
    return modality.model_copy(update={"bands": (first, second, third), "channels": None})


class _Sensors:
    """The rasters of all sensors, open on one grid.

    Args:
        job: names the rasters.
        stack: closes the rasters.

    Raises:
        DataError: one cannot be read in windows.
    """

    def __init__(self, job: RasterJob, stack: ExitStack) -> None:
        headers = {name: _header(path) for name, path in job.sources.items()}
        known = {modality.name: modality for modality in job.modalities}
        self.modalities = {
            name: decode.with_channels(known[name], headers[name], path=path) for name, path in job.sources.items()
        }
        self._paths, self._headers = job.sources, headers
        self._files: dict[str, Windows] = {}
        grid: Grid | None = None
        for name, path in job.sources.items():  # the first one's grid is the result's
            nearest, nodata = is_exact(known[name]), known[name].nodata
            opened = rasters.windows(path, headers[name], onto=grid, nearest=nearest, nodata=nodata)
            self._files[name] = stack.enter_context(opened)
            grid = self._files[name].grid
        assert grid is not None  # there is at least one
        self.grid = grid
        self.names = tuple(known)

    def frame(self, name: str, *, top: int, left: int, size: int) -> tuple[Array, Mask | None]:
        """A window of one sensor, (h, w, 3), and where it is invalid; cut off at the edge of the raster."""
        modality, header = self.modalities[name], self._headers[name]
        wanted = modality.channels or (tuple(range(3)) if header.channels >= 3 else (0,))
        bands = sorted(set(wanted))
        array, hidden = self._files[name].read(
            bands, top=top, left=left, height=min(size, self.grid.height - top), width=min(size, self.grid.width - left)
        )
        first, second, third = (bands.index(band) for band in (wanted * 3 if len(wanted) == 1 else wanted))
        here = modality.model_copy(update={"channels": (first, second, third)})
        return decode.window_frame(array, here, tag=header.nodata, hidden=hidden, path=self._paths[name])

    def taken(self) -> dict[str, str]:
        """Modality → its bands and file, in words."""
        return {
            name: f"{decode.bands_taken(modality, self._headers[name], path=self._paths[name])} of {self._paths[name]}"
            for name, modality in self.modalities.items()
        }

    def gaps(self) -> list[str]:
        """A line for each sensor that does not cover all of the first one's raster."""
        return [
            f"'{name}' covers about {100 * file.share:.2g} % of the first sensor's raster; beyond, it measured nothing"
            for name, file in self._files.items()
            if file.share < COVERED
        ]

    def ranges(self, *, size: int) -> dict[str, ValueRange]:
        """The values in a few windows along the diagonal."""
        found: dict[str, ValueRange] = {}
        places = [share / (2 * LOOKS) for share in range(1, 2 * LOOKS, 2)]
        for name, modality in self.modalities.items():
            looks = []
            for share in places:
                top, left = (max(0, round(share * side - size / 2)) for side in (self.grid.height, self.grid.width))
                frame, invalid = self.frame(name, top=top, left=left, size=size)
                looks.append((self._headers[name].nodata, frame.ravel() if invalid is None else frame[~invalid]))
            one = statistics.range_of(looks, modality)
            if one is not None:
                found[name] = one
        return found


def _header(path: Path) -> Header:
    """Header of a raster whose blocks fit into memory.

    Raises:
        DataError: it is not a TIFF, or its blocks are too large.
        UsageError: the package for reading rasters is not installed.
    """
    if not rasters.is_installed():
        raise UsageError(f"{shown(path)}: to predict a raster, {rasters.INSTALL}")
    found = images.header(path)
    if found.format != "tiff":
        raise DataError(f"{shown(path)}: is a {found.format.upper()}, no raster (TIFF); give the folder of such scenes")
    if found.has_palette:
        raise DataError(f"{shown(path)}: has a color table; a sensor holds values (gdal_translate -expand rgb)")
    if found.block_bytes > BLOCK_BYTES:
        raise DataError(f"{shown(path)}: its tiles or strips are too large to be read by windows; {rasters.RETILE}")
    return found


def run(
    job: RasterJob,
    out: Path,
    *,
    device: str,
    strict: bool = False,
    overwrite: bool = False,
    vector: str | None = None,
) -> dict[str, Any]:
    """Segment a raster.

    Args:
        job: from :func:`plan`.
        out: the class raster, a COG.
        device: the value of ``--device``.
        strict: refuse values that differ from those in training, instead of a warning.
        overwrite: replace existing files.
        vector: a format in :data:`memorysam_cli.storage.rasters.VECTORS`, to write polygons beside ``out``.

    Returns:
        The object of ``predict --json``.

    Raises:
        UsageError: ``out`` exists, or its name is not that of a TIFF.
        DataError: a raster cannot be read.
        WeightsError: the weights are refused, or have changed since the job was planned.
        EnvironmentFault: no space on the disk, or another problem of the machine.
        FolderInUseError: another run writes the same file.
    """
    shapes = None if vector is None else out.with_suffix(f".{vector}")
    every = None if job.probabilities is None else out.with_name(f"{out.stem}.{PROBABILITIES}")
    work = out.with_name(f".{out.name}.work")
    also = {"vector": shapes, "probabilities": every}
    beside = [path for path in also.values() if path is not None]
    own = [path for path in beside if (work / path.name).exists()]
    _refuse_out(job, out, beside, may_be_there=own, overwrite=overwrite)
    surroundings.refuse_device(device, precision=job.precision)
    with ExitStack() as stack:
        sensors = _Sensors(job, stack)
        if vector == "geojson":
            rasters.refuse_without_degrees(next(iter(job.sources.values())), sensors.grid)
        _remark(job, sensors, strict=strict)
        needed = round((1 + COPY) * sensors.grid.height * sensors.grid.width * job.bytes_per_pixel)
        made = work / CLASSES
        there = sum(path.stat().st_size for path in (made, work / PROBABILITIES) if path.exists())
        atomic.refuse_unwritable(out.parent, needed_bytes=max(1, needed - there))
        chosen = _device(job, device)
        with lock.hold(work):
            _begin(job, sensors.grid, work)
            _segment(job, sensors, work, chosen)
            for path in beside:
                (work / path.name).touch()  # from here on it is ours, perhaps from an interrupted run
            if every is not None:
                rasters.write_cog(work / PROBABILITIES, every, scratch=work, needed_bytes=needed)
            if shapes is not None:
                _write_polygons(job, made, shapes, crs=sensors.grid.crs)
            rasters.write_cog(made, out, scratch=work, needed_bytes=needed)  # last: if it exists, everything is done
    shutil.rmtree(work, ignore_errors=True)
    return _report(job, sensors, out, chosen) | {key: path and str(path) for key, path in also.items()}


def _remark(job: RasterJob, sensors: _Sensors, *, strict: bool) -> None:
    """Report the bands that are read, areas that sensors do not cover, and values that differ from those in training.

    Raises:
        DataError: values differ from those in training, and ``strict``.
    """
    for name, words in sensors.taken().items():
        console.note(f"'{name}' takes {words}")
    for line in sensors.gaps():
        console.note(line)
    for line in compared(job.info, sensors.ranges(size=job.card.image_size), strict=strict):
        console.warn(line)


def _device(job: RasterJob, name: str) -> torch.device:
    """The device of a name; torch is loaded here, after all options have been checked."""
    from memorysam_cli.engine import runtime

    device = runtime.choose_device(name)
    runtime.refuse_precision(job.precision, device)
    return device


def _write_polygons(job: RasterJob, made: Path, shapes: Path, *, crs: Any) -> None:
    """Write the areas of each class of a finished raster as polygons."""
    write = rasters.write_geojson if shapes.suffix == ".geojson" else rasters.write_gpkg
    with closing(rasters.polygons(made, images.header(made), nodata=job.nodata)) as found:
        write(shapes, ((value, job.info.classes[value], geometry) for value, geometry in found), crs=crs)


def _refuse_out(
    job: RasterJob, out: Path, beside: Sequence[Path], *, may_be_there: Sequence[Path], overwrite: bool
) -> None:
    """Refuse what must not be replaced, before anything is computed.

    Args:
        job: the job; its sources are never replaced.
        out: the class raster.
        beside: the other files.
        may_be_there: files among these that an unfinished run has left.
        overwrite: replace others.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--out {shown(out)}: the classes of a raster are one file; give it a name such as classes.tif"
        )
    if out.is_dir():
        raise UsageError(f"--out {shown(out)}: is a folder; give a file's name, such as classes.tif")
    sources = [path for path in job.sources.values() if path.exists()]
    for path in (out, *beside):
        if path.exists() and any(path.samefile(source) for source in sources):
            raise UsageError(f"--out {shown(path)}: is the raster that is read; give another name")
        if path.exists() and not overwrite and path not in may_be_there:
            raise UsageError(f"--out {shown(path)}: exists already; give another name or --overwrite")


def _begin(job: RasterJob, grid: Grid, work: Path) -> None:
    """Create the raster for the rows, unless a run of the same job has left it."""
    marks = job.marks(grid)
    if (work / JOB).exists():
        if documents.read_json(work / JOB) == marks:
            return
        console.note(
            f"{work}: leftovers of another run (other rasters, weights or options) are discarded; starting over"
        )
        for name in (JOB, PROGRESS, CLASSES, PROBABILITIES):
            (work / name).unlink(missing_ok=True)
    (work / PROGRESS).unlink(missing_ok=True)
    named = zip(job.info.classes, job.info.palette, strict=True)
    rasters.create(
        work / CLASSES, grid, dtype=job.dtype, nodata=job.nodata,
        colors={index: (*color, 255) for index, color in enumerate(job.info.palette)} | {job.nodata: (0, 0, 0, 0)},
        tags={f"CLASS_{index}": name for index, (name, _) in enumerate(named)},
    )  # fmt: skip
    if job.probabilities is not None:
        rasters.create(
            work / PROBABILITIES, grid, dtype=job.stored, nodata=None if job.stored == "uint8" else np.nan,
            colors={}, tags={}, bands=job.info.classes,
        )  # fmt: skip
    documents.write_json(work / JOB, marks)  # last: then the job is complete


def _segment(job: RasterJob, sensors: _Sensors, work: Path, device: torch.device) -> None:
    """Segment the stripes that are left."""
    from memorysam_cli.engine import runtime

    network = models.load(job.weights, device=device)
    if tensors.sha256(job.weights) != job.weights_sha256:
        raise WeightsError(f"{job.weights}: has changed since this prediction began; run the same command again")
    if job.is_compiled:
        network.compile_blocks()
    inference = Inference(
        job.modalities, job.card.image_size, device, known=job.card.modalities, view=job.view, precision=job.precision
    )
    size = job.card.image_size
    tiled = Tiled(inference.shown(network), size=size, overlap=job.view.overlap)
    most_px = STRIPE_BYTES // (4 * size * len(job.info.classes))
    stripes = tiled.stripes(sensors.grid.width, most_px=most_px)
    done = _rows_done(work, len(stripes))
    if any(done):
        console.note(f"{work}: continues: {sum(done):,} of {len(stripes) * sensors.grid.height:,} rows are done")
    with (
        runtime.explained(device, levers=runtime.LOOKING),
        inference_mode(network),
        console.progress(len(stripes) * sensors.grid.height, "rows") as progress,
    ):
        progress.advance(sum(done))
        for number, stripe in enumerate(stripes):
            for rows, classes, every in _classes(job, sensors, tiled, inference, stripe, first=done[number]):
                rasters.write_rows(work / CLASSES, classes, top=rows.start, left=stripe.left)
                if every is not None:
                    values = every.astype(job.stored, copy=False)
                    rasters.write_rows(work / PROBABILITIES, values, top=rows.start, left=stripe.left)
                documents.append_json_line(work / PROGRESS, {"stripe": number, "rows": rows.stop}, fsync=True)
                progress.advance(rows.stop - rows.start)


def _rows_done(work: Path, stripes: int) -> list[int]:
    """Number of rows of each stripe that are on the disk."""
    done = [0] * stripes
    for line in documents.read_json_lines(work / PROGRESS) if (work / PROGRESS).exists() else ():
        number, rows = (line.get(key) if isinstance(line, dict) else None for key in ("stripe", "rows"))
        if not (isinstance(number, int) and isinstance(rows, int) and 0 <= number < stripes and rows >= done[number]):
            raise DataError(f"{shown(work / PROGRESS)}: damaged; remove {shown(work)} to start over")
        done[number] = rows
    return done


def _classes(
    job: RasterJob, sensors: _Sensors, tiled: Tiled, inference: Inference, stripe: Stripe, *, first: int
) -> Iterator[tuple[slice, npt.NDArray[Any], npt.NDArray[Any] | None]]:
    """The rows of a stripe from ``first`` on, as classes and, if requested, (K, h, w) probabilities.

    Without any measurement, classes are nodata, and probabilities NaN (0 for uint8).
    """
    size, grid = job.card.image_size, sensors.grid
    is_gap = np.zeros((size, stripe.end - stripe.begin), bool)
    begun = 0  # the row in which the windows of is_gap begin

    def see(top: int, left: int) -> Tensor:
        nonlocal begun
        begun = top
        frames, gaps = _window(sensors, inference, top=top, left=left, size=size)
        is_gap[: gaps.shape[0], left - stripe.begin : left - stripe.begin + gaps.shape[1]] = gaps
        with inference.computing():
            logits = inference.logits(tiled.network, [frames])
        return logits[..., : gaps.shape[0], : gaps.shape[1]]  # removes the padding of a small raster

    for rows, logits in tiled.rows(see, stripe, height=grid.height, first=first):
        (decision,) = decide(
            logits, [(rows.stop - rows.start, stripe.right - stripe.left)], classes=len(job.info.classes),
            wanted=job.wanted,
        )  # fmt: skip
        classes, _, every = decision.arrays()
        columns = slice(stripe.left - stripe.begin, stripe.right - stripe.begin)
        gaps = is_gap[rows.start - begun : rows.stop - begun, columns]
        classes[gaps] = job.nodata
        if every is not None:
            every[:, gaps] = 0 if job.stored == "uint8" else np.nan
        yield rows, classes, every


def _window(sensors: _Sensors, inference: Inference, *, top: int, left: int, size: int) -> tuple[list[Tensor], Mask]:
    """A window for the network, M × (1, 3, h', w'), with sides padded to multiples of 32; and (h, w), where no sensor
    has a measurement."""
    import torch

    frames, gaps = [], np.ones((), bool)
    for modality in inference.modalities:
        frame, invalid = sensors.frame(modality.name, top=top, left=left, size=size)
        height, width = frame.shape[:2]
        missing = np.zeros((height, width), bool) if invalid is None else invalid.all(axis=2)
        gaps = gaps & missing
        below, beside = -height % STRIDE, -width % STRIDE
        tensor = to_tensor(frame, modality, invalid=invalid)
        frames.append(torch.nn.functional.pad(tensor, (0, beside, 0, below))[None])  # zeros are not measurements
    return frames, gaps


def _report(job: RasterJob, sensors: _Sensors, out: Path, device: torch.device) -> dict[str, Any]:
    """The result, read back from the file."""
    from memorysam_cli.engine import runtime

    counts = np.zeros(job.nodata + 1, np.int64)
    header, grid = images.header(out), sensors.grid
    with rasters.windows(out, header) as written:
        for top in range(0, grid.height, 512):
            rows, _ = written.read((0,), top=top, left=0, height=min(512, grid.height - top), width=grid.width)
            counts += np.bincount(rows.ravel(), minlength=len(counts))
    pixels = {name: int(counts[index]) for index, name in enumerate(job.info.classes)}
    gone = int(counts[job.nodata])
    return {
        "schema_version": 1,
        "out": str(out),
        "weights": str(job.weights),
        "weights_sha256": job.weights_sha256,
        "dataset": job.info.name,
        "modalities": [modality.name for modality in job.modalities],
        "sources": sensors.taken(),
        **grid.to_json(),
        **job.view.to_json(size=job.card.image_size),
        **runtime.describe(device, job.precision),
        "pixels": pixels,
        "nodata": {"value": job.nodata, "pixels": gone},
        "laws": check_laws(
            {"height × width = pixels of classes + nodata": (grid.height * grid.width, sum(pixels.values()) + gone)}
        ),
    }
