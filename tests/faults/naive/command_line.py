"""A program as most are written: it reads what it is given, trusts it, and lets Python say what went wrong.

It takes the command lines of ours, those of them that the fault suite sends it.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path


def prepare(what: list[str], _options: argparse.Namespace) -> None:
    name, root = what
    if name == "synthetic":
        Path(root).mkdir()
        return
    folder = Path(root)
    if folder.suffix == ".zip":
        folder = folder.with_suffix("")
        zipfile.ZipFile(root).extractall(folder)
    import cv2

    for path in sorted(folder.rglob("*.png")):
        picture = cv2.imread(str(path))
        print(f"{path}: {picture.shape}")


def weights(what: list[str], options: argparse.Namespace) -> None:
    import torch

    state = torch.load(what[1], weights_only=False)
    torch.save(state, options.out)


def train(_what: list[str], options: argparse.Namespace) -> None:
    import yaml

    recipe = yaml.safe_load(Path(options.recipe).read_text())
    lr = recipe["optim"].get("lr", 1e-4)
    print(f"training for {recipe['train']['epochs']} epochs with lr {lr}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["prepare", "weights", "train"])
    parser.add_argument("what", nargs="*")
    parser.add_argument("--recipe")
    parser.add_argument("--out")
    options = parser.parse_args()
    {"prepare": prepare, "weights": weights, "train": train}[options.command](options.what, options)


if __name__ == "__main__":
    main()
