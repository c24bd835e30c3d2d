"""``memorysam weights``: show, verify, merge, import, export, fetch and push weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.commands.card import License
from memorysam_cli.commands.options import Json, Quiet, Verbose, begin, must_exist, refuse_taken, weights_must_exist
from memorysam_cli.errors import CheckFailedError, DataError, UsageError, WeightsError, did_you_mean
from memorysam_cli.text import counted, megabytes

if TYPE_CHECKING:
    from memorysam_cli.engine.weights.exchange import ImportedWeights

SCHEMA_VERSION = 1

FILE = "A .safetensors file written by memorysam, or hf://OWNER/NAME[/FILE]."
File = Annotated[Path, typer.Argument(metavar="FILE", help=FILE, callback=weights_must_exist())]
UpstreamFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A .pth of the authors' MemorySAM code, or its .safetensors.",
        callback=must_exist(WeightsError),
    ),
]
TrainedBy = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="How they were trained (else from the file's name).",
        callback=options.recipe_must_exist,
    ),
]
SUFFIXES = (".safetensors", ".pth", ".pt")
"""Suffixes of the formats that are written."""
app = typer.Typer(help="Show, verify, merge, import, export, fetch and push weights.", no_args_is_help=True)
EXAMPLES = {
    "": [
        ("weights info runs/latest/checkpoints/best.safetensors", "what a file contains"),
        ("weights fetch --all", "SAM 2's weights, ahead of time"),
    ],
    "info": [
        ("weights info runs/latest/checkpoints/best.safetensors", "classes, sensors, recipe, result"),
        ("weights info hf://alice/memorysam-demo --json", "from the Hugging Face Hub, for a script"),
    ],
    "verify": [
        ("weights verify best.safetensors", "whether it is intact, and its checksum"),
        ("weights verify best.safetensors || echo 'do not use'", "exit code 10 if not"),
    ],
    "merge": [
        ("weights merge best.safetensors --out full.safetensors", "needs no base weights"),
        (
            "weights merge runs/latest/checkpoints/best.safetensors --out full.safetensors --overwrite",
            "replace an existing file",
        ),
    ],
    "import": [
        ("weights import RGBDEL_epoch95_65.38.pth --out rgbdel.safetensors", "the authors' file"),
        ("weights import RGBD_epoch1_2.0.pth --out rgbd.safetensors --json", "for a script"),
    ],
    "export": [
        ("weights export rgbdel.safetensors --format reference --out rgbdel.pth", "for the authors' code"),
        ("weights export best.safetensors --format merged --out merged.pth", "for plain sam2"),
    ],
    "fetch": [
        ("weights fetch sam2-hiera-base-plus", "one, verified"),
        ("weights fetch --all", "all, while there is a network"),
    ],
    "push": [
        ("weights push alice/memorysam-demo best.safetensors", "what would be sent"),
        ("weights push alice/memorysam-demo best.safetensors --private --yes", "send it"),
    ],
}


def info(file: File, json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show what a weights file contains.

    Classes, modalities, base, recipe and result.
    """
    from memorysam_cli.data.own.sensors import choices
    from memorysam_cli.model import read_card
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    card = read_card(file)
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), **card.model_dump(mode="json")})
        return
    metric = card.metric
    base = f"{card.base.source} (SHA-256 {card.base.sha256[:12]}…)" if card.kind == "trained" else "inside this file"
    if card.base.source.startswith("import:"):
        base += f", imported from {card.base.source.removeprefix('import:')} (SHA-256 {card.base.sha256[:12]}…)"
    when = "" if metric is None else f"epoch {metric.epoch}" if metric.step is None else f"step {metric.step}"
    result = f"mIoU {metric.miou:.2f} on {metric.split} ({metric.protocol}), {when}" if metric else "–"
    rows = {
        "file": f"{file} ({megabytes(file.stat().st_size)}, {card.kind})",
        "recipe": card.recipe.name,
        "data set": f"{card.dataset.title} ({counted(len(card.dataset.classes), 'class')})",
        "modalities": ", ".join(modality.name for modality in card.modalities),
        "backbone": card.recipe.model.backbone,
        "base": base,
        "image size": f"{card.image_size} px",
        "result": result,
        "made with": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    }
    for name, value in rows.items():
        console.say(f"{name:<10}  {value}")
    for sensor in choices(card.dataset, names=[modality.name for modality in card.modalities]):
        console.say(f"sensor      {sensor}")


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=FILE, callback=weights_must_exist(fault=CheckFailedError))
    ],
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check that weights are complete, finite and fit their base.

    Also runs one scene through the model. Exit code 10 if anything is wrong.
    """
    from memorysam_cli.model import read_card
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    try:
        read_card(file)  # a wrong file is reported before the seconds that torch takes
        from memorysam_cli.engine.weights.exchange import verify_weights

        facts = verify_weights(file)
    except WeightsError as error:
        if json:
            console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "ok": False, "reason": str(error)})
        raise CheckFailedError(str(error)) from None
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "ok": True, **facts})
    else:
        console.say(f"ok: {counted(facts['tensors'], 'tensor')} on base {facts['base']}, SHA-256 {facts['sha256']}")


def merge(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The self-contained file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Merge LoRA into the base: one file that needs no base weights."""
    begin(json=json, verbose=verbose, quiet=quiet)
    refuse_taken(out, source=file, overwrite=overwrite)
    from memorysam_cli.model.weights import load, save_merged
    from memorysam_cli.report import console

    digest = save_merged(load(file), out)
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "out": str(out), "sha256": digest})
    else:
        console.say(f"{out} ({megabytes(out.stat().st_size)}, SHA-256 {digest})")


def import_weights(
    file: UpstreamFile,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .safetensors file to write.")],
    recipe: TrainedBy = None,
    modalities: Annotated[
        str | None,
        typer.Option("--modalities", "-m", metavar="A,B", help="In the order of training (else from the name)."),
    ] = None,
    data: Annotated[
        Path | None,
        options.path_option(
            "--data", "-d", metavar="ROOT", help="Take classes and sensors as prepared there.", fault=DataError
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert the authors' weights into a file for all commands.

    Backbone, LoRA rank and class tokens are read from the tensors, modalities and result from the file's name
    (RGBDEL_epoch95_65.38.pth). Options override them.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    names = options.names(modalities)
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: must end in .safetensors")
    options.refuse_taken(out, source=file, overwrite=overwrite)
    from memorysam_cli.engine.weights.exchange import import_reference
    from memorysam_cli.report import console

    summary = import_reference(file, out, recipe=recipe, modalities=names, root=data)
    for line in summary.notes:
        console.note(line)
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "out": str(out), **_facts(summary)})
        return
    card, metric = summary.card, summary.card.metric
    result = f", mIoU {metric.miou:.2f} on {metric.split} (epoch {metric.epoch})" if metric else ""
    in_order = ", ".join(modality.name for modality in card.modalities)
    title, backbone = (
        f"{card.dataset.title} ({counted(len(card.dataset.classes), 'class')})",
        card.recipe.model.backbone,
    )
    console.say(f"{title}, {in_order}; {backbone}{result}")
    console.say(
        f"{out} ({megabytes(out.stat().st_size)}, all {counted(summary.tensors, 'tensor')}, SHA-256 {summary.sha256})"
    )


def _facts(summary: ImportedWeights) -> dict[str, Any]:
    """The values in the JSON answer about imported weights."""
    card, model = summary.card, summary.card.recipe.model
    return {
        "sha256": summary.sha256,
        "tensors": summary.tensors,
        "recipe": card.recipe.name,
        "dataset": card.dataset.name,
        "classes": len(card.dataset.classes),
        "modalities": [modality.name for modality in card.modalities],
        "backbone": model.backbone,
        "lora_rank": model.lora.rank,
        "tokens": card.tokens,
        "metric": card.metric.model_dump(mode="json") if card.metric else None,
        "notes": list(summary.notes),
    }


def export(
    file: File,
    form: Annotated[
        Literal["reference", "peft", "merged"],
        typer.Option("--format", help="The authors' layout, only the LoRA, or plain sam2's names."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="A .pth, .pt or .safetensors; a folder for peft.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it is an existing file.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write weights in a layout that other code reads.

    reference: the upstream MemorySAM code's state dict, to check results with it. peft: the LoRA alone, as an
    adapter folder. merged: a state dict of plain sam2 with LoRA folded in and the decoder's class tokens.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    _refuse_target(out, source=file, is_folder=form == "peft", overwrite=overwrite)
    from memorysam_cli.engine.weights import exchange
    from memorysam_cli.report import console

    summary = exchange.export(file, out, form=form)
    for line in summary.notes:
        console.note(line)
    if json:
        facts = {
            "file": str(file),
            "out": str(out),
            "format": form,
            "tensors": summary.tensors,
            "sha256": summary.sha256,
        }
        console.answer({"schema_version": SCHEMA_VERSION, **facts})
    else:
        console.say(f"{out} ({form}, {counted(summary.tensors, 'tensor')}, SHA-256 {summary.sha256})")


def _refuse_target(out: Path, *, source: Path, is_folder: bool, overwrite: bool) -> None:
    """Refuse a target before anything is read."""
    from memorysam_cli.storage import atomic

    if is_folder:
        if out.suffix in SUFFIXES:
            raise UsageError(f"--out {out}: a PEFT adapter is a folder; give a name without {out.suffix}")
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UsageError(f"--out {out}: exists already; give another folder")
        atomic.refuse_unwritable(out.parent)
        return
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: must end in {', '.join(SUFFIXES)}, which decides the format")
    refuse_taken(out, source=source, overwrite=overwrite)


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Backbones, such as sam2-hiera-base-plus.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are published.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Fetch SAM 2's published weights and check their SHA-256.

    They go to the Hugging Face cache; train does this automatically. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are
    honored. Cached files are verified, not fetched again. A download fails if the server sends nothing for 45 seconds.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.recipe import BACKBONES
    from memorysam_cli.report import console

    published = [name for name in BACKBONES if name != "nano"]
    if bool(names) == every:
        raise UsageError(f"weights fetch: give names or --all{did_you_mean('', published)}")
    for name in names or ():
        if name == "nano":
            raise UsageError("nano: its weights come with memorysam; there is nothing to fetch")
        if name not in published:
            raise UsageError(f"{name}: is not a published backbone{did_you_mean(name, published)}")
    from memorysam_cli.encoders.hiera import PUBLISHED
    from memorysam_cli.storage import hub

    files = []
    for name in published if every else dict.fromkeys(names or ()):
        wanted = PUBLISHED[name]
        path = hub.fetch(wanted.repository, wanted.filename, sha256=wanted.sha256, show_progress=not quiet)
        console.say(f"{name}  {path}  SHA-256 {wanted.sha256}")
        files.append({"name": name, "repository": wanted.repository, "path": str(path), "sha256": wanted.sha256})
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "files": files})


def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub; created if missing.")],
    file: options.WeightsFile,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Send it; without it, only list what would be sent.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    license: License = "apache-2.0",
    with_card: Annotated[
        bool, typer.Option("--card/--no-card", help="Send a README.md as `memorysam card` writes it.")
    ] = True,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace an existing README.md that differs.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Send weights and their model card to the Hugging Face Hub.

    Sends the recipe too, all in one commit. Without --yes it only lists what would be sent, because published files
    stay public. HF_TOKEN (or `hf auth login`), HF_ENDPOINT and HF_HUB_OFFLINE are honored. An existing README.md that
    differs is only replaced on request.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.storage import hub

    hub.refuse_name(repo)
    from memorysam_cli.engine.weights import model_card
    from memorysam_cli.report import console

    upload = model_card.plan(
        repo, file, license=license, with_card=with_card, private=private, replaces_card=replace_card
    )  # fmt: skip
    sizes = model_card.sizes(upload)
    for name, size in sizes.items():
        console.say(f"{name}  {megabytes(size, decimals=2)}")
    url = hub.send(upload, show_progress=not quiet) if yes else None
    if json:
        files = [{"name": name, "bytes": size} for name, size in sizes.items()]
        console.answer(
            {"schema_version": SCHEMA_VERSION, "repo": repo, "file": str(file), "files": files, "sent": yes, "url": url}
        )
    kind = "a private repository" if private else "a public repository, unless it is there and private"
    console.say(f"sent: {url}" if yes else f"not sent; add --yes to send these to {repo} ({kind})")


app.command()(info)
app.command()(verify)
app.command()(merge)
app.command("import")(import_weights)
app.command()(export)
app.command()(fetch)
app.command()(push)
