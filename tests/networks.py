"""Networks of nano as ``memorysam_cli.model.weights.build`` makes them, each kind built once and then copied.

For tests whose matter is not how a network is built. They build hundreds, a tenth of a second each: most of what
loading small weights takes.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from memorysam_cli.model import WeightsCard, weights
from memorysam_cli.model.weights import Segmenter, Undrawn

Build = Callable[[WeightsCard], Segmenter]
KEPT = 16
"""Networks of 14 MB each."""
PLAIN = (bool, int, float, str, type(None))


def copied(network: Segmenter) -> Segmenter:
    """As :func:`copy.deepcopy`, which takes ten times as long."""
    memo: dict[int, Any] = {id(module): object.__new__(type(module)) for module in network.modules()}
    with torch._C.DisableTorchFunction():
        for tensor in itertools.chain(network.parameters(), network.buffers()):
            twin = tensor.detach().clone()
            is_trained = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_trained else twin
        for module in network.modules():
            memo[id(module)].__dict__.update({
                name: value if isinstance(value, PLAIN)
                else type(value)() if type(value) in (dict, OrderedDict, set) and not value
                else copy.deepcopy(value, memo)
                for name, value in module.__dict__.items()
            })  # fmt: skip
    found: Segmenter = memo[id(network)]
    return found


def built_once(honest: Build) -> Build:
    """Stands in for ``build``, whose result depends on nothing but the card: the recipe has the seed."""
    known: dict[str, Segmenter] = {}

    @functools.wraps(honest)
    def build(card: WeightsCard) -> Segmenter:
        modes, recipe = [type(mode) for mode in _get_current_function_mode_stack()], card.recipe
        if recipe.model.backbone != "nano" or modes not in ([], [Undrawn]) or torch.is_inference_mode_enabled():
            return honest(card)
        classes, seed = len(card.dataset.classes), recipe.train.seed
        key = repr((modes or seed, recipe.model, recipe.data.modalities, card.tokens, classes))
        if key not in known:
            network = honest(card)
            if not type(network.fusion).__module__.startswith("memorysam_cli."):
                return network  # a test's own: the next one may give the same name to another
            known[key] = network
            while len(known) > KEPT:
                del known[next(iter(known))]
        found = copied(known[key])
        found.card = card
        return found

    return build


BUILD = built_once(weights.build)


@pytest.fixture(scope="module", autouse=True)
def networks_built_once() -> Iterator[None]:
    """For all tests of a folder whose ``conftest.py`` imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "build", BUILD)
        yield
