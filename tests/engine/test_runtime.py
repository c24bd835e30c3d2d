"""Devices and precisions: what is refused, and what is put back."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from memorysam_cli.engine import processes, runtime, surroundings
from memorysam_cli.errors import EnvironmentFault, UsageError

CPU = torch.device("cpu")


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["cpu:", "cpu:0", "cuda:x", "gpu", ""])
def test_what_is_no_device_is_a_wrong_option(name: str) -> None:
    with pytest.raises(UsageError, match="is not a device"):
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
    with pytest.raises(UsageError, match=f"launch {option}: weights are not sharded here"):
        runtime.make_accelerator(CPU, precision="fp32")
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "false")
    assert runtime.make_accelerator(CPU, precision="fp32").num_processes == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        *(
            ({name: text}, f"${name} is '{text}'")
            for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")
            for text in ("a", "-1")
        ),
        ({"WORLD_SIZE": "0"}, "a whole number from 1"),
        ({"LOCAL_WORLD_SIZE": "two"}, "$LOCAL_WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "$RANK is 2, but $WORLD_SIZE 2"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "3"}, "$LOCAL_RANK is 3, but $LOCAL_WORLD_SIZE 2"),
        ({"MASTER_PORT": "65536"}, "from 0 to 65535"),
        ({"ACCELERATE_USE_CPU": "maybe"}, "one of $ACCELERATE_USE_CPU=maybe"),
        ({"PMI_SIZE": "x"}, "one of $PMI_SIZE=x"),
    ],
    ids=str,
)
def test_variables_that_no_launcher_sets_so_are_a_users_fault(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UsageError) as caught:
        runtime.make_accelerator(CPU, precision="fp32")
    assert words in str(caught.value)
    if not {"ACCELERATE_USE_CPU", "PMI_SIZE"} & set(variables):  # those are accelerate's alone
        with pytest.raises(UsageError), processes.side_by_side():
            pass


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


def test_a_process_that_does_not_come_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: object) -> None:
        raise dist.DistStoreError("Timed out after 120 seconds waiting for clients. 1/2 clients joined.\n#0 frames")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runtime, "Accelerator", late)
    with pytest.raises(EnvironmentFault, match=r"not all 2 processes came together \(Timed out .* joined\.\); the ou"):
        runtime.make_accelerator(CPU, precision="fp32")


def test_a_macs_own_random_numbers_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout on MPS draws from them, and an accumulated batch has to draw the same ones twice."""
    place, mps = [torch.tensor([7], dtype=torch.uint8)], torch.device("mps")
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: place[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", place.append)
    states = runtime.rng_state(mps)
    assert torch.equal(states["mps"], place[0]) and "mps" not in runtime.rng_state(CPU)
    runtime.set_rng_state(states, CPU)
    assert len(place) == 1
    runtime.set_rng_state(states, mps)
    assert len(place) == 2 and torch.equal(place[1], place[0])


@pytest.mark.parametrize(
    ("platform", "driver", "kinds"),
    [
        ("linux", "libc.so.6", {"cuda"}),  # any library that opens
        ("linux", "libnosuch.so", set()),
        ("darwin", "libc.so.6", {"mps"}),
        ("win32", "libnosuch.so", {"cuda"}),  # where nobody looks torch must be asked
    ],
)
def test_only_a_device_without_its_driver_is_ruled_out_unasked(
    platform: str, driver: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(surroundings, "_CUDA_DRIVER", driver)
    monkeypatch.setattr(surroundings, "_ROCM", ())
    monkeypatch.setattr(surroundings, "may_have", surroundings.may_have.__wrapped__)
    for kind in ("cpu", "cuda", "mps"):
        assert surroundings.may_have(kind) == (kind == "cpu" or kind in kinds)
        surroundings.refuse_absent_device("cpu")
    if not kinds:
        with pytest.raises(EnvironmentFault, match=r"--device cuda: this machine has 0 cuda devices that PyTorch \d"):
            surroundings.refuse_device("cuda")
        with pytest.raises(UsageError, match="fp16 needs a GPU"):
            surroundings.refuse_device("auto", precision="fp16")
    else:
        surroundings.refuse_device("auto", precision="fp16")


def test_amds_devices_are_called_cuda_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(surroundings, "_CUDA_DRIVER", "libnosuch.so")
    monkeypatch.setattr(surroundings, "_ROCM", (tmp_path,))
    assert surroundings.may_have.__wrapped__("cuda")


def test_torchs_version_is_read_from_its_file_as_torch_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = str(torch.__version__)
    monkeypatch.delitem(sys.modules, "torch")
    assert surroundings.torch_version() == said and "torch" not in sys.modules


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(surroundings.EXTRAS) == set(project["optional-dependencies"]) - {"docs", "dev"}
