"""The fusion of docs/extending.md, used alike by training, evaluation, robustness, prediction and exports.

The network has the page's encoder, too: what is exported has both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.fusion import Fusion, Mean, Output, weighted_sum
from memorysam_cli.model.memory import Look, Step, in_turn
from memorysam_cli.model.network import MemorySAM

from .conftest import Ended, Run, blocks, tiny

GRAPH = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from memorysam_cli.engine.weights import portable

def trace(network, shape):
    traceable, frames = portable.Traceable(network, shape.sensors).eval(), torch.zeros(shape.frames)
    with torch.no_grad():
        traceable(frames)  # creates the tables of this size
        portable.graph = make_fx(traceable, tracing_mode="fake", _allow_non_fake_inputs=True)(frames)

portable.trace, portable._write = trace, lambda *_, form: b"graph"
portable._reader = lambda *_, form: lambda frames: [part.numpy() for part in portable.graph(torch.from_numpy(frames))]
"""
"""An export ends with a graph in this process; torch.export and its file take ten times as long."""

ALIKE = """
import json
from pathlib import Path
import cv2, numpy as np, torch
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import scored_scenes
from memorysam_cli.engine.evaluate.counts import confusion, scores
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.engine.weights import portable
from memorysam_cli.model import load
from memorysam_cli.model.fusion import Mean

weights = "later/checkpoints/best.safetensors"
network = load(weights)
assert type(network.fusion).__name__ == "LaterCountsMore" and network.card.recipe.model.fusion == "later"
data = manifests.read(manifests.data_root(None), "deliver")
found = {"encoder": type(network.encoder).__name__}
for name, places in (("all", (0, 1)), ("img", (0,)), ("depth", (1,))):
    total = 0
    scenes, modalities = data.of_split("val"), network.card.modalities
    for scored in scored_scenes(data, scenes=scenes, modalities=modalities, size=64, workers=0):
        seen = scored.resized
        with torch.inference_mode():
            logits = network.logits([seen.frames[place] for place in places])[0]
        label = seen.label[0]
        total += confusion(class_map(logits, height=label.shape[0], width=label.shape[1]), label, network.classes)
    found[name] = scores(total).miou
frames = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(place)) for place in range(2)]
with torch.inference_mode():
    logits = network(frames).logits[:, : network.classes]
    exported = portable.graph(torch.stack(frames, dim=1))[0]
    network.fusion = Mean()
    mean = network(frames).logits[:, : network.classes]
size = float(logits.abs().max())
found |= {"export": float((exported - logits).abs().max()) / size, "mean": float((mean - logits).abs().max()) / size}
print(json.dumps(found))
"""

WRITTEN = """
import torch
from memorysam_cli.model import load
frames = torch.randn(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
network = load("later/checkpoints/best.safetensors")
with torch.inference_mode():
    logits = network(list(frames.unbind(1))).logits[:, : network.classes]
    exported = torch.export.load("later.pt2").module()(frames)[0]
print(float((exported - logits).abs().max() / logits.abs().max()))
"""

MASKS = """
import cv2, torch
from memorysam_cli.registry import add_files
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.loader import scored_scenes
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.model import load

add_files(["my_fusion.py", "my_encoder.py"], where="test")
network = load("later/checkpoints/best.safetensors")
data = manifests.read(manifests.data_root(None), "deliver")
same = total = 0
scenes, modalities = data.of_split("val"), network.card.modalities
for scored in scored_scenes(data, scenes=scenes, modalities=modalities, size=64, workers=0):
    label = scored.resized.label[0]
    with torch.inference_mode():
        logits = network.logits(scored.resized.frames)[0]
    found = class_map(logits, height=72, width=72).numpy()
    mask = cv2.imread(f"masks/masks/{scored.scene.id}.png", cv2.IMREAD_UNCHANGED)
    same, total = same + (mask == found).sum(), total + mask.size
print(same / total)
"""


BEST = "later/checkpoints/best.safetensors"
EXPORT = ["export", BEST, "--format", "torch-export", "--size", "64x64", "--out", "later.pt2", "--json"]


@pytest.fixture(scope="module")
def story(warm: Run) -> dict[str, Ended]:
    """What every command made of it, by the command's name."""
    changes = tiny(
        model__backbone="convnet",
        model__lora__targets="[expand,reduce]",
        model__base_weights="random",
        model__object_gate="false",
        train__max_steps=3,
        optim__warmup_epochs=0,
    )
    jobs = {
        "train": ["--extend", "my_encoder.py", "train", "--recipe", "later.yaml", "--json", "--out", "later", *changes],
        "evaluate": ["evaluate", "--weights", BEST, "--split", "val", "--json", "--workers", 0],
        "robustness": [
            "evaluate",
            "--weights",
            BEST,
            "--split",
            "val",
            "--robustness",
            "any",
            "--json",
            "--workers",
            0,
        ],
        "predict": ["predict", "--weights", BEST, "--split", "val", "--out", "masks", "--json"],
        "graph": ["-c", GRAPH],
        "export": EXPORT,
        "by hand": ["-c", ALIKE],
    }
    return dict(zip(jobs, warm(list(jobs.values())), strict=True))


def test_training_evaluation_and_robustness_give_what_separate_passes_give(story: dict[str, Ended]) -> None:
    for name, ended in story.items():
        assert ended.code == 0, (name, ended.err)
    by_hand = json.loads(story["by hand"].out)
    assert json.loads(story["train"].out)["miou"] == pytest.approx(by_hand["all"], abs=0.02)
    assert json.loads(story["evaluate"].out)["miou"] == pytest.approx(by_hand["all"], abs=0.02)
    sets = {tuple(each["available"]): each["miou"] for each in json.loads(story["robustness"].out)["levels"][0]["sets"]}
    for places, name in ((("img", "depth"), "all"), (("img",), "img"), (("depth",), "depth")):
        assert sets[places] == pytest.approx(by_hand[name], abs=0.02)
    assert json.loads(story["predict"].out)["scenes"] == 2


def test_a_predicted_mask_is_the_network_s_own(story: dict[str, Ended], warm: Run) -> None:
    (ended,) = warm([["-c", MASKS]])
    assert ended.code == 0, ended.err
    assert float(ended.out) > 0.999


def test_an_exported_graph_has_it(story: dict[str, Ended]) -> None:
    by_hand = json.loads(story["by hand"].out)
    assert by_hand["export"] < 1e-4 < 1e-2 < by_hand["mean"]
    assert json.loads(story["export"].out)["relative"] < 1e-4 and by_hand["encoder"] == "ConvNet"


@pytest.mark.slow
def test_a_written_network_has_it(story: dict[str, Ended], warm: Run) -> None:
    files = ["--extend", "my_fusion.py", "--extend", "my_encoder.py"]
    export, written = warm([[*files, *EXPORT, "--overwrite"], ["-c", WRITTEN]])
    assert (export.code, written.code) == (0, 0), (export, written)
    assert json.loads(export.out)["relative"] < 1e-4 and float(written.out) < 1e-4


def test_the_page_s_other_plan_shows_the_first_image_to_all(warm: Run) -> None:
    (block,) = (each for each in blocks("python") if "class FirstIsSeen" in each)
    begin, end = "import sys; sys.path.insert(0, '')\nfrom my_fusion import LaterCountsMore\n", "print({})"
    (ended,) = warm(
        [["-c", begin + block + end.format("[(look.frame, look.sees) for look in FirstIsSeen().plan([0, 2, 3])]")]]
    )
    assert ended == (0, "[(0, ()), (2, (0,)), (3, (0,))]\n", "")


def test_the_recipe_and_the_card_name_it(story: dict[str, Ended], place: Path) -> None:
    text = (place / "later" / "recipe.yaml").read_text()
    assert "fusion: later" in text and "backbone: convnet" in text


class Later(Fusion):
    """The page's, without its registration."""

    def join(self, steps: Sequence[Step]) -> Output:
        total = sum(range(1, len(steps) + 1))
        return weighted_sum(steps, [number / total for number in range(1, len(steps) + 1)])


class Twice(Later):
    """Every frame once in turn, then each again with the memories of all others."""

    def plan(self, places: Sequence[int]) -> list[Look]:
        first = in_turn(places)
        others = [tuple(n for n in range(len(places)) if n != own) for own in range(len(places))]
        return [*first, *(Look(place, sees) for place, sees in zip(places, others, strict=True))]


class Kept(Mean):
    """Keeps the steps that it was given."""

    def join(self, steps: Sequence[Step]) -> Output:
        self.steps = list(steps)
        return super().join(steps)


def network_with(fusion: Fusion | None) -> MemorySAM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MemorySAM(build_sam2("nano", tokens=4), classes=3, object_gate=False, fusion=fusion).eval()


def scene(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(count)]


def test_weights_by_hand() -> None:
    keeper, frames = Kept(), scene()
    with torch.no_grad():
        network_with(keeper)(frames)
        found = network_with(Later())(frames)
    one, two, three = (step.decoded.logits for step in keeper.steps)
    torch.testing.assert_close(found.logits, (one + 2 * two + 3 * three) / 6)
    one, two, three = (step.frame.fine for step in keeper.steps)
    torch.testing.assert_close(found.features, (one + 2 * two + 3 * three) / 6)


def test_equal_weights_are_the_mean_also_where_gates_are_closed() -> None:
    keeper = Kept()
    with torch.no_grad():
        network_with(keeper)(scene())
    steps = keeper.steps
    steps[1].decoded.is_open[0] = 0.0
    for ours, mean in zip(weighted_sum(steps, [1 / 3] * 3), Mean().join(steps), strict=True):
        torch.testing.assert_close(ours, mean)
    assert float(Mean().join(steps).gate_shift[0]) == pytest.approx(-1024 / 3)


@pytest.mark.parametrize("kind", [Later, Twice])
def test_sequences_that_share_their_beginnings_equal_passes_of_their_own(kind: type[Fusion]) -> None:
    model, frames = network_with(kind()), scene()
    subsets = [list(places) for size in (1, 2, 3) for places in combinations(range(3), size)]
    with torch.no_grad():
        found = dict(model.outputs(model.encode(frames), subsets))
        for number, places in enumerate(subsets):
            for ours, alone in zip(found[number], model([frames[place] for place in places]), strict=True):
                torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4)


def test_a_second_look_sees_the_others_and_learns_through_them() -> None:
    model = network_with(Twice()).train()
    frames = [frame.requires_grad_() for frame in scene()]
    steps = dict(model.outputs(model.encode(frames), [[0, 1, 2]]))
    assert steps[0].logits.shape == (2, 4, 16, 16)
    steps[0].logits.square().mean().backward()
    assert all(frame.grad is not None and float(frame.grad.abs().max()) > 0 for frame in frames)


class Impossible(Later):
    def __init__(self, looks: list[Look]) -> None:
        super().__init__()
        self.looks = looks

    def plan(self, places: Sequence[int]) -> list[Look]:
        return self.looks


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([], "gives no look"),
        ([Look(7, ())], "look 0 is at frame 7"),
        ([Look(0, ()), Look(1, (1,))], "look 1 sees"),
        ([Look(0, (-1,))], "earlier looks only"),
    ],
)
def test_an_impossible_plan_is_refused(looks: list[Look], said: str) -> None:
    model, frames = network_with(Impossible(looks)), scene(2)
    with pytest.raises(ValueError, match=said):
        model(frames)
