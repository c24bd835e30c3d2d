"""The scenes of a job on a Ray cluster: Ray Data hands them to actors that hold the network, and starts lost ones anew.

Actors write the files of their scenes where a single process would; their ledger's lines come back in the order of the
scenes. A scene that is done twice, because an actor was lost, is written twice with the same bytes.
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
"""Scenes that an actor gets at once, at most: what is done again when it is lost."""
TURNS = 64
"""Into so many turns the scenes are parted, at least."""
CPUS = 4
"""Of an actor without a GPU, unless $OMP_NUM_THREADS is set."""
PATIENCE_S = 6 * 3600
"""How long no turn may end: scenes that kill every actor, which Ray starts anew each time, end the work after this."""
STORE_BYTES = 2**28
"""Of a local instance's object store: only names and lines go through it."""


def prepare(job: Job, out: Path, options: RunOptions) -> Make:
    """See that the weights can be loaded; what is returned segments scenes on Ray.

    Raises:
        UsageError: Ray lacks a part.
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
    """Ray, without telemetry, and without warnings of its core about how Ray Data uses it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    return ray


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """The cluster of $RAY_ADDRESS, else a local one that ends with the block; signals stay ours."""
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
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there what befalls its workers; stdout is the answer's
        try:
            yield
        finally:
            ray.shutdown()


def _rows(job: Job, out: Path, options: RunOptions, scenes: Sequence[Scene]) -> Generator[dict[str, str], None, None]:
    """A line for each scene, in order, and the device that made it.

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
    """The device of every actor, and what Ray must give it."""
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
    """Holds the network, and segments the scenes that it is handed; lives in a process of Ray's.

    Args:
        job: what to do, without its scenes.
        out: the output folder, which all machines share.
        options: how.
        device: ``cpu`` or ``cuda``.
        threads: of the computing on a CPU.
        folder: the driver's working folder, which all relative paths start from.
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
        """Segment the scenes of a block; an error is the last of its lines, and not raised: Ray would try again."""
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
    """Make the driver's working folder this process's.

    Raises:
        EnvironmentFault: this machine does not see it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: cannot be entered on {socket.gethostname()} ({error.strerror}); start on storage that all "
            "nodes of the Ray cluster see under the same path"
        ) from error


def _error_line(error: Exception) -> LedgerLine:
    """An error of the user's or the machine's as a line for the driver; a bug is raised."""
    known = error if isinstance(error, MemorySamError) else environment_fault(error)
    if known is None:
        raise error
    return {"code": known.exit_code, "message": str(known)}


def _error_of(line: LedgerLine) -> MemorySamError:
    """What :func:`_error_line` wrote, as an exception of the same class."""
    for each in MemorySamError.__subclasses__():
        if each is not Stopped and each.exit_code == line["code"]:
            return each(line["message"])
    raise AssertionError(f"no exception for {EXIT_CODES.get(line['code'], line['code'])}")


def _text(scenes: Sequence[Scene]) -> str:
    """What actors need of scenes, as text."""
    return documents.to_json([[scene.id, scene.files] for scene in scenes])


def _scenes(texts: Sequence[str]) -> list[Scene]:
    """What :func:`_text` has written."""
    return [
        Scene(name, "", None, None, {key: tuple(paths) for key, paths in files.items()}, None)
        for text in texts
        for name, files in json.loads(text)
    ]


def _threads() -> int:
    """Of the computing of an actor on a CPU; OpenMP's variable may also be a list, of which the first is meant."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) else CPUS
