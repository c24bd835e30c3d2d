"""Make nano's base weights: render, train from noise, export what is SAM2's in bfloat16.

    python scripts/pretrain_nano.py --work .pretrain --out memorysam_cli/model/nano.safetensors

Everything is drawn from seeds. The demo and the tests render with seeds below 1000; this uses 1000.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest, preparation
from memorysam_cli.engine import runtime
from memorysam_cli.engine.train import start
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.model import Segmenter, load
from memorysam_cli.model.network import is_fresh
from memorysam_cli.storage import tensors

RECIPE = Path(__file__).with_suffix(".yaml")
SEED = 1000
OPEN = 10.0


def main(
    work: Annotated[Path, typer.Option(help="Folder for scenes and run; an interrupted run continues.")],
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    scenes: Annotated[int, typer.Option(help="Scenes to render.")] = 2000,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Recipe values to change.")] = None,
) -> None:
    """Render, train, export."""
    data, run_folder = work / "data", work / "run"
    if not (data / "memorysam").is_dir():
        preparation.render_synthetic(data, layout="deliver", scenes=scenes, size=160, seed=SEED)
        preparation.check_and_write(preparation.survey_synthetic(data, layout="deliver"))
    recipe = recipes.load(RECIPE, overrides or [])
    accelerator = runtime.make_accelerator(runtime.choose_device("auto"), precision=recipe.train.precision)
    run_start = start.plan(recipe, out=run_folder, resume=start.AUTO)
    trainer = Trainer(recipe, manifest.read(data, recipe.data.dataset), accelerator=accelerator)
    with start.begin(run_start, accelerator) as run:
        result = trainer.fit(run, resume=run_start.checkpoint)
    export(load(result.best), out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.2f} MB, pre-training mIoU {result.miou:.2f}")


def export(network: Segmenter, out: Path) -> None:
    """Write the parts that a published SAM2 checkpoint would hold, named as there.

    The object-score head learns nothing while the gate is off. SAM2's own says "something is there" of any street
    scene; so does ours, by its bias, and the object gate starts open.
    """
    with torch.no_grad():
        network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].weight.zero_()
        network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(OPEN)
    state = {
        name.removeprefix("sam."): tensor.to(torch.bfloat16)
        for name, tensor in network.state_dict().items()
        if not is_fresh(name)
    }
    card = network.card
    made = {"recipe": card.recipe.model_dump(mode="json"), "data": card.dataset.content_hash, "seed": SEED}
    tensors.write(out, state, {"memorysam-nano": json.dumps(made | {"versions": card.versions})})


if __name__ == "__main__":
    typer.run(main)
