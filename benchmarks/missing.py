"""Networks trained in different ways, compared side by side: scores with missing sensors.

python benchmarks/missing.py --variants paper,longer --seeds 3 --work DIR [--jobs 2] [--set KEY=VALUE] [--split test]
                             [--scenes 400] [--size 160] [--small] [--no-timing] [--write docs/beyond.md]

Renders mini-DELIVER for each seed, trains each variant of missing.yaml on it (the best epoch is chosen on val),
measures the weights on test with `evaluate --robustness`, and times the updates of all variants in turns. What is
finished is not done again, and a killed training continues from its checkpoint: the same command, or one with more
variants or seeds, adds what is lacking. After each run these are written, of all named variants and seeds there are:

DIR/missing.md               the table: mean ± standard deviation over the seeds
DIR/missing.jsonl            a line for each variant, with every seed's own figures
DIR/missing-light.png, .svg  the plot; also missing-dark
DIR/runs/VARIANT/seed-N      a run as of `memorysam train`; evaluate/SPLIT/ in it has the figures
DIR/timing.jsonl             processor seconds of an update, in one thread

Seed N renders the scenes with seed N and adds N to the recipe's train.seed. With --jobs 2 two runs are trained at
once, each in a process of its own with an equal share of the cores. --small does all of it in miniature: a test.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import missing_table as table

from memorysam_cli import app, registry
from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.engine.run_folder import RECIPE, RunFolder
from memorysam_cli.errors import MemorySamError, PartialError, Stopped, Terminated, UsageError, did_you_mean, unwind
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock, tensors

VARIANTS = Path(__file__).with_suffix(".yaml")
REFERENCE = "paper"
"""The variant that the others' time is compared with."""
SMALL = {"scenes": 20, "size": 64}
SMALL_VALUES = ("data.image_size=32", "data.workers=0", "train.batch=4", "train.epochs=1", "optim.warmup_epochs=0")
TIMED_UPDATES, WARM_UPS, ROUNDS = 6, 2, 3
STOPPED = (130, 143)
"""Exit codes of what was asked to stop, and can continue."""


@dataclass(frozen=True)
class Variant:
    """A named set of recipe values."""

    name: str
    about: str
    values: tuple[str, ...]
    """As of ``--set``."""


@dataclass(frozen=True)
class Study:
    """What is compared, and where it lies."""

    work: Path
    recipe: str
    common: tuple[str, ...]
    """Values of all variants, before their own."""
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    values: tuple[str, ...]
    """Of all variants, after their own."""
    timing: tuple[str, ...]
    """More of them, while updates are timed."""
    scenes: int
    size: int
    split: str

    @property
    def pairs(self) -> list[Pair]:
        """All runs, seed by seed: after the first seed everything can be compared."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants]

    def data(self, seed: int) -> Path:
        """The data root of a seed."""
        return self.work / f"scenes-{seed}"

    def run(self, variant: Variant, seed: int) -> RunFolder:
        """The folder of a training run."""
        return RunFolder(self.work / "runs" / variant.name / f"seed-{seed}")

    def overrides(self, variant: Variant, seed: int) -> list[str]:
        """What ``--set`` gets."""
        values = [*self.common, *variant.values, *self.values]
        return [*values, f"train.seed={recipes.load(self.recipe, values).train.seed + seed}"]

    def resolved(self, variant: Variant, seed: int) -> Recipe:
        """The whole recipe of a training run."""
        return recipes.load(self.recipe, self.overrides(variant, seed))

    def reports(self, variant: Variant, seed: int) -> dict[str, dict[str, Any]]:
        """The reports of ``evaluate --robustness`` by kind: those that are there, of the finished run's weights."""
        run = self.run(variant, seed)
        if not run.result.exists():
            return {}
        paths = {kind: run.path / "evaluate" / self.split / f"robustness-{kind}.json" for kind in table.KINDS}
        found = {kind: documents.read_object(path) for kind, path in paths.items() if path.exists()}
        digest = tensors.sha256(run.best)
        return {kind: report for kind, report in found.items() if report["weights_sha256"] == digest}

    def is_done(self, variant: Variant, seed: int) -> bool:
        """Whether a run is finished and measured."""
        return len(self.reports(variant, seed)) == len(table.KINDS)


Pair = tuple[Variant, int]
"""A run: what is trained, and its seed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is lacking; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    before = signal.signal(signal.SIGTERM, unwind)  # as an exception: what was started here is ended
    try:
        asked = parser().parse_args(words)
        study = study_of(asked)
        if asked.one is not None:
            name, _, seed = asked.one.rpartition(":")
            return finish(study, next(each for each in study.variants if each.name == name), int(seed))
        compare(study, asked, words)
    except Terminated as error:
        return error.exit_code
    except KeyboardInterrupt:
        return STOPPED[0]
    except MemorySamError as error:
        console.error(str(error), code=error.exit_code)
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--variants", type=lambda text: text.split(","), required=True, help="names, with commas")
    add("--seeds", type=int, default=3, help="how many: 0, 1, …")
    add("--work", type=Path, required=True, help="folder of everything; give it again to continue")
    add("--file", type=Path, default=VARIANTS, help="of the variants")
    add("--jobs", type=int, default=1, help="runs at once")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for every variant (repeatable)")
    add("--split", default="test", help="that is reported")
    add("--scenes", type=int, default=400, help="60 %% for training, 25 %% are val, 15 %% test")
    add("--size", type=int, default=160, help="height of the pictures")
    add("--small", action="store_true", help="in miniature")
    add("--no-timing", action="store_true", help="leave out the pass that times updates")
    add("--write", type=Path, help="a page whose part between the markers gets the table and the plot")
    add("--one", help=argparse.SUPPRESS)
    return parser


def study_of(asked: argparse.Namespace) -> Study:
    """What is asked for; every recipe is checked before anything is rendered or trained."""
    content = documents.read_yaml(asked.file)
    registry.add_files([asked.file.parent / name for name in content.get("extensions", [])], where=f"{asked.file}:")
    study = Study(
        work=asked.work, recipe=content["recipe"], common=tuple(content["common"]),
        variants=tuple(variant_of(name, content["variants"], asked.file) for name in dict.fromkeys(asked.variants)),
        seeds=tuple(range(asked.seeds)), values=(*(SMALL_VALUES if asked.small else ()), *asked.set),
        timing=tuple(content["timing"]), split=asked.split,
        **(SMALL if asked.small else {"scenes": asked.scenes, "size": asked.size}),
    )  # fmt: skip
    for variant in study.variants:
        try:
            study.resolved(variant, 0)
        except UsageError as error:
            raise UsageError(f"{asked.file}: {variant.name}: {error}") from None
    return study


def variant_of(name: str, known: Mapping[str, Any], file: Path) -> Variant:
    """A variant with the values of those that it builds upon, each once."""
    if name not in known:
        raise UsageError(f"{file}: has no variant '{name}'{did_you_mean(name, known)}")
    own, bases = known[name], known[name].get("base", [])
    before = [variant_of(each, known, file) for each in ([bases] if isinstance(bases, str) else bases)]
    values = [value for each in before for value in each.values] + own.get("set", [])
    return Variant(name, own["about"], tuple(dict.fromkeys(values)))


def compare(study: Study, asked: argparse.Namespace, words: Sequence[str]) -> None:
    """Render, train, measure, time and write what is lacking."""
    atomic.make_folder(study.work)
    failed = []
    with lock.hold(study.work):
        for pair in study.pairs:
            refuse_other(study, *pair)
        for seed in study.seeds:
            prepare(study, seed)
        lacking = [pair for pair in study.pairs if not study.is_done(*pair)]
        console.note(f"{len(study.pairs) - len(lacking)} of {len(study.pairs)} runs are finished and measured")
        for (variant, seed), code in runs(study, lacking, jobs=asked.jobs, words=words):
            console.note(f"{variant.name}, seed {seed}: {f'exit code {code}' if code else 'done'}")
            failed += [f"{variant.name}, seed {seed} (exit code {code})"] * bool(code)
            write(study)
        if not asked.no_timing:
            time_updates(study)
        write(study, page=asked.write)
    console.say(str(study.work / "missing.md"))
    if failed:
        raise PartialError(f"{study.work}: {len(failed)} of {len(study.pairs)} runs failed: {', '.join(failed)}")


def refuse_other(study: Study, variant: Variant, seed: int) -> None:
    """Refuse a run that was trained by other values under the same name."""
    run = study.run(variant, seed)
    if not run.holds_run():
        return
    stored = recipes.load(run.path / RECIPE, is_stored=True)
    then, now = (each.model_dump(mode="json") for each in (stored, study.resolved(variant, seed)))
    if other := [name for name in now if then[name] != now[name]]:
        raise UsageError(
            f"{run.path}: was trained with other values ({', '.join(other)}); remove it, or give another --work"
        )


def prepare(study: Study, seed: int) -> None:
    """Render and check the scenes of a seed, unless they are there."""
    root = study.data(seed)
    with console.progress(study.scenes, f"render {root.name}") as bar:
        is_new = preparation.render_synthetic(
            root, layout="deliver", scenes=study.scenes, size=study.size, seed=seed, advance=bar.advance
        )
    if is_new or "synthetic" not in manifests.prepared(root):
        error = preparation.check_and_write(preparation.survey_synthetic(root, layout="deliver")).fault()
        if error is not None:
            raise error


def runs(study: Study, pairs: Sequence[Pair], *, jobs: int, words: Sequence[str]) -> Iterator[tuple[Pair, int]]:
    """Finish runs: in this process one after the other, or several at once; each with its exit code."""
    if jobs > 1:
        with ThreadPoolExecutor(jobs) as pool, Processes(study, jobs=jobs, words=words) as processes:
            yield from zip(pairs, pool.map(processes.finish, pairs), strict=True)
        return
    for variant, seed in pairs:
        code = finish(study, variant, seed)
        if code in STOPPED:
            raise Stopped(f"{study.run(variant, seed).path}: stopped; the same command continues", exit_code=code)
        yield (variant, seed), code


class Processes:
    """Runs in processes of their own; when the block ends before they do, they are asked to stop."""

    def __init__(self, study: Study, *, jobs: int, words: Sequence[str]) -> None:
        self.study, self.words, self.running = study, words, set[subprocess.Popen[bytes]]()
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        self.environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self.is_over = False

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        for process in list(self.running):
            process.terminate()  # training then writes a checkpoint

    def finish(self, pair: Pair) -> int:
        """Finish a run and give its exit code; what it says is beside its folder."""
        variant, seed = pair
        folder = self.study.run(variant, seed).path
        atomic.make_folder(folder.parent)
        if self.is_over:
            return STOPPED[1]
        command = [sys.executable, __file__, *self.words, "--one", f"{variant.name}:{seed}"]
        with folder.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self.running.add(process)
        code = process.wait()
        self.running.discard(process)
        return code


def finish(study: Study, variant: Variant, seed: int) -> int:
    """Train, or continue training, and measure, by the commands that anyone would type; gives the exit code."""
    run, data = study.run(variant, seed), study.data(seed)
    if not run.result.exists():
        sets = [word for value in study.overrides(variant, seed) for word in ("--set", value)]
        code = typed("train", "--recipe", study.recipe, *sets, "--data", data, "--out", run.path, "--resume", "auto")
        if code:
            return code
    there = study.reports(variant, seed)
    for kind in (kind for kind in table.KINDS if kind not in there):
        code = typed("evaluate", "--weights", run.best, "--data", data, "--split", study.split, "--robustness", kind)
        if code:
            return code
    return 0


def typed(*words: object) -> int:
    """One command line of memorysam; its warnings and errors are shown."""
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            return app.run([*map(str, words), "--device", "cpu", "--quiet"])
    finally:
        console.setup()  # the command's --quiet is not ours


def lines(study: Study) -> list[dict[str, Any]]:
    """What there is of each variant, as :func:`missing_table.text_of` takes it."""
    times = known_times(study)
    found = []
    for variant in study.variants:
        seeds = {seed: study.reports(variant, seed) for seed in study.seeds if study.is_done(variant, seed)}
        if not seeds:
            continue
        results = {seed: documents.read_object(study.run(variant, seed).result) for seed in seeds}
        time_of = times.get(variant.name)
        found.append(
            {
                "variant": variant.name,
                "about": variant.about,
                "set": list(variant.values),
                **table.line_of(seeds),
                "val": {seed: each["miou"] for seed, each in results.items()},
                "steps": {seed: each["steps"] for seed, each in results.items()},
                "seconds": None if time_of is None else table.spread(time_of["seconds"]),
                "ratio": None if time_of is None else table.spread(time_of["ratios"]),
            }
        )
    return found


def write(study: Study, page: Path | None = None) -> None:
    """Write table, lines and plot of all that there is; and into a page, if one is given."""
    found = lines(study)
    atomic.write_text(study.work / "missing.jsonl", "".join(documents.to_json(each) + "\n" for each in found))
    atomic.write_text(study.work / "missing.md", table.text_of(found))
    pictures = table.plots(found) if found else {}
    for name, data in pictures.items():
        atomic.write_bytes(study.work / name, data)
    if page is not None and found:
        atomic.write_text(page, table.into(page.read_text(encoding="utf-8"), found, where=str(page)))
        for name in (name for name in pictures if name.endswith(".svg")):
            atomic.write_bytes(page.parent / "images" / name, pictures[name])


def known_times(study: Study) -> dict[str, dict[str, Any]]:
    """By variant the newest measurement, if it is of the recipe that the variant has now."""
    path = study.work / "timing.jsonl"
    newest = {line["variant"]: line for line in (documents.read_json_lines(path) if path.exists() else [])}
    keys = {each.name: timing_key(study, each) for each in study.variants}
    return {name: newest[name] for name in keys if name in newest and newest[name]["recipe"] == keys[name]}


def timing_key(study: Study, variant: Variant) -> str:
    """What tells two recipes apart whose updates are timed."""
    recipe = timed_recipe(study, variant).model_copy(update={"about": ""})  # words do not change the time
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()[:16]


def timed_recipe(study: Study, variant: Variant) -> Recipe:
    """As it is trained, but that the process reads the scenes itself, so that its time has all of it."""
    values = [*study.overrides(variant, 0), *study.timing, "data.workers=0", "train.epochs=1000"]
    return recipes.load(study.recipe, values)


def time_updates(study: Study) -> None:
    """Time the updates of the variants that lack it: in turns, each turn beside the reference."""
    known = known_times(study)
    reference = variant_of(REFERENCE, documents.read_yaml(VARIANTS)["variants"], VARIANTS)
    wanted = [each for each in study.variants if each.name not in known]
    if not wanted:
        return
    everyone = [reference, *(each for each in wanted if each.name != REFERENCE)]
    console.note(f"timing updates of {', '.join(each.name for each in everyone)}")
    seconds: dict[str, list[float]] = {each.name: [] for each in everyone}
    for _ in range(ROUNDS):
        for variant in everyone:
            seconds[variant.name].append(seconds_per_update(study, variant))
    for variant in everyone:
        own = seconds[variant.name]
        ratios = [mine / of for mine, of in zip(own, seconds[REFERENCE], strict=True)]
        line = {"variant": variant.name, "recipe": timing_key(study, variant), "seconds": own, "ratios": ratios}
        documents.append_json_line(study.work / "timing.jsonl", line)


class EnoughError(Exception):
    """All updates that were wanted are timed."""


def seconds_per_update(study: Study, variant: Variant) -> float:
    """The median processor time of an update of a real training run, reading included, in one thread."""
    import torch

    from memorysam_cli.engine import run_folder, runtime
    from memorysam_cli.engine.train.loop import Trainer
    from memorysam_cli.engine.train.tracking import Tracking

    moments: list[float] = []

    class Clock(Tracking):
        """Notes the processor time after every update."""

        def log(self, step: int, values: Mapping[str, float], *, group: str = "train") -> None:  # noqa: ARG002
            moments.append(time.process_time())
            if len(moments) == WARM_UPS + TIMED_UPDATES:
                raise EnoughError

    recipe, threads = timed_recipe(study, variant), torch.get_num_threads()
    console.setup(verbosity=console.QUIET)
    torch.set_num_threads(1)
    try:
        accelerator = runtime.make_accelerator(torch.device("cpu"), precision=recipe.train.precision)
        trainer = Trainer(recipe, manifests.read(study.data(0), "synthetic"), accelerator=accelerator)
        trainer.tracking = Clock()
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EnoughError):
            trainer.fit(run_folder.create(recipe, Path(folder) / "run"))
    finally:
        torch.set_num_threads(threads)
        console.setup()
    return statistics.median(later - sooner for sooner, later in pairwise(moments[WARM_UPS - 1 :]))


if __name__ == "__main__":
    sys.exit(main())
