"""Several gloo processes: the losses, gradients, prototypes and counts of one process with all the data."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import processes, runtime
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.objective import draw
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.model import load
from memorysam_cli.model.weights import build_for_training, save
from tests.forks import LIMIT, Forks

from . import two_processes as script

SCRIPT = script.__file__
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
# On a machine with GPUs, too: the processes themselves ask for the CPU.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--num_processes")  # fmt: skip


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIMIT, "300")
        with Forks("tests.engine.two_processes:run") as server:
            yield server


def launch(*arguments: str | Path, cwd: Path, by: tuple[str, ...], forks: Forks) -> None:
    """Run the script in two processes."""
    ended = forks.run(str(cwd), *by, "2", SCRIPT, *map(str, arguments))
    assert ended.code == 0, ended.said


def alone() -> Accelerator:
    return runtime.make_accelerator(torch.device("cpu"), precision="fp32")


def tensors(found: dict[str, Any]) -> dict[str, Tensor]:
    """Nested dictionaries of numbers, lists and tensors as one dictionary of tensors, in double precision."""
    flat: dict[str, Tensor] = {}
    for key, value in found.items():
        inner = tensors(value) if isinstance(value, dict) else {"": torch.as_tensor(value, dtype=torch.float64)}
        flat |= {f"{key} {name}": tensor for name, tensor in inner.items()}
    return flat


def assert_same(found: dict[str, Any], wanted: dict[str, Any], *, relative: float = 1e-5) -> None:
    """Equal up to ``relative`` of each tensor's largest number: a sum's rounding does not shrink with the sum."""
    mine, theirs = tensors(found), tensors(wanted)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        limit = relative * float(tensor.abs().max()) + 1e-9
        torch.testing.assert_close(mine[name], tensor, rtol=relative, atol=limit, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def whole(rendered: Manifest) -> dict[str, Any]:
    """What one process learns from one batch of all scenes."""
    found: dict[str, Any] = script.learned(rendered, alone(), accumulate=1)
    assert found["steps"][-1][1] > 0  # prototypes take part
    return found


@pytest.mark.parametrize("accumulate", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_one_process_in_parts_is_one_batch(accumulate: int, whole: dict[str, Any], rendered: Manifest) -> None:
    assert_same(script.learned(rendered, alone(), accumulate=accumulate), whole)


@pytest.fixture(scope="module")
def found(rendered: Manifest, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes of torchrun learn."""
    folder = tmp_path_factory.mktemp("two")
    launch("learn", rendered.root, folder / "answer.pt", folder / "run", cwd=folder, by=TORCHRUN, forks=forks)
    answer: dict[str, Any] = torch.load(folder / "answer.pt")
    assert answer["world"] == 2
    return answer


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_two_processes_have_the_prototypes_of_one(variant: str, found: dict[str, Any]) -> None:
    wanted = script.prototype_gradient(variant, rank=0, world=1)
    assert wanted["losses"][1] > 0
    assert_same(found["spmm"][variant], wanted)


def test_two_processes_learn_what_one_does_each_in_two_batches(found: dict[str, Any], whole: dict[str, Any]) -> None:
    assert_same(found["accumulated"], whole)


def test_two_processes_learn_what_one_does_of_subsets_and_of_each_sensor(
    found: dict[str, Any], rendered: Manifest
) -> None:
    recipe = script.robust_recipe()
    assert recipe.terms == ("ohem", "spmm", "subset", "single")
    draws = [draw(recipe, script.moment_of(step)) for step in range(3)]
    assert [each[1:] for each in draws] == [((0,), 0.25), ((2, 1), 0.5), ((1,), 0.75)]
    assert_same(found["robust"], script.learned(rendered, alone(), accumulate=1, recipe=recipe, updates=3))


def test_two_processes_run_the_whole_loop(found: dict[str, Any], rendered: Manifest) -> None:
    assert found["steps"] == len(rendered.of_split("train")) // 6
    counted = script.confusions(rendered, load(Path(found["last"])), count=5, batch=1, accelerator=None)
    assert found["confusions"] == counted


def test_hard_pixels_of_each_process_are_its_own_where_the_recipe_says_so(
    found: dict[str, Any], rendered: Manifest
) -> None:
    """As the reference does it; also after a rehearsal in which one process ran out of memory."""
    each = []
    for rank in range(2):
        recipe = script.recipe_of(selection="process")
        learner = Learner(script.network_of(recipe, rendered), recipe, accelerator=alone())
        batches = (script.batches_of(step, rank=rank, world=2, accumulate=1) for step in range(script.UPDATES))
        each.append([learner.learn(batch, rate=0.0).terms["ohem"] for batch in batches])
    mean = torch.tensor(each, dtype=torch.float64).mean(dim=0)
    ohem = torch.tensor(found["each its own"], dtype=torch.float64)[:, 0]
    torch.testing.assert_close(ohem, mean, rtol=1e-6, atol=0)
    together = script.learned(rendered, alone(), accumulate=1, selection="process", rate=0.0)["steps"]
    assert abs(together[0][0] - float(mean[0])) > 1e-3  # the two choices differ here
    savers, loss = found["rehearsed"]
    assert savers == 2
    assert loss == pytest.approx(float(mean[0]), rel=1e-6)


def test_counts_do_not_depend_on_processes_and_batches(rendered: Manifest, tmp_path: Path, forks: Forks) -> None:
    """Also where scenes are fewer than processes, of ``accelerate launch``; what torchrun's count, ``found`` knows."""
    weights = tmp_path / "weights.safetensors"
    save(build_for_training(script.recipe_of(), rendered.info), weights)
    wanted = script.count(rendered, weights, None)
    for number in script.NUMBERS:
        assert wanted[f"{number} 1"] == wanted[f"{number} 2"]
    launch("count", rendered.root, tmp_path / "answer.pt", weights, cwd=tmp_path, by=ACCELERATE, forks=forks)
    assert torch.load(tmp_path / "answer.pt") == {**wanted, "world": 2}


@pytest.mark.slow
def test_the_loss_of_a_process_ends_the_others_with_a_way_on(rendered: Manifest, tmp_path: Path) -> None:
    """Under torchrun itself; block L of the fault suite loses processes at any moment."""
    # It ends the others a tenth of a second later, which a busy machine may not leave them to say a word.
    line = [sys.executable, "-m", *TORCHRUN[:-1], "--monitor-interval", "10", *TORCHRUN[-1:], "2", SCRIPT, "lose"]
    ended = subprocess.run(
        [*line, str(rendered.root), "-", str(tmp_path / "lost")], capture_output=True, text=True, timeout=300,
        check=False, env=os.environ | {"PYTHONPATH": str(Path(SCRIPT).parents[2])},
    )  # fmt: skip
    said = ended.stderr
    assert ended.returncode != 0 and "rank 1 was lost, which its own output may explain (" in said, said
    assert "); this was after step 1; continue with: torchrun --nproc-per-node 2 -m memorysam_cli train " in said
    checkpoint, damaged = checkpoints.newest_valid(tmp_path / "lost" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-00000001" and not damaged


def test_a_process_lost_before_the_first_update_is_noticed_at_once(rendered: Manifest, tmp_path: Path) -> None:
    """As if started one by one, by srun: nobody ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "two.yaml").write_text(script.recipe_of().to_yaml())
    words = (str(port), str(rendered.root), str(tmp_path / "two.yaml"), str(tmp_path / "run"))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Forks("tests.engine.two_processes:leave")) for _ in range(2)]
        pool = stack.enter_context(ThreadPoolExecutor(2))
        ended = list(pool.map(lambda rank: servers[rank].run(rank, *words), range(2)))
    said = [each.said for each in ended]
    assert [each.code for each in ended] == [6, 7], said
    assert "rank 1 failed, which its own output may explain (" in said[0]
    assert "nothing was trained yet; start again" in said[0]
    assert "Traceback" not in said[0] and not (tmp_path / "run").exists()


def test_a_lack_of_memory_is_not_the_loss_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL passes CUDA's words on."""
    here = alone()
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    with pytest.raises(EnvironmentFault, match="another process was lost"), processes.lost_ones_named(here, advice=str):
        raise dist.DistBackendError("NCCL error: remote process exited")
    with pytest.raises(dist.DistBackendError), processes.lost_ones_named(here, advice=str):
        raise dist.DistBackendError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'")


@pytest.mark.parametrize("words", ["no such gloom", "shape mismatch"])
def test_other_faults_stay_what_they_are(words: str) -> None:
    with pytest.raises(RuntimeError, match=words), processes.lost_ones_named(alone(), advice=str):
        raise RuntimeError(words)
