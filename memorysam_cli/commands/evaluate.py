"""``memorysam evaluate``: score weights on a labelled split."""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import CheckFailedError

EXAMPLE = "memorysam evaluate --weights runs/latest/checkpoints/best.safetensors --split test --json"


def evaluate(
    weights: options.Weights = None,
    data: options.Data = None,
    split: options.Split = "val",
    modalities: options.Modalities = None,
    protocol: Annotated[
        Literal["resized", "native"],
        typer.Option(help="Which figures to head the report: the papers' (resized), or those at the labels' own size."),
    ] = "resized",
    min_miou: Annotated[
        float | None,
        typer.Option(min=0, max=100, metavar="PERCENT", help="End with exit code 10 if the mIoU is below this."),
    ] = None,
    out: options.OptionalOut = None,
    device: options.Device = "auto",
    batch: options.Batch = 4,
    workers: options.Workers = 2,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Score weights: IoU, F1 and accuracy per class, condition and failure case, in both protocols.

    The data set is the one that the weights were trained for. Results go to <run>/evaluate/<split>/.
    """
    from memorysam_cli.engine import run_folder

    options.begin(json=json, verbose=verbose, quiet=quiet)
    path = weights or run_folder.default_weights()  # before torch is imported: without weights the answer is instant
    names = options.names(modalities)
    from memorysam_cli.data import manifest
    from memorysam_cli.engine import evaluation, results, runtime
    from memorysam_cli.model import load
    from memorysam_cli.model.weights import read_card
    from memorysam_cli.report import console
    from memorysam_cli.storage import lock

    card = read_card(path)
    chosen = evaluation.choose_modalities(card.modalities, names)
    found = manifest.read(manifest.data_root(data), card.dataset.name)
    evaluation.check_classes(card.dataset, found.info, weights=str(path))
    scenes = found.of_split(split)
    folder = out or results.folder_for(
        path, run=run_folder.run_of(path), split=split, card=card, modalities=chosen
    )  # fmt: skip
    accelerator = runtime.make_accelerator(runtime.choose_device(device), precision="fp32")
    is_main = accelerator.is_main_process
    with lock.hold(folder) if is_main else contextlib.nullcontext():
        model = load(path, device=accelerator.device)
        share = len(scenes[accelerator.process_index :: accelerator.num_processes])
        with console.progress(share if is_main else 0, f"evaluate {split}") as progress:
            outcome = evaluation.evaluate(
                model, found, scenes=scenes, modalities=chosen, image_size=card.image_size, device=accelerator.device,
                batch=batch, workers=workers, accelerator=accelerator, advance=progress.advance,
            )  # fmt: skip
        if not is_main:
            return
        facts = results.facts(card, weights=path, manifest=found, split=split, scenes=len(scenes), modalities=chosen)
        report = results.describe(outcome, protocol=protocol, facts=facts, folder=folder)
        results.write(report, outcome.confusion(protocol), folder)
    results.show(report)
    if json:
        console.answer(report)
    if min_miou is not None and not report["miou"] >= min_miou:
        raise CheckFailedError(
            f"--min-miou {min_miou:g}: the mIoU is {report['miou']:.2f} on {split} ({protocol} protocol)"
        )
