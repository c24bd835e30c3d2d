"""benchmarks/missing.py in miniature: what it compares, what it does not do again, and where its figures are from."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from memorysam_cli import recipe, registry
from memorysam_cli.model import lora
from memorysam_cli.streetworld.scenes import counts

FOLDER = Path(__file__).parent.parent.parent.parent / "benchmarks"


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(registry.VARIABLE, "")  # what is registered here is gone afterwards
    for name, empty in (("_registered", []), ("_given", []), ("_errors", {})):
        monkeypatch.setattr(registry, name, empty)
    monkeypatch.setattr(registry.ENCODERS, "_known", dict(registry.ENCODERS._known))
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmarks_missing", FOLDER / "missing.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SMALL", {"scenes": 8, "size": 40})
    monkeypatch.setattr(module, "TIMED_UPDATES", 1)
    monkeypatch.setattr(module, "WARM_UPS", 1)
    monkeypatch.setattr(module, "ROUNDS", 1)
    return module


def listening(missing: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that run from now on: ``train``, or the kind of robustness."""
    heard, typed = [], missing.typed

    def listen(*words: object) -> int:
        heard.append("train" if words[0] == "train" else str(words[-1]))
        code: int = typed(*words)
        return code

    monkeypatch.setattr(missing, "typed", listen)
    return heard


@pytest.mark.slow  # plain runs hold means, spreads and what is refused
def test_a_run_is_measured_once_and_the_table_has_the_figures_of_its_reports(
    missing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--variants", "paper", "--seeds", "1", "--small", "--work", str(tmp_path / "work")]
    heard = listening(missing, monkeypatch)
    assert missing.main(words) == 0
    assert heard == ["train", "any", "rmm", "nm"]
    folder = tmp_path / "work/runs/paper/seed-0/evaluate/test"
    reports = {path.stem.removeprefix("robustness-"): json.loads(path.read_text()) for path in folder.glob("*.json")}
    (line,) = map(json.loads, (tmp_path / "work/missing.jsonl").read_text().splitlines())
    dropped = {"+".join(each["available"]): each["miou"] for each in reports["any"]["levels"][0]["sets"]}
    assert len(dropped) == 15
    expected = {
        "full set": dropped["img+depth+event+lidar"],
        "mean, dropped": fmean(dropped.values()),
        "mean, zeroed": fmean(each["miou"] for each in reports["any"]["levels"][1]["sets"]),
        "worst": min(dropped.values()),
        "RMM": fmean(each["miou"] for level in reports["rmm"]["levels"] for each in level["sets"]),
        **{f"{name} alone": dropped[name] for name in ("img", "depth", "event", "lidar")},
        **{f"NM {level['level']}": level["sets"][0]["miou"] for level in reports["nm"]["levels"][1:]},
    }
    assert list(expected)[-3:] == ["NM low", "NM mid", "NM high"]
    assert line["per_seed"]["0"] == pytest.approx(expected)
    assert {name: each["mean"] for name, each in line["figures"].items()} == pytest.approx(expected)
    assert (line["ratio"], line["split"], line["scenes"]) == ({"mean": 1.0, "std": None}, "test", 1)
    assert dropped["+".join(line["worst_set"]["0"])] == expected["worst"]
    text = (tmp_path / "work/missing.md").read_text()
    assert f"| paper | {expected['full set']:.2f} | {expected['mean, dropped']:.2f} |" in text
    pictures = {path.name for path in (tmp_path / "work").glob("missing-*")}
    assert pictures == {f"missing-{theme}.{suffix}" for theme in ("light", "dark") for suffix in ("png", "svg")}

    heard.clear()
    monkeypatch.setattr(missing.table, "plots", lambda _: {})  # they were looked at
    (folder / "robustness-nm.json").unlink()
    assert missing.main(words) == 0
    assert heard == ["nm"]  # neither trained nor timed again
    assert json.loads((tmp_path / "work/missing.jsonl").read_text()) == line
    capsys.readouterr()
    assert missing.main([*words, "--set", "optim.lr=1e-3"]) == 2
    assert "seed-0: was trained with other values (optim); remove it" in capsys.readouterr().err


def test_a_training_run_that_is_stopped_ends_the_benchmark_with_its_code(
    missing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(missing, "typed", lambda *_: 143)
    monkeypatch.setattr(missing, "prepare", lambda *_: None)
    assert missing.main(["--variants", "paper,longer", "--seeds", "1", "--work", str(tmp_path / "work")]) == 143


def test_what_fails_is_named_and_the_others_are_still_done(
    missing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(missing, "typed", lambda *_: 8)
    monkeypatch.setattr(missing, "prepare", lambda *_: None)
    words = ["--variants", "paper,longer", "--seeds", "1", "--no-timing", "--work", str(tmp_path / "work")]
    assert missing.main(words) == 4
    assert "2 of 2 runs failed: paper, seed 0 (exit code 8), longer, seed 0 (exit code 8)" in capsys.readouterr().err
    assert (tmp_path / "work/missing.md").read_text() == "Nothing is finished yet.\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("papr", "has no variant 'papr'; did you mean 'paper'?"),
        ("odd", "odd: --set model.colour=red: model: unknown key 'colour'"),
        ("odder", "odder: --set model.colour=red"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_before_anything_is_made(
    missing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(
        "recipe: demo\ncommon: []\ntiming: []\nvariants:\n"
        "  paper: {about: as published}\n"
        "  odd: {about: one key too many, set: [model.colour=red]}\n"
        "  odder: {about: on top of it, base: [paper, odd]}\n"
    )
    asked = ["--variants", f"paper,{name}", "--file", str(file), "--work", str(tmp_path / "work")]
    assert missing.main(asked) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_every_variant_that_is_offered_can_be_trained(missing: Any, tmp_path: Path) -> None:
    known = missing.documents.read_yaml(missing.VARIANTS)["variants"]
    asked = missing.parser().parse_args(["--variants", ",".join(known), "--work", str(tmp_path)])
    study = missing.study_of(asked)  # refuses what is not a recipe
    assert counts(study.scenes) == {"train": 240, "val": 100, "test": 60}
    assert [each.name for each in study.variants] == list(known) and next(iter(known)) == missing.REFERENCE
    for variant in study.variants:
        assert study.resolved(variant, 2).train.seed == 3407 + 2
        assert missing.timed_recipe(study, variant).data.workers == 0


def test_lora_per_sensor_starts_as_nano_and_each_sensor_has_its_own(missing: Any) -> None:
    registry.add_files([FOLDER / "missing_encoders.py"], where="here")
    torch.manual_seed(0)
    plain, encoder = (registry.ENCODERS.get(name).encoder() for name in ("nano", "nano-per-sensor"))
    encoder.load_state_dict(plain.state_dict())
    lora.add_lora(encoder, recipe.Lora())
    images = torch.randn(8, 3, 64, 64)  # two scenes of four sensors

    def maps(one: Any) -> list[Tensor]:
        return [level.order.join(level.tokens) for level in one.levels(images)]

    before = maps(encoder)
    for own, wanted in zip(before, maps(plain), strict=True):
        torch.testing.assert_close(own, wanted)
    sum(each.square().mean() for each in before).backward()
    ups = {name: each for name, each in encoder.named_parameters() if ".lora_B." in name}
    assert len(ups) == 4 * 2 * 6 and all(each.grad.abs().max() > 0 for each in ups.values())  # q and v of six blocks
    with torch.no_grad():
        for name, up in ups.items():
            if name.startswith("others.1."):
                up.add_(1.0)
        after = maps(encoder)
    changed = [(now - then).abs().amax(dim=(1, 2, 3)) > 1e-3 for now, then in zip(after, before, strict=True)]
    assert all(each.tolist() == [False] * 4 + [True] * 2 + [False] * 2 for each in changed)
    assert not [name for name in encoder.state_dict() if "others." in name and ".lora_" not in name]
    with pytest.raises(ValueError, match="images: 6; needs a multiple of 4"):
        next(encoder.levels(images[:6]))


def test_the_page_has_a_place_for_the_figures(missing: Any) -> None:
    page = (FOLDER.parent / "docs/beyond.md").read_text(encoding="utf-8")
    assert page.count(missing.table.BEGIN) == page.count(missing.table.END) == 1
    has_figures = "No figures yet." not in page
    assert has_figures == ("exclude_docs: beyond.md" not in (FOLDER.parent / "mkdocs.yml").read_text(encoding="utf-8"))


def test_means_spreads_and_lacking_seeds_by_hand(missing: Any) -> None:
    table = missing.table
    assert table.spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0}
    assert table.cell(table.spread([1.0, 2.0, 3.0])) == "2.00 ± 1.00"
    assert (table.cell(table.spread([4.0])), table.cell(None)) == ("4.00", "–")
    figures = {name: table.spread([2.0]) for name in (*table.MAIN, "img alone")}
    per_seed = {seed: dict.fromkeys(figures, 2.0 * seed) for seed in (0, 1)}
    line = {"variant": "a", "about": "x", "set": ["k=1"], "seeds": [0, 1], "split": "test", "scenes": 60,
            "figures": figures, "per_seed": per_seed, "seconds": None, "ratio": None}  # fmt: skip
    less = {"variant": "b", "set": [], "seeds": [1], "per_seed": {1: dict.fromkeys(figures, 1.5)}}
    text = table.text_of([line, line | less])
    assert "- `a`: x (`k=1`)\n\n" in text and "| variant | img alone |\n| --- | ---: |\n| a | 2.00 |\n\n" in text
    # Of seed 1 alone: 1.5, where the reference has 2 of that seed.
    assert (
        "Variants with fewer seeds, as points that they are above or below `a` of the same seeds:\n\n- `b`: x\n" in text
    )
    assert text.endswith(f"| b | 1 | {' | '.join(['-0.50'] * len(figures))} |\n")
    page = table.into(f"before {table.BEGIN}\nold\n{table.END} after", [line], where="page.md")
    assert page.startswith(f"before {table.BEGIN}\n![") and page.endswith(f"{table.END} after") and "old" not in page
    with pytest.raises(table.UsageError, match=r"page\.md: has no <!-- missing:begin -->"):
        table.into("nothing", [line], where="page.md")
