"""The scenes of a job on a Ray cluster: Ray Data passes them to actors that have the network, and replaces lost actors.

Actors write the files of their scenes to the same places as a single process. Their ledger lines return in the order of
the scenes. If an actor is lost, its scenes are written again with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import runtime, surroundings
from memorysam_cli.engine.predict import segment
from memorysam_cli.engine.predict.files import LedgerLine
from memorysam_cli.engine.predict.job import Job, RunOptions, device_name
from memorysam_cli.engine.predict.segment import Make
from memorysam_cli.errors import EXIT_CODES, EnvironmentFault, MemorySamError, Stopped, UsageError, environment_fault
from memorysam_cli.storage import documents

AT_ONCE = {"cpu": 16, "cuda": 256}
"""Largest number of scenes that an actor gets at once; these are repeated if it is lost."""
TURNS = 64
"""The scenes are divided into at least this number of blocks."""
CPUS = 4
"""Cores of an actor without a GPU, unless $OMP_NUM_THREADS is set."""
PATIENCE_S = 6 * 3600
"""Seconds without any finished block, after which the run ends: a scene may kill every actor, which Ray would restart
forever."""
STORE_BYTES = 2**28
"""Bytes of a local instance's object store; only names and lines go through it."""


def prepare(job: Job, out: Path, options: RunOptions) -> Make:
    """Check that the weights can be loaded; returns a function that segments scenes on Ray.

    Raises:
        UsageError: Ray is incomplete.
        WeightsError: the weights are refused.
    """
    try:
        _quiet_import()
    except ImportError as error:
        raise UsageError(f"--engine ray: Ray cannot be used ({error}); pip install 'memorysam[ray]'") from error
    job.load(torch.device("cpu"))

    def make(
        scenes: Sequence[Scene], tell: Callable[[LedgerLine], object], tell_device: Callable[[str], object]
    ) -> None:  # fmt: skip
        with _cluster(), contextlib.closing(_rows(job, out, options, scenes)) as rows:
            for row in rows:
                line = json.loads(row["line"])
                if "code" in line:
                    raise _error_of(line)
                tell_device(row["device"])
                tell(line)

    return make


def _quiet_import() -> Any:
    """Import Ray without telemetry, and without its own warnings about Ray Data."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    return ray


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """The cluster of $RAY_ADDRESS, else a local one that ends with the block; signal handlers stay ours."""
    ray = _quiet_import()
    if ray.is_initialized():  # the caller's own
        yield
        return
    local = {"num_cpus": surroundings.cores(), "object_store_memory": STORE_BYTES, "_node_ip_address": "127.0.0.1"}
    is_local = not os.environ.get("RAY_ADDRESS")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(
            address="local" if is_local else None, include_dashboard=False if is_local else None, log_to_driver=False,
            logging_level=logging.ERROR, configure_logging=True, **(local if is_local else {}),
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "a local Ray instance" if is_local else f"Ray at $RAY_ADDRESS {os.environ['RAY_ADDRESS']}"
        raise EnvironmentFault(f"{where} cannot be reached: {str(error).splitlines()[0]}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints messages of its workers; stdout is for the answer
        try:
            yield
        finally:
            ray.shutdown()


def _rows(job: Job, out: Path, options: RunOptions, scenes: Sequence[Scene]) -> Generator[dict[str, str], None, None]:
    """A line for each scene, in order, and the device that computed it.

    Raises:
        EnvironmentFault: there is no GPU though one was requested, or actors were lost too often.
    """
    ray = _quiet_import()
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayActorError, RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = PATIENCE_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    groups = [{"scenes": _text(scenes[i : i + job.stride])} for i in range(0, len(scenes), job.stride)]
    device, share = _resources(job, options)
    at_once = max(job.stride, min(AT_ONCE[device], len(scenes) // TURNS))
    rows = ray.data.from_items(groups, override_num_blocks=-(-len(scenes) // at_once)).map_batches(
        Actor, batch_size=None, compute=ray.data.ActorPoolStrategy(min_size=1), **share,
        fn_constructor_args=(
            dataclasses.replace(job, scenes=()), out, options, device, int(share["num_cpus"]), str(Path.cwd()),
        ),
    )  # fmt: skip
    try:
        yield from rows.iter_rows()
    except (RayActorError, ExecutionTimeoutError) as error:
        raise EnvironmentFault(
            "Ray's actors are lost again and again, most often because memory runs out; use a smaller --batch, or "
            "machines with more memory"
        ) from error
    except RayError as error:
        known = environment_fault(error.__cause__ or error)
        if known is None:
            raise
        raise known from error


def _resources(job: Job, options: RunOptions) -> tuple[str, dict[str, float]]:
    """The device of every actor, and the resources to request from Ray."""
    ray = _quiet_import()
    total = ray.cluster_resources()
    device = options.device if options.device != "auto" else "cuda" if total.get("GPU", 0) else "cpu"
    if device == "cuda" and not total.get("GPU", 0):
        raise EnvironmentFault("--device cuda: the Ray cluster has no GPU; try --device auto")
    runtime.refuse_precision(job.precision, torch.device(device))
    if device == "cuda":
        return device, {"num_gpus": 1, "num_cpus": 1}
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    return device, {"num_cpus": max(1, min(_threads(), int(largest)))}


class Actor:
    """Has the network and segments scenes, in a process of Ray's.

    Args:
        job: the job, without its scenes.
        out: the output folder, which all machines share.
        options: how to run the job.
        device: ``cpu`` or ``cuda``.
        threads: number of threads on a CPU.
        folder: the driver's working folder, to which all paths are relative.
    """

    def __init__(self, job: Job, out: Path, options: RunOptions, device: str, threads: int, folder: str) -> None:
        self.job, self.out, self.options = job, out, options
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        self.error: LedgerLine | None = None
        try:
            _enter(folder)
            torch.set_num_threads(threads)
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            self.network = job.load(self.device)
        except Exception as error:
            self.error = _error_line(error)

    def __call__(self, groups: dict[str, Any]) -> dict[str, Any]:
        """Segment the scenes of a block. An error is returned as the last line, because Ray would retry if it were
        raised."""
        lines: list[LedgerLine] = []
        if self.error is None:
            try:
                segment.segment_scenes(
                    self.network, self.job.files(self.out), scenes=_scenes(groups["scenes"]), tell=lines.append,
                    inference=self.job.inference(self.device, workers=self.options.workers),
                    skip_bad=self.options.skip_bad, in_threads=True,
                )  # fmt: skip
            except Exception as error:
                lines.append(_error_line(error))
        else:
            lines.append(self.error)
        text = [documents.to_json(line) for line in lines]
        return {"line": np.array(text, object), "device": np.array([device_name(self.device)] * len(text), object)}


def _enter(folder: str) -> None:
    """Change to the driver's working folder.

    Raises:
        EnvironmentFault: it does not exist on this machine.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: cannot be entered on {socket.gethostname()} ({error.strerror}); start on storage that all "
            "nodes of the Ray cluster see under the same path"
        ) from error


def _error_line(error: Exception) -> LedgerLine:
    """An error of the user or the machine as a line for the driver; a bug is raised."""
    known = error if isinstance(error, MemorySamError) else environment_fault(error)
    if known is None:
        raise error
    return {"code": known.exit_code, "message": str(known)}


def _error_of(line: LedgerLine) -> MemorySamError:
    """The exception of a line from :func:`_error_line`."""
    for each in MemorySamError.__subclasses__():
        if each is not Stopped and each.exit_code == line["code"]:
            return each(line["message"])
    raise AssertionError(f"no exception for {EXIT_CODES.get(line['code'], line['code'])}")


def _text(scenes: Sequence[Scene]) -> str:
    """The data of scenes that actors need, as text."""
    return documents.to_json([[scene.id, scene.files] for scene in scenes])


def _scenes(texts: Sequence[str]) -> list[Scene]:
    """The scenes of a text from :func:`_text`."""
    return [
        Scene(name, "", None, None, {key: tuple(paths) for key, paths in files.items()}, None)
        for text in texts
        for name, files in json.loads(text)
    ]


def _threads() -> int:
    """Threads of an actor on a CPU; the first number if OpenMP's variable is a list."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) else CPUS
