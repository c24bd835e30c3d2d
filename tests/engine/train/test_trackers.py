"""What the trackers' own files hold afterwards: read back by TensorBoard, MLflow, and W&B's and Trackio's formats."""

from __future__ import annotations

import io
import json
import signal
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memorysam_cli.engine.train import trackers, tracking
from memorysam_cli.storage import images

# Others' packages warn of themselves; a tracker's process ignores it, too.
pytestmark = pytest.mark.filterwarnings("ignore")

RECIPE = "name: small\ndata: {dataset: tiny, modalities: [img, depth]}\ntrain: {batch: 2, compile: false}\n"
CLASSES = ["road", "sky <b>", "ä%"]
CONFUSION = [[5, 1, 0], [2, 7, 0], [0, 0, 0]]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment that a tracker's process is given, and nobody who is logged in."""
    for name, value in tracking.OPT_OUT.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def serve(name: str, run: Path, *messages: dict[str, Any], step: int = 0) -> list[dict[str, Any]]:
    """What a tracker's process does and says, without the process."""
    (run / "trackers").mkdir(parents=True, exist_ok=True)
    lines = [{"folder": str(run), "recipe": RECIPE, "step": step}, *messages, {"end": True}]
    answers = io.BytesIO()
    trackers.serve(name, io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode()), answers)
    signal.alarm(0)  # what ends a tracker's process that hangs would end this one
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def row(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "values": {"train/loss": loss, "train/lr": 1e-3}}


def validation(run: Path, step: int) -> list[dict[str, Any]]:
    sheet = np.zeros((24, 32, 3), np.uint8)
    sheet[:12] = 200
    images.write_png(run / "samples" / "validation.png", sheet)
    iou = {f"validation/iou/{name}": 50.0 + number for number, name in enumerate(CLASSES)}
    shown = {"picture": str(run / "samples" / "validation.png"), "classes": CLASSES, "confusion": CONFUSION}
    return [{"step": step, "values": {"validation/miou": 41.5, **iou}}, {"step": step, **shown}]


def test_tensorboard_has_curves_pictures_and_the_recipe_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    (said,) = serve("tensorboard", run, row(1, 3.0), row(2, 2.0), *validation(run, 2), row(3, 9.0))
    assert said["note"].endswith(f"tensorboard --logdir {run}/trackers/tensorboard")
    serve("tensorboard", run, row(3, 1.0), row(4, 0.5), step=2)
    found = EventAccumulator(str(run / "trackers" / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(1, 3), (2, 2), (3, 1), (4, 0.5)]
    assert found.Scalars("validation/miou")[0].value == 41.5
    assert {f"validation/iou/{name}" for name in CLASSES} <= set(found.Tags()["scalars"])
    pictures = {tag.rpartition("/")[0]: found.Images(tag) for tag in found.Tags()["images"]} or {
        tag: found.Images(tag) for tag in found.Tags()["images"]
    }
    assert {each.step for picture in pictures.values() for each in picture} == {2}
    assert any("samples" in tag for tag in found.Tags()["images"])
    assert any("confusion" in tag for tag in found.Tags()["images"])
    (text,) = found.Tensors("recipe/text_summary")
    assert b"modalities: [img, depth]" in text.tensor_proto.string_val[0]


def test_tensorboard_forgets_a_run_that_was_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for loss in (3.0, 2.0):
        serve("tensorboard", tmp_path / "run", row(1, loss), row(2, loss / 2))
    found = EventAccumulator(str(tmp_path / "run" / "trackers" / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(1, 2), (2, 1)]
    assert len(found.Tensors("recipe/text_summary")) == 1


def test_mlflow_has_values_artifacts_and_parameters_and_a_resumed_run_doubles_nothing(tmp_path: Path) -> None:
    import mlflow

    run = tmp_path / "a run"
    (said,) = serve("mlflow", run, row(1, 3.0), row(2, 2.0), *validation(run, 2), row(3, 1.0))
    uri = f"sqlite:///{run}/trackers/mlflow/mlflow.db"
    assert said["note"].startswith(uri)
    serve("mlflow", run, row(3, 1.0), row(4, 0.5), step=2)
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'memorysam'")
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.run_name == "a run" and record.info.status == "FINISHED"
    history = client.get_metric_history(record.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(1, 3), (2, 2), (3, 1), (4, 0.5)]
    assert client.get_metric_history(record.info.run_id, "validation/iou/sky _b_")[0].value == 51
    assert record.data.params["train.batch"] == "2" and record.data.params["data.modalities"] == "['img', 'depth']"
    artifacts = run / "trackers" / "mlflow" / "artifacts" / record.info.run_id / "artifacts"
    place = artifacts / "validation" / "step-00000002"
    assert {path.name for path in place.iterdir()} == {"validation.png", "confusion.png", "confusion.json"}
    assert json.loads((place / "confusion.json").read_text())["confusion"] == CONFUSION
    assert images.read(place / "validation.png").shape == (24, 32, 3)


def records(folder: Path) -> Iterator[Any]:
    """The records of a W&B offline file: LevelDB's log, blocks of 32 KiB with pieces of records, behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, place, pieces = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        rest = 32768 - place % 32768
        if rest < 7:
            place += rest
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)  # behind a CRC
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def test_wandb_is_offline_unasked_and_has_values_pictures_and_the_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (said,) = serve("wandb", run, row(1, 3.0), *validation(run, 1))
    assert said["note"].startswith("offline in ") and "wandb sync" in said["note"]
    serve("wandb", run, row(2, 2.5), step=1)
    first, second = sorted((run / "trackers" / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    name = json.loads((run / "trackers" / "wandb.json").read_text())["run"]
    assert first.name.endswith(name) and second.name.endswith(name), "one record, whatever it is resumed"
    found = list(records(first))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.history.item}
        for each in found
        if each.WhichOneof("record_type") == "history"
    ]
    values: dict[str, Any] = {key: value for one in rows for key, value in one.items()}
    assert values["train/loss"] == 3.0 and values["validation/miou"] == 41.5
    assert values["validation/iou/sky <b>"] == 51
    kinds = {key.removesuffix("/_type"): value for key, value in values.items() if key.endswith("/_type")}
    assert kinds["validation/samples"] == kinds["validation/confusion"] == "images/separated"
    assert kinds["validation/counts"] == "table-file"
    (table,) = first.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [[name, *row] for name, row in zip(CLASSES, CONFUSION, strict=True)]
    config = [item.key for each in found for item in each.run.config.update] + [
        item.key for each in found for item in each.config.update
    ]
    assert "train.batch" in config


def test_trackio_has_the_values_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("TRACKIO_DIR", str(run / "trackers" / "trackio"))
    (said,) = serve("trackio", run, row(1, 3.0), *validation(run, 1))
    assert "trackio show" in said["note"]
    with sqlite3.connect(run / "trackers" / "trackio" / "memorysam.db") as database:
        found = [json.loads(line[0]) for line in database.execute("select metrics from metrics")]
    assert {"train/loss": 3.0, "train/lr": 1e-3}.items() <= found[0].items()
    assert len(list((run / "trackers" / "trackio" / "media").rglob("*.png"))) == 2


def test_a_tracker_that_cannot_start_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.KINDS, "mlflow", lambda *_, **__: (_ for _ in ()).throw(OSError("no\nserver")))
    assert serve("mlflow", tmp_path / "run", row(1, 3.0)) == [{"failed": "OSError: no server"}]


def test_a_passing_trouble_is_told_once_and_the_rest_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []

    class Away:
        where, own = "there", tmp_path

        def log(self, values: dict[str, float], step: int) -> None:
            if step < 3:
                raise ConnectionError("away")
            logged.append(step)

        def finish(self) -> None:
            logged.append(-1)

    monkeypatch.setitem(trackers.KINDS, "mlflow", lambda *_, **__: Away())
    said = serve("mlflow", tmp_path / "run", *(row(step, 1.0) for step in range(1, 5)))
    assert said == [{"note": "there"}, {"trouble": "step 1: ConnectionError: away"}]
    assert logged == [3, 4, -1]


@pytest.mark.parametrize(
    ("key", "netrc", "expected"),
    [("abc", "", True), ("", "", False), ("", "machine api.wandb.ai login user password x", True),
     ("", "machine example.org login user password x", False)],
)  # fmt: skip
def test_wandb_is_online_only_for_who_is_logged_in(
    key: str, netrc: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    path = tmp_path / "netrc"
    path.write_text(netrc)
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert trackers._is_logged_in() is expected


def test_a_recipe_is_flattened_by_dots() -> None:
    assert trackers.flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == {"a.b": 1, "a.c.d": "None", "e": "[1, 2]"}
