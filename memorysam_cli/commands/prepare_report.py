"""The last steps of every ``memorysam prepare``: check, write, and print the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.text import command, shown, typed

if TYPE_CHECKING:
    from memorysam_cli.data.findings import CheckReport, StoredForm
    from memorysam_cli.data.manifest import Manifest
    from memorysam_cli.data.own.folder import FolderRequest, FolderSurvey
    from memorysam_cli.data.own.proposal import Proposal
    from memorysam_cli.dataset import DatasetInfo
    from memorysam_cli.errors import Laws

BARS, BAR_LENGTH = 8, 30
"""Largest number of rows of a histogram, and width of the longest row."""
SHEET = "proposal.png"
"""File in the manifest's folder: pictures of scenes as they were interpreted."""


def check_and_write(
    found: Manifest,
    *,
    json: bool,
    drop_incomplete: bool = False,
    headers_only: bool = False,
    max_pixels: int | None = None,
    measure: Callable[[Manifest], DatasetInfo] | None = None,
    notes: Sequence[str] = (),
    laws: Laws | None = None,
    accepts_edits: bool = False,
    shows_choices: bool = False,
) -> None:
    """Check, write, and print the results; problems end with exit code 3, or 4 if their scenes are left out.

    Args:
        found: a listed data set.
        json: print the JSON object.
        drop_incomplete, headers_only, max_pixels: as the options.
        measure: called with the data set; returns the data set to write.
        notes: assumptions made in listing it; printed here.
        laws: laws checked in listing it.
        accepts_edits: it was read from the files that are now replaced.
        shows_choices: print how each sensor's values are interpreted.
    """
    from memorysam_cli.data import preparation
    from memorysam_cli.data.own.sensors import notes_on_bands
    from memorysam_cli.report import console

    notes = [*notes, *notes_on_bands(found)]
    for line in notes:
        console.note(line)
    with console.progress(len(found.scenes), "check") as bar:
        prepared = preparation.check_and_write(
            found,
            drop_incomplete=drop_incomplete,
            headers_only=headers_only,
            max_pixels=max_pixels,
            measure=measure,
            notes=notes,
            laws=laws,
            accepts_edits=accepts_edits,
            advance=bar.advance,
        )
    show(prepared.report)
    if shows_choices and prepared.info is not None:
        from memorysam_cli.data.own.sensors import choices

        for line in choices(prepared.info):
            console.say(f"sensor      {line}")
    if prepared.manifest is not None:
        console.say(f"manifest    {prepared.manifest}")
        _show_root(prepared.manifest.parent.parent)
    if json:
        console.answer(prepared.to_json())
    fault = prepared.fault()
    if fault is not None:
        raise fault


def show_proposal(proposal: Proposal, root: Path) -> None:
    """Print a proposal, a row per sensor; the check reports unreadable files."""
    from memorysam_cli.data.own.proposal import LABELS
    from memorysam_cli.data.own.sensors import told_kinds
    from memorysam_cli.report import console
    from memorysam_cli.storage import images

    rows = []
    for name, files in proposal.files.items():
        try:
            head = images.header(root / files[0])
            values = "indices" if head.has_palette and name == LABELS else f"{head.channels} × {head.dtype}"
            form = f"{head.height}×{head.width}, {values}"
        except DataError:
            form = "cannot be read"
        kind = "" if name == LABELS else proposal.kinds.get(name) or told_kinds(name)[0]
        pattern = proposal.labels if name == LABELS else proposal.modalities[name]
        rows.append([name, kind, len(files), form, pattern, files[0]])
    console.table(["sensor", "kind", "files", "height × width", "pattern", "first file"], rows, title="Proposal")
    for line in proposal.notes:
        console.note(line)


def surveyed(root: Path, request: FolderRequest) -> tuple[FolderSurvey, list[str]]:
    """List the scenes of a proposal, by the nearest times if the files' names have different times.

    Args:
        root: the data root.
        request: the proposal's patterns, to be paired by name.

    Returns:
        The scenes; and the options that pair them, none for pairing by name.

    Raises:
        DataError: as :func:`~memorysam_cli.data.own.folder.survey`.
        UsageError: as that function.
    """
    from memorysam_cli.data.own.folder import PAIR_BY_TIME, TOLERANCE_NS, TimesDifferError, survey

    try:
        return survey(root, request), []
    except TimesDifferError:
        found = survey(root, replace(request, pair="nearest", tolerance_ns=TOLERANCE_NS))
    return found, [word for option in PAIR_BY_TIME.items() for word in option]


def agree(proposal: Proposal, found: FolderSurvey, typed_words: Sequence[str], *, is_agreed: bool, json: bool) -> None:
    """Print a proposal's scenes, and continue only with ``--yes`` or a typed yes.

    Args:
        proposal: of the tree.
        found: its scenes.
        typed_words: the options for the same result.
        is_agreed: ``--yes`` was given.
        json: print the JSON object.

    Raises:
        UsageError: nobody agreed; the command is printed before.
    """
    from memorysam_cli.data import manifest as manifests
    from memorysam_cli.data.check import draw_sheet
    from memorysam_cli.data.own.proposal import LABELS
    from memorysam_cli.report import console

    root = found.manifest.root
    sheet = manifests.folder(root, found.manifest.info.name) / SHEET
    is_drawn = draw_sheet(found.manifest, sheet)
    if is_drawn:
        console.say(f"pictures    {sheet}")
    if is_agreed:
        return
    splits = ", ".join(f"{split} {count}" for split, count in manifests.count_splits(found.manifest.scenes).items())
    console.say(f"scenes      {len(found.manifest.scenes)} ({splits})")
    line = command("prepare", "folder", root, *typed_words)
    for note in found.notes:
        console.note(note)
    console.say(f"to type     {line}")
    if json:
        console.answer({
            "schema_version": 1, "dataset": found.manifest.info.name, "root": str(root.absolute()), "manifest": None,
            "proposal": {
                "modalities": proposal.modalities, "labels": proposal.labels, "files": {
                    "labels" if name == LABELS else name: len(files) for name, files in proposal.files.items()
                },
                "scenes": len(found.manifest.scenes), "command": line, "sheet": str(sheet) if is_drawn else None,
            },
        })  # fmt: skip
    elif console.asks("Write this? Type yes or no: "):
        return
    raise UsageError(f"{shown(root)}: nothing is prepared yet; add --yes, or edit and run the command above")


def measuring(
    *, max_pixels: int | None, normalize: bool, names: Sequence[str] | None = None
) -> Callable[[Manifest], DatasetInfo]:
    """The function behind ``--measure``: it adds the training split's statistics to a data set.

    Args:
        max_pixels: as the option.
        names: of the sensors to measure; None: all.
        normalize: whether to normalize its sensors by them; published data sets keep the papers' normalization.
    """

    def measure(found: Manifest) -> DatasetInfo:
        from memorysam_cli.data import statistics
        from memorysam_cli.report import console

        with console.progress(len(statistics.measured_scenes(found)), "measure") as bar:
            values = statistics.measure(found, names=names, max_pixels=max_pixels, advance=bar.advance)
        return statistics.with_statistics(found.info, values, normalize=normalize)

    return measure


def show(report: CheckReport) -> None:
    """Print problems and remarks on stderr; scenes, files and class frequencies on stdout."""
    from memorysam_cli.report import console

    for problem in report.problems:
        console.warn(f"{problem.kind} ({problem.heading}):")
        for line in problem.first:
            console.warn(f"  {line}")
    for line in report.remarks:
        console.note(line)
    for line in report.warnings:
        console.warn(line)
    if report.strays is not None:
        for line in report.strays.first:
            console.detail(f"  belongs to no scene: {line}")
    _show_scenes(report)
    _show_files(report)
    _show_classes(report)
    _show_offsets(report)
    splits = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    console.say(f"scenes      {len(report.scenes)} ({splits})")
    console.say(f"modalities  {', '.join(report.modalities)}")


def _show_offsets(report: CheckReport) -> None:
    """Print how far apart in time the files of a scene are, as a text histogram per sensor."""
    from memorysam_cli.report import console

    for name, found in report.offsets.items():
        low, high = min(found), max(found)
        width = max(1, -(-(high - low + 1) // BARS))
        counts = [0] * max(1, -(-(high - low + 1) // width))
        for each in found:
            counts[(each - low) // width] += 1
        ends = [f"{(low + width * index) / 1e6:.3g}" for index in range(len(counts) + 1)]
        rows = [
            [
                f"{ends[index]} to {ends[index + 1]}" if high > low else ends[0],
                count,
                "█" * -(-BAR_LENGTH * count // most),
            ]
            for most in [max(counts)]
            for index, count in enumerate(counts)
        ]
        title = f"{report.dataset}: '{name}' behind '{report.modalities[0]}'"
        console.table(["ms", "scenes", ""], rows, title=title)


def _show_root(root: Path) -> None:
    """Print how other commands find a data set outside the default folder."""
    from memorysam_cli.data.manifest import data_root
    from memorysam_cli.report import console

    if root.absolute() != data_root(None).absolute():
        console.note(f"train and evaluate find it with --data {typed(root)}, or MEMORYSAM_DATA set to that")


def _show_scenes(report: CheckReport) -> None:
    """Print scenes per split, besides the published and the left-out numbers."""
    from memorysam_cli.data.manifest import split_rank
    from memorysam_cli.report import console

    if not report.published and not report.dropped:
        return
    left_out = [dropped.scene.split for dropped in report.dropped]
    splits = sorted({*report.splits, *report.published, *left_out}, key=split_rank)
    counts = [[split, report.splits.get(split, 0), report.published.get(split, "-")] for split in splits]
    if left_out:
        counts = [[*row, left_out.count(str(row[0]))] for row in counts]
    columns = ["split", "scenes", "published", *["left out"] * bool(left_out)]
    console.table(columns, counts, title=f"{report.dataset}: scenes")


def _show_files(report: CheckReport) -> None:
    """Print how each modality's files are stored."""
    from memorysam_cli.report import console

    console.table(
        ["modality", "stored as", "channels", "scenes", "low", "high", "invalid %"],
        [[name, *_form(form)] for name, forms in report.stored.items() for form in forms],
        title=f"{report.dataset}: files",
    )


def _form(form: StoredForm) -> list[str]:
    """The cells of one form of files."""
    ends = ["-" if end is None else f"{end:.6g}" for end in (form.low, form.high)]
    invalid = f"{100 * form.invalid / form.pixels:.2f}" if form.invalid else "-"
    return [form.dtype, str(form.channels), str(form.scenes), *ends, invalid]


def _show_classes(report: CheckReport) -> None:
    """Print the share of each class in each split."""
    from memorysam_cli.report import console

    totals = {split: sum(counts) for split, counts in report.pixels.items()}
    labeled = {split: total for split, total in totals.items() if total}
    if not labeled:
        return
    shares = [
        [f"{100 * report.pixels[split][row] / total:.3f}" for split, total in labeled.items()]
        for row in range(len(report.classes) + 1)
    ]
    console.table(
        ["class", *(f"{split} %" for split in labeled)],
        [[name, *row] for name, row in zip((*report.classes, "(ignored)"), shares, strict=True)],
        title=f"{report.dataset}: share of the labeled pixels",
    )
