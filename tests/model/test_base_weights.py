"""Base weights are loaded completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from memorysam_cli.encoders.hiera import NANO_FILE, PUBLISHED
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import base_weights
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.base_weights import base_shapes, load_base
from memorysam_cli.model.network import MemorySAM, is_fresh
from memorysam_cli.recipe import BACKBONES


def network_of(backbone: str = "nano", *, tokens: int = 5) -> MemorySAM:
    return MemorySAM(build_sam2(backbone, tokens=tokens), classes=tokens)


def published_state() -> dict[str, Tensor]:
    """What a file for nano holds: a network with SAM2's own three masks."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return dict(build_sam2("nano", tokens=3).state_dict())


def halves(backbone: str) -> dict[str, Tensor]:
    """What a file for a large backbone must hold, of one value: random ones take a second."""
    return {name: torch.full(shape, 0.5) for name, shape in base_shapes(backbone).items()}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """What a file for nano holds; the tensors are not to be written to."""
    return published_state()


@pytest.fixture(scope="module")
def untouched() -> MemorySAM:
    """A network into which nothing is ever loaded."""
    return network_of()


def write(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def test_everything_but_the_fresh_parts_comes_from_the_file(tmp_path: Path) -> None:
    state = published_state()
    path = write({"model": state}, tmp_path / "base.pt")
    network = network_of()
    fresh_before = {n: t.clone() for n, t in network.state_dict().items() if is_fresh(n)}
    base = load_base(network, "nano", source=str(path), seed=0)
    assert base.source == f"file:{path.resolve()}" and len(base.sha256) == 64
    for name, tensor in network.state_dict().items():
        wanted = fresh_before[name] if is_fresh(name) else state[name.removeprefix("sam.")]
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)


MUTATIONS = {
    "missing": (lambda s: s.pop("no_mem_embed"), "missing (no_mem_embed)"),
    "extra": (lambda s: s.update({"surprise": torch.zeros(1)}), "unknown (surprise)"),
    "transposed": (
        lambda s: s.update({"image_encoder.trunk.blocks.0.mlp.layers.0.weight": torch.zeros(32, 128)}),
        "is (32, 128), not (128, 32)",
    ),
    "prefixed": (lambda s: [s.update({f"module.{k}": s.pop(k)}) for k in list(s)], "its names begin with 'module.'"),
    "nearly empty": (lambda s: [s.pop(k) for k in list(s)[3:]], "3 of"),
    "of something else": (
        lambda s: [s.pop(k) for k in list(s)] and s.update(fc=torch.ones(1)),
        "look like any of SAM 2's",
    ),
    "whole numbers": (lambda s: s.update(no_mem_embed=s["no_mem_embed"].long()), "torch.int64, not torch.float32"),
    "with LoRA": (lambda s: s.update({"a.linear_a_q.weight": torch.ones(1)}), "memorysam weights import"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_file_that_does_not_fit_is_refused_by_name_and_nothing_is_loaded(
    mutation: str, published: dict[str, Tensor], untouched: MemorySAM, tmp_path: Path
) -> None:
    change, said = MUTATIONS[mutation]
    state, network = dict(published), untouched
    change(state)
    path = write({"model": state}, tmp_path / "base.pt")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError) as fault:
        load_base(network, "nano", source=str(path), seed=0)
    assert said in str(fault.value) and "\n" not in str(fault.value)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_weights_of_another_variant_are_refused(tmp_path: Path) -> None:
    path = write({"model": halves("sam2.1-hiera-tiny")}, tmp_path / "base.pt")
    with pytest.raises(WeightsError, match=r"weights of sam2-hiera-tiny: .* this looks like sam2\.1-hiera-tiny;"):
        load_base(network_of("sam2-hiera-tiny"), "sam2-hiera-tiny", source=str(path), seed=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_shapes_that_are_wanted_are_those_of_the_network(backbone: str) -> None:
    assert max(BACKBONES, key=lambda name: base_weights.fitting(base_shapes(backbone), base_shapes(name))) == backbone
    if backbone == "nano":
        wanted = {n.removeprefix("sam."): t for n, t in network_of().state_dict().items() if not is_fresh(n)}
        assert base_shapes("nano") == base_weights.shapes_of(wanted)


def test_a_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a file"):
        load_base(network_of(), "nano", source=str(tmp_path / "none.pt"), seed=0)


def test_every_published_backbone_has_its_repository_file_and_sum() -> None:
    assert set(PUBLISHED) == set(BACKBONES) - {"nano"}
    entry = PUBLISHED["sam2.1-hiera-base-plus"]
    assert (entry.repository, entry.filename) == ("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt")
    assert len({published.sha256 for published in PUBLISHED.values()}) == 8


def test_published_weights_are_asked_of_the_hub_with_their_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = halves("sam2-hiera-tiny")
    path = write({"model": state}, tmp_path / "sam2_hiera_tiny.pt")
    asked: list[tuple[str, str, str]] = []

    def fetch(repository: str, filename: str, *, sha256: str) -> Path:
        asked.append((repository, filename, sha256))
        return path

    monkeypatch.setattr(base_weights.hub, "fetch", fetch)
    network = network_of("sam2-hiera-tiny")
    base = load_base(network, "sam2-hiera-tiny", source="published", seed=0)
    entry = PUBLISHED["sam2-hiera-tiny"]
    assert asked == [(entry.repository, entry.filename, entry.sha256)]
    assert base.source == "hub:facebook/sam2-hiera-tiny/sam2_hiera_tiny.pt"
    torch.testing.assert_close(network.sam.no_mem_embed.detach(), state["no_mem_embed"], rtol=0, atol=0)


def test_nano_comes_from_the_package_and_its_gate_starts_open() -> None:
    network = network_of()
    base = load_base(network, "nano", source="published", seed=0)
    assert base.source == "package"
    assert NANO_FILE.stat().st_size <= 6_000_000
    with torch.no_grad():
        assert float(network([torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)]).gate_shift.abs().max()) == 0
