"""Row 44: recipes that do not say what their author means."""

from __future__ import annotations

from tests.faults.bad_inputs import Arguments, Case, Place

GOOD = """\
data:
  dataset: tiny
  modalities: [img]
  image_size: 64
model:
  backbone: nano
spmm:
  variant: paper
  weight: 1
optim:
  lr: 1e-4
train:
  epochs: 1
"""
LR, EPOCHS = "  lr: 1e-4\n", "  epochs: 1\n"
PART = tuple[str, str, tuple[str, ...]]

WRONG: dict[str, PART] = {
    "text": (LR, '  lr: "abc"\n', (":11: optim.lr: must be a number", '"abc"')),
    "mistyped key": (LR, "  lrr: 1\n", (":11: optim: unknown key 'lrr'", "did you mean 'lr'?")),
    "key twice": (LR, "  lr: 1\n  lr: 2\n", (":12: ", "'lr' is given twice (first on line 11)", "keep one")),
    "object": (LR, '  lr: !!python/object/apply:os.system ["touch evil"]\n', (":11: ", "python/object", "not allowed")),
    "tab": (LR, "\tlr: 1\n", (":11: ", "a tab in the indentation", "use spaces")),
    "3,000 lists": (LR, f"  lr: {'[' * 3000}{']' * 3000}\n", (":11: ", "deeper than 20 levels", "flatter")),
    "batch 0": (EPOCHS, "  epochs: 1\n  batch: 0\n", (":14: train.batch: must be greater than 0 (got 0)",)),
    "99 gpus": (EPOCHS, "  epochs: 1\ngpus: 99\n", (":14: ", "unknown key 'gpus'", "known: name, about, data")),
    "2 MB": (EPOCHS, EPOCHS + "# \n" * 700_000, ("2.1 MB is more than the 1 MB allowed", "check")),
    "aliases": (LR, "  lr: &x 1\n  eps: *x\n", (":11: anchors and aliases", "repeat the value")),
}


def wrong(name: str) -> Case:
    old, new, words = WRONG[name]

    def make(place: Place) -> Arguments:
        place.write("mine.yaml", GOOD.replace(old, new))
        return ["train", "--recipe", "mine.yaml"]

    return Case(44, name, make, 2, words=("mine.yaml", *words))


CASES = [wrong(name) for name in WRONG]
