"""``memorysam train --batch auto``: the plan of one process, told to all."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.planning import search, targets
from memorysam_cli.engine.planning.candidates import Candidate
from memorysam_cli.engine.training import starting
from memorysam_cli.errors import MemorySamError
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console

BEAT = 5.0
"""Seconds between two words of the planning process to the others, whose patience with it is limited."""

Answer = TypeVar("Answer")


def settle(planned: starting.RunStart, manifest: Manifest, *, accelerator: Accelerator) -> starting.RunStart:
    """Let what fits decide the batch of a training that is about to begin.

    A run that is continued keeps its own batch, so that one line can start and continue it.

    Args:
        planned: of :func:`memorysam_cli.engine.training.starting.plan`.
        manifest: the data set.
        accelerator: every process gets the answer of the main one.

    Raises:
        EnvironmentFault: nothing fits.
    """
    recipe = planned.recipe
    if planned.run is not None:
        own = recipes.load(planned.run.path / run_folder.RECIPE, is_stored=True).train
        saver = own.saver if recipe.train.saver == "auto" else recipe.train.saver
        kept = {"batch": own.batch, "accumulate": own.accumulate, "saver": saver}
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=kept)})
        note = f"--batch auto: the run keeps its batch {own.batch} × {own.accumulate} accumulated"
        return dataclasses.replace(planned, recipe=recipe, notes=(*planned.notes, note))
    chosen = told_by_main(lambda: _choose(recipe, manifest, accelerator), accelerator)
    return dataclasses.replace(planned, recipe=chosen.apply(recipe))


def told_by_main(work: Callable[[], Answer], accelerator: Accelerator) -> Answer:
    """What the main process works out, in all processes; its ``MemorySamError`` is everybody's."""
    if accelerator.num_processes == 1:
        return work()
    future: Future[Answer] = Future()
    if accelerator.is_main_process:
        # A daemon: Ctrl-C must not wait for it. The others hear from the main thread meanwhile: no collective may wait
        # longer than its timeout, and a plan may take that long.
        threading.Thread(target=_fulfil, args=(future, work), daemon=True).start()
    while True:
        word = [_word(future, accelerator)]
        broadcast_object_list(word)
        is_over, answer = word[0]
        if not is_over:
            continue
        if isinstance(answer, MemorySamError):
            raise answer
        return answer  # type: ignore[return-value]


def _word(future: Future[Answer], accelerator: Accelerator) -> tuple[bool, Answer | MemorySamError | None]:
    """Whether the main process has its answer, and which."""
    if not accelerator.is_main_process:
        return False, None
    if not wait([future], timeout=BEAT).done:
        return False, None
    try:
        return True, future.result()
    except MemorySamError as fault:
        return True, fault


def _fulfil(future: Future[Answer], work: Callable[[], Answer]) -> None:
    try:
        future.set_result(work())
    except BaseException as fault:  # whoever asks for the result gets it
        future.set_exception(fault)


def _choose(recipe: Recipe, manifest: Manifest, accelerator: Accelerator) -> Candidate:
    """The plan, for one process of those that share the device."""
    device = accelerator.device
    share = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)) if device.type == "cpu" else 1
    name = str(device) if device.type == "cuda" else device.type  # accelerate speaks of cpu:0
    found = search.search(targets.of_manifest(recipe, manifest), search.room(name, share=share))
    if found.proposal is None:
        raise found.refusal()
    console.note(f"--batch auto: {found.proposal.candidate}; as many scenes per update as the recipe has")
    return found.proposal.candidate
