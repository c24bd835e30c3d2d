"""Counted arithmetic: by hand for each kind of layer, against a real run, and whatever way a network is run in."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memorysam_cli.engine.measure import rates
from memorysam_cli.engine.measure.plain import Plain
from memorysam_cli.engine.measure.rates import Flops
from memorysam_cli.engine.measure.workload import Workload, made_up_batch
from memorysam_cli.model import Segmenter
from memorysam_cli.model.lora import merge_lora

NANO = Workload(backbone="nano", modalities=2, size=64, batch=1, classes=5)


def test_counting_takes_no_memory_whatever_the_size_and_the_network_keeps_its_values(
    network: Segmenter,
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = rates.count_flops(network, backbone="nano", modalities=1, batch=4096, size=16384)  # frames of 13 TB
    assert found.training > found.prediction > 10**15
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        scaled = self.scale * query, self.scale * key
        return F.scaled_dot_product_attention(*scaled, scaled[1])


def count(network: Segmenter, *, batch: int = NANO.batch) -> Flops:
    return rates.count_flops(network, backbone="nano", modalities=NANO.modalities, batch=batch, size=NANO.size)


@pytest.fixture(scope="module")
def built() -> Segmenter:
    return NANO.network(NANO.recipe())


@pytest.fixture
def network(built: Segmenter) -> Segmenter:
    """Of the test's own."""
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def counted(built: Segmenter) -> Flops:
    return count(built)


def test_a_linear_layer_by_hand() -> None:
    tokens, forward = torch.zeros(7, 5), 2 * 7 * 5 * 3
    layer = nn.Linear(5, 3)
    assert rates.count_call_flops(layer, tokens) == Flops(forward, 2 * forward)  # no gradient of the input is asked for
    two = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 5))
    assert rates.count_call_flops(two, tokens) == Flops(2 * forward, 5 * forward)
    two[1].requires_grad_(False)  # its gradient goes through it, and none of its weight
    assert rates.count_call_flops(two, tokens) == Flops(2 * forward, 4 * forward)
    assert rates.count_call_flops(two.requires_grad_(False), tokens) == Flops(2 * forward, 2 * forward)


def test_a_convolution_by_hand() -> None:
    forward = 2 * 4 * (3 * 3 * 2) * 10 * 10  # 4 maps of 10×10 sums of 3×3×2 products
    layer = nn.Conv2d(2, 4, 3, padding=1)
    assert rates.count_call_flops(layer, torch.zeros(1, 2, 10, 10)) == Flops(forward, 2 * forward)


def test_attention_by_hand() -> None:
    forward = 2 * 3 * (2 * 6 * 9 * 4) * 2  # 2×3 heads of 6 queries and 9 keys, twice
    query, key = torch.zeros(2, 3, 6, 4), torch.zeros(2, 3, 9, 4)
    assert rates.count_call_flops(Attention(), query, key) == Flops(forward, 3 * forward)


def test_the_count_is_that_of_a_real_run_in_which_every_product_shows(counted: Flops, network: Segmenter) -> None:
    twin = Plain(network, backbone="nano")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = twin(made_up_batch(NANO.recipe(), classes=5).frames)
        forward = counter.get_total_flops()
        (output.logits.sum() + output.features.sum()).backward()
    assert counted == Flops(forward, counter.get_total_flops())


def test_it_is_proportional_to_the_batch(counted: Flops, network: Segmenter) -> None:
    three = count(network, batch=3)
    # The position embedding's few products are the same for any batch.
    assert three.prediction == pytest.approx(3 * counted.prediction, rel=1e-3)
    assert three.training == pytest.approx(3 * counted.training, rel=1e-3)


def test_it_is_the_same_however_the_network_is_run(counted: Flops, network: Segmenter) -> None:
    assert network.training and not network.saver, "what was counted"
    network.eval().saver = True
    assert count(network) == counted


def test_what_is_frozen_costs_no_backward_pass_and_merged_lora_nothing_at_all(
    counted: Flops, network: Segmenter
) -> None:
    assert 1.5 * counted.prediction < counted.training < 3 * counted.prediction
    merge_lora(network.sam.image_encoder.trunk)
    merged = count(network.requires_grad_(False))
    assert merged.training == merged.prediction < counted.prediction
