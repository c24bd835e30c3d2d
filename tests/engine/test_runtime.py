"""Devices and precisions: what is refused, and what is put back."""

from __future__ import annotations

import pytest
import torch

from memorysam_cli.engine import runtime
from memorysam_cli.errors import UsageError

CPU = torch.device("cpu")


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["cpu:", "cpu:0", "cuda:x", "gpu", ""])
def test_what_is_no_device_is_a_wrong_option(name: str) -> None:
    with pytest.raises(UsageError, match="is no device"):
        runtime.choose_device(name)


@pytest.mark.parametrize(("precision", "why"), [("fp16", "fp16 needs a GPU"), ("tf32", "tf32 needs an NVIDIA GPU")])
def test_a_precision_that_the_cpu_lacks_is_refused_and_not_exchanged(precision: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        runtime.make_accelerator(CPU, precision=precision)
    with pytest.raises(UsageError, match=why), runtime.computing(precision, CPU):
        pass


@pytest.mark.parametrize(("variable", "option"), [("FSDP", "--use_fsdp"), ("DEEPSPEED", "--use_deepspeed")])
def test_engines_that_cut_weights_are_refused(variable: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UsageError, match=f"launch {option}: weights are not cut into parts here"):
        runtime.make_accelerator(CPU, precision="fp32")
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "false")
    assert runtime.make_accelerator(CPU, precision="fp32").num_processes == 1


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_computed_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    with runtime.computing(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "tf32"])
def test_tf32_is_for_tf32_only_and_put_back_after_a_fault_too(precision: str) -> None:
    before = flags()
    with pytest.raises(KeyError), runtime.tensor_cores(precision):
        assert flags() == (precision == "tf32",) * 2
        raise KeyError
    assert flags() == before


def test_a_report_says_in_which_precision() -> None:
    assert runtime.describe("cpu")["precision"] == "fp32"
    assert runtime.describe("cpu", "bf16") == {**runtime.describe("cpu"), "precision": "bf16"}
