"""The examples that end each command's ``--help``: lines that can be copied, and what they are good for."""

from __future__ import annotations

Examples = tuple[tuple[str, str], ...]
"""Command lines without the program's name, and a remark for each."""

_BEST = "runs/latest/checkpoints/best.safetensors"

EXAMPLES: dict[str, Examples] = {
    "": (
        ("demo", "everything in some minutes, on a CPU"),
        ("prepare synthetic ./data", "scenes to try things on"),
        ("train --recipe demo", "then evaluate, predict, report"),
    ),
    "prepare": (
        ("prepare synthetic ./data", "render scenes"),
        ("prepare deliver ./data", "a published data set, unpacked or an archive"),
        ("prepare folder ./data --modality 'rgb=images/*.png' --modality 'depth=depth/*.png'", "sensors of your own"),
    ),
    "prepare synthetic": (
        ("prepare synthetic ./data", "240 scenes in DELIVER's layout"),
        ("prepare synthetic ./data --scenes 60 --size 128", "fewer and smaller ones"),
        ("prepare synthetic ./data --layout mcubes --seed 7", "other worlds, in MCubeS's layout"),
    ),
    "prepare folder": (
        (
            "prepare folder ./data --modality 'rgb=images/*.png' --modality 'depth=depth/*.png' "
            "--labels 'masks/*.png' --classes classes.txt",
            "pairs by name; splits are drawn",
        ),
        (
            "prepare folder ./data --modality 'nir=nir/*.tif' --labels 'masks/*.png' --classes classes.txt "
            "--name field --drop-incomplete",
            "leave out what is incomplete",
        ),
    ),
    "prepare manifest": (
        ("prepare manifest ./data sensors", "accept a manifest that was edited by hand"),
        ("prepare manifest ./data sensors --headers-only", "the same in seconds"),
    ),
    "prepare hha": (
        ("prepare hha ./data --depth 'depth/*.png' --camera 525,525,319.5,239.5", "from 16-bit millimetres"),
        ("prepare hha ./data --depth 'd/*.npy' --camera 525,525,319.5,239.5 --height 1.4", "from metres; height known"),
    ),
    "check": (
        ("check ./data", "all files of what is prepared there, and a sheet of scenes"),
        ("check ./DELIVER --dataset deliver", "before it is prepared"),
        ("check ./data --headers-only --json", "in seconds, for a script"),
    ),
    "plan": (
        ("plan --recipe deliver", "what fits here"),
        ("plan --recipe deliver --gpu-memory 24GB", "what would fit into less"),
        ("plan --recipe mine.yaml --classes 9 --modalities 3", "before there are data"),
    ),
    "train": (
        ("train --recipe demo --set train.epochs=4 --out runs/trial", "a first try"),
        ("train --recipe deliver --batch auto", "what fits, with the recipe's scenes per update"),
        ("train --recipe deliver --resume auto", "go on after a kill; for queues that start again"),
        ("train --recipe deliver --track tensorboard", "with a dashboard"),
    ),
    "watch": (
        ("watch", "the newest run, until it ends"),
        ("watch runs/deliver-20261101-120000-ab12 --once", "one look at another"),
        ("watch --json", "for a script"),
    ),
    "evaluate": (
        ("evaluate", "the best weights of the newest run, on val"),
        (f"evaluate --weights {_BEST} --split test --json", "for a script"),
        ("evaluate --modalities img,depth --tta", "fewer sensors, more views"),
        ("evaluate --robustness any", "all subsets of the sensors"),
    ),
    "predict": (
        ("predict ./photos --out ./masks --map img=rgb --color --overlay", "folders img/ and depth/ of one's own"),
        ("predict ./data --out ./masks --split test --confidence", "a prepared data set"),
        ("predict ./data --out ./masks --shard 0/4 --on-error skip", "one of four parts; list what is unreadable"),
    ),
    "report": (
        ("report --open", "the newest run, in the browser"),
        ("report runs/latest/evaluate/val --out val.html", "an evaluation, as an artefact"),
        ("report runs/a runs/b", "two runs, class by class"),
        ("report ./masks", "a prediction"),
    ),
    "demo": (
        ("demo", "into ./demo"),
        ("demo --out /tmp/demo --scenes 60", "quicker"),
    ),
    "recipes": (
        ("recipes list", "those that come with memorysam"),
        ("recipes copy deliver mine.yaml", "one of your own"),
    ),
    "recipes list": (
        ("recipes list", "with what they reached"),
        ("recipes list --json", "for a script"),
    ),
    "recipes show": (
        ("recipes show deliver", "every value"),
        ("recipes show deliver --set train.epochs=50", "with a change"),
    ),
    "recipes copy": (
        ("recipes copy deliver mine.yaml", "extends deliver, with each key explained"),
        ("recipes copy deliver mine.yaml --set train.epochs=50", "with a change"),
    ),
    "recipes check": (
        ("recipes check mine.yaml", "ok, or what is wrong"),
        ("recipes check mine.yaml --set optim.lr=1e-4", "with a change"),
    ),
    "recipes diff": (
        ("recipes diff deliver deliver-rgbd", "two that come with memorysam"),
        ("recipes diff deliver runs/latest/recipe.yaml", "what a run changed"),
    ),
    "recipes schema": (
        ("recipes schema", "JSON Schema, for editors"),
        ("recipes schema > recipe.schema.json", "as a file"),
    ),
    "weights": (
        (f"weights info {_BEST}", "what a file is"),
        ("weights fetch --all", "SAM 2's weights, ahead of time"),
    ),
    "weights info": (
        (f"weights info {_BEST}", "classes, sensors, recipe, result"),
        ("weights info best.safetensors --json", "for a script"),
    ),
    "weights verify": (
        ("weights verify best.safetensors", "whole, and what its seal says"),
        ("weights verify best.safetensors || echo 'do not use'", "exit code 10 if not"),
    ),
    "weights merge": (
        ("weights merge best.safetensors --out full.safetensors", "needs no base any more"),
        (f"weights merge {_BEST} --out full.safetensors --overwrite", "anew"),
    ),
    "weights import": (
        ("weights import RGBDEL_epoch95_65.38.pth --out rgbdel.safetensors", "the authors' file"),
        ("weights import RGBD_epoch1_2.0.pth --out rgbd.safetensors --json", "for a script"),
    ),
    "weights export": (
        ("weights export rgbdel.safetensors --format reference --out rgbdel.pth", "for the authors' code"),
        ("weights export best.safetensors --format merged --out merged.pth", "for sam2 as it is"),
    ),
    "weights fetch": (
        ("weights fetch sam2-hiera-base-plus", "one, verified"),
        ("weights fetch --all", "all, before the network is gone"),
    ),
    "weights push": (
        ("weights push alice/memorysam-demo best.safetensors", "what would be sent"),
        ("weights push alice/memorysam-demo best.safetensors --private --yes", "send it"),
    ),
    "export": (
        (f"export {_BEST} --format onnx --out model.onnx", "for onnxruntime"),
        (
            "export best.safetensors --format torch-export --size 384x640 --modalities img,depth",
            "for torch, two sensors",
        ),
    ),
    "card": (
        (f"card {_BEST}", "read it"),
        (f"card {_BEST} --out README.md", "for the Hub"),
    ),
    "bench": (
        ("bench --backbone nano --size 128 --batch 1 --against plain", "against the reference's way"),
        ("bench --backbone base+ --device cuda --precision bf16", "on a GPU"),
    ),
    "doctor": (
        ("doctor", "ok, warning or problem, and what to do"),
        ("doctor --json", "for a bug report"),
    ),
}
"""A command's words → its examples; data sets that have none here are told by :func:`of` itself."""


def of(command: str) -> Examples:
    """The examples of a command, such as ``weights info``; of a published data set, those of all such."""
    if command in EXAMPLES:
        return EXAMPLES[command]
    group, _, name = command.partition(" ")
    if group != "prepare":
        return ()
    return (
        (f"prepare {name} ./data", "unpacked in or below ./data"),
        (f"prepare {name} ./{name}.zip", "the archive is unpacked beside it"),
        (f"prepare {name} ./data --drop-incomplete", "leave out scenes with problems, and list them"),
    )


def epilog(command: str) -> str | None:
    """The end of a command's help; ``\\b``: lines stay as they are, so that they can be copied."""
    lines = [f"  memorysam {line}\n      {remark}" for line, remark in of(command)]
    return "\n".join(["\b", "Examples:", *lines]) if lines else None
