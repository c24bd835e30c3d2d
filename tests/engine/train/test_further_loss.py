"""docs/extending.md: losses that a file registers are trained by, saved and shown; the package stays as it is."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.reporting import run_pages
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.objective import Objective
from memorysam_cli.engine.train.tracking import Tracking
from memorysam_cli.errors import UsageError, WeightsError
from memorysam_cli.losses.loss import Exchange, LossInputs, Task
from memorysam_cli.recipe import Recipe
from memorysam_cli.registry import LOSSES
from memorysam_cli.report import console
from memorysam_cli.storage import documents

from ... import forked
from ...extending.conftest import Ended
from ...losses.conftest import side_by_side
from .test_learner import batch_of, learner_of, learnt, nan, part
from .test_trainer import accelerator, changed, copied, gone_on, start, state_of, without_clock

WHOLE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text(encoding="utf-8")
PAGE = WHOLE.partition("\n## A loss\n")[2].partition("\n## ")[0]
PYTHON = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
exec(compile(PYTHON, "docs/extending.md", "exec"), {"__name__": "my_loss"})  # registers z_loss and drift

EVEN = ((0, 2, 4), (0, 1, 2, 3, 4))
"""Cuts of four scenes into batches of one size."""


@pytest.fixture(scope="module")
def taught(small: Recipe) -> Recipe:
    """The small recipe, with both losses of the page."""
    losses = {"z_loss": {"weight": 0.01}, "drift": {"weight": 0.5}}
    return recipes.parse(small.model_dump(mode="json") | {"losses": losses}, where="test")


@pytest.fixture(scope="module")
def whole(taught: Recipe, rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates, for reading only."""
    recipe = changed(taught, "train", epochs=1, checkpoint_steps=1)
    return start(recipe, rendered, tmp_path_factory.mktemp("taught") / "whole").run


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_the_page_s_recipe_is_read_and_its_settings_are_written_out(tmp_path: Path) -> None:
    text = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0]
    path = tmp_path / "my_recipe.yaml"
    path.write_text(text)
    found = recipes.load(path, ["losses.drift={}"])
    inherited = recipes.load("demo").losses
    assert found.losses == inherited | {"z_loss": {"weight": 0.01, "target": 2.0}, "drift": {"weight": 1.0}}
    assert found.terms == ("ohem", "spmm", *inherited, "z_loss", "drift")
    assert recipes.load(path, ["losses.z_loss=null"]).losses == inherited
    again = tmp_path / "again.yaml"
    again.write_text(found.to_yaml())
    assert recipes.load(again) == found


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("losses.zloss={}", r"--set losses.zloss={}: losses: unknown loss 'zloss'; did you mean 'z_loss'\? \(known: "),
        ("losses.z_loss.wieght=1", r"losses.z_loss: unknown key 'wieght'; did you mean 'weight'\?"),
        ("losses.z_loss.weight=-1", r"losses.z_loss.weight: must be greater than or equal to 0 \(got -1\)"),
        ("losses.z_loss.target=x", r"losses.z_loss.target: must be a number \(got \"x\"\)"),
        ("losses.z_loss=3", r"losses.z_loss: must be a section \(got 3\)"),
        ("losses=3", r"losses: must be a section \(got 3\)"),
        ("losses.ohem={}", r"losses.ohem: has its own section; write ohem: at the top level"),
        ("losses.lr={}", r"losses: 'lr' is what metrics.jsonl calls something else"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        recipes.load("demo", [override])
    assert "\n" not in str(refused.value)


def test_the_message_about_an_unknown_loss_says_how_to_bring_one(tmp_path: Path) -> None:
    """In a process of its own, where nobody has registered one."""
    ended = program("recipes", "show", "demo", "--set", "losses.z_loss={}", cwd=tmp_path)
    assert ended.returncode == 2
    assert re.search(r"losses: unknown loss 'z_loss'.*\(known: .*single.*\); .*memorysam --extend FILE", ended.stderr)


def test_the_page_shows_the_losses_that_come_with_memorysam() -> None:
    """Its recipe names all of them, with every setting that they have."""
    (text,) = re.findall(r"```yaml\n# .*come with memorysam\n(.*?)```", PAGE, re.DOTALL)
    content = documents.parse_yaml(text, where="the page")["losses"]
    assert set(content) == {name for name in LOSSES.built_in if LOSSES.get(name).__module__.endswith("regions")}
    for name, settings in content.items():
        assert set(settings) == set(LOSSES.get(name).Settings.model_fields)
    assert recipes.load("deliver", [f"losses={json.dumps(content)}"]).losses == content


def program(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "memorysam_cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd)


def one_process(*jobs: list[object], cwd: Path) -> list[Ended]:
    """Command lines, or code, one after the other in a process of their own, which has imported what comes with us."""
    listed = cwd / "jobs.json"
    listed.write_text(json.dumps([[str(word) for word in job] for job in jobs]))
    code = (
        "import sys; from pathlib import Path; from tests.extending.driver import done; print(done(Path(sys.argv[1])))"
    )
    found = forked.python(code, str(listed), environment=os.environ, cwd=cwd)
    assert found.returncode == 0, found.stderr
    return [Ended(*each) for each in json.loads(found.stdout)]


def test_a_term_is_seen_everywhere(
    taught: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, drawn, tracked = Terminal(), set(), set()
    plot = Axes.plot

    def watched_plot(axes: Axes, *arguments: Any, **options: Any) -> Any:
        drawn.add(options.get("label"))
        return plot(axes, *arguments, **options)

    def log(_self: Tracking, _step: int, values: Mapping[str, float], *, group: str = "train") -> None:
        tracked.update(f"{group}/{name}" for name in values)

    monkeypatch.setattr(Axes, "plot", watched_plot)
    monkeypatch.setattr(Tracking, "log", log)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("CI", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    taught = changed(taught, "train", max_steps=1)
    run = run_folder.create(taught, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        console.setup()
        Trainer(taught, rendered, accelerator=accelerator()).fit(run)
    console.setup()
    rows = [row for row in documents.read_json_lines(run.metrics) if "loss" in row]
    for row in rows:
        assert list(row)[2:7] == ["loss", "ohem", "spmm", "z_loss", "drift"]
        assert row["loss"] == pytest.approx(row["ohem"] + row["spmm"] + row["z_loss"] + row["drift"])
        assert row["z_loss"] > 0
    assert "losses    ohem, spmm, z_loss, drift" in terminal.getvalue()
    (names,) = {line for line in terminal.getvalue().splitlines() if "best mIoU" in line and "z_loss" in line} or {""}
    assert re.search(r"loss +spmm +z_loss +drift +lr", re.sub(r"\x1b\[[0-9;]*m", "", names))
    assert {"loss", "ohem", "spmm", "z_loss", "drift"} <= drawn
    assert {"train/z_loss", "train/drift", "train/spmm"} <= tracked
    charts = run_pages.gather_training(run.path)["charts"]
    assert [chart.title for chart in charts][:4] == ["Loss", "SPMM loss", "Z loss", "Drift loss"]
    # In a process that has not loaded the file: what is only looked at needs no code.
    weights = f"from memorysam_cli.model import load; print(load({str(run.best)!r}).card.recipe.losses)"
    watched, table, report, loaded, resumed = one_process(
        ["watch", run.path, "--json"], ["watch", run.path], ["report", run.path], ["-c", weights],
        ["train", "--resume", run.path, "--device", "cpu", "--data", rendered.root], cwd=tmp_path,
    )  # fmt: skip
    answer = json.loads(watched.out)
    assert list(answer["latest"])[:4] == ["loss", "spmm", "z_loss", "drift"]
    assert answer["latest"]["z_loss"] == pytest.approx(rows[-1]["z_loss"])
    assert re.search(r"^z_loss +\S+  \S+$", table.out, re.MULTILINE)
    assert report.code == 0
    assert 'data-chart="z_loss"' in (run.path / "report.html").read_text()
    assert loaded.code == 0 and "'z_loss': {'weight': 0.01, 'target': 0.0}" in loaded.out
    assert resumed.code == 2 and "unknown loss 'z_loss'" in resumed.err


@pytest.mark.parametrize("cuts", [(0, 3, 4), *(pytest.param(even, marks=pytest.mark.slow) for even in EVEN)])
def test_accumulated_batches_are_one_large_batch(cuts: tuple[int, ...], taught: Recipe, rendered: Manifest) -> None:
    whole = batch_of(4)
    parts = [part(whole, slice(*pair)) for pair in itertools.pairwise(cuts)]
    one, many = learner_of(taught, rendered), learner_of(taught, rendered)
    for _ in range(2):  # the second time there is a mean to drift from
        (terms, wanted), (found_terms, found) = learnt(one, [whole]), learnt(many, parts)
        assert wanted.keys() == found.keys() and found_terms == pytest.approx(terms, rel=1e-4)
        for name, gradient in wanted.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name)
    assert terms["drift"] > 0
    torch.testing.assert_close(many.objective.state(), one.objective.state(), rtol=1e-5, atol=1e-7)


def test_a_resumed_run_ends_bit_for_bit_the_same(
    whole: Path, taught: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    path = checkpoints.path_of(whole / "checkpoints", 1)
    assert float(checkpoints.read(path).optimizer["drift/mean"].abs().sum()) > 0
    run = gone_on(changed(taught, "train", epochs=1, checkpoint_steps=1), rendered, whole, tmp_path)
    torch.testing.assert_close(state_of(run), state_of(whole), rtol=0, atol=0)
    assert without_clock(RunFolder(run)) == without_clock(RunFolder(whole))


def test_a_run_cannot_be_resumed_by_other_losses(
    whole: Path, taught: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    taught = changed(taught, "train", epochs=1, checkpoint_steps=1)
    run, path = copied(whole, tmp_path)
    less = taught.model_copy(update={"losses": {"z_loss": taught.losses["z_loss"]}})
    with pytest.raises(UsageError, match=r"losses\.drift\.weight was 0\.5, is None"):
        start(less, rendered, run, resume=path)
    state = checkpoints.read(path)
    lost = {name: value for name, value in state.optimizer.items() if name != "drift/mean"}
    bad = checkpoints.write(tmp_path / "bad", replace(state, optimizer=lost), keep=2)
    with pytest.raises(WeightsError, match="its optimizer is not of this network"):
        start(taught, rendered, run, resume=bad)


def test_what_a_loss_keeps_is_undone_with_an_update_that_is_not_finite(taught: Recipe, rendered: Manifest) -> None:
    learner = learner_of(taught, rendered)
    learner.learn([batch_of(2)], rate=0.01)
    before = {name: value.clone() for name, value in learner.state().items()}
    result = learner.learn([nan(batch_of(2))], rate=0.01)
    assert not result.is_finite and result.terms["drift"] != result.terms["drift"]
    torch.testing.assert_close(learner.state(), before, rtol=0, atol=0)


def test_two_processes_with_half_of_the_scenes_are_one_with_all(taught: Recipe) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, features = torch.randn(4, 3, 4, 4, generator=generator), torch.randn(4, 5, 4, 4, generator=generator)
    label = torch.randint(0, 3, (4, 16, 16), generator=generator)
    recipe = changed(taught, "ohem", selection="global")

    def terms_of(rows: slice, exchange: Exchange | None) -> tuple[Tensor, Tensor]:
        task = Task(("a", "b", "c"), ("img", "depth"), width=5, device=torch.device("cpu"))
        objective, leaf = Objective(recipe, task), logits[rows].clone().requires_grad_()
        for _ in range(2):
            leaf.grad = None
            terms = objective(LossInputs([leaf], [features[rows]], [label[rows]], [[]], task, exchange))
            terms.sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return terms.detach(), leaf.grad

    halves = [functools.partial(terms_of, half) for half in (slice(0, 2), slice(2, 4))]
    (first, gradient), (second, other) = side_by_side(halves)
    terms, wanted = terms_of(slice(None), None)
    torch.testing.assert_close((first + second) / 2, terms)
    torch.testing.assert_close(torch.cat([gradient, other]) / 2, wanted)  # the mean over processes
