"""``Predictor``: arrays in, class maps out; the same bits as the command's."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli import DataError, MemorySamError, Predictor, Result, UnlikeTraining, app
from memorysam_cli.dataset import ValueRange
from memorysam_cli.engine.predict import predictor as module
from memorysam_cli.engine.predict.segment import look
from memorysam_cli.errors import EnvironmentFault, UsageError, WeightsError
from memorysam_cli.report import pictures
from memorysam_cli.storage import documents, images

from ...commands.trained import save_weights
from ..stand_ins import CLASSES, PALETTE, write_data

pytestmark = pytest.mark.filterwarnings("ignore::memorysam_cli.UnlikeTraining")
Scene = dict[str, Any]


def make_scenes() -> dict[str, Scene]:
    """Sizes, types, values that are no measurement, sensors that are missing or of another resolution."""
    rng = np.random.Generator(np.random.PCG64(5))

    def rgb(*size: int) -> Any:
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)

    def depth(*size: int) -> Any:
        return rng.integers(0, 65536, size, dtype=np.uint16)

    holes = rng.normal(2, 1, (33, 47)).astype(np.float32)
    holes[5:20, 3:30], holes[0, 0] = np.nan, np.inf
    return {
        "a-plain": {"img": rgb(41, 57), "depth": depth(41, 57)},
        "b-same-size": {"img": rgb(41, 57), "depth": depth(41, 57)},
        "c-no-depth": {"img": rgb(41, 57)},
        "d-no-image": {"depth": depth(64, 64)},
        "e-nan": {"img": rgb(33, 47), "depth": holes},
        "f-half": {"img": rgb(40, 60), "depth": depth(20, 30)},
        "g-gray": {"img": rgb(32, 32)[..., 0], "depth": (depth(32, 32) % 9000 - 4000).astype(np.int16)},
        "h-wide": {"img": rgb(16, 90), "depth": rng.normal(0, 9, (16, 90))},
        "i-one-channel": {"img": rgb(8, 8)[..., :1], "depth": depth(8, 8)[..., None]},
        "j-bands": {"img": np.concatenate([rgb(50, 40), rgb(50, 40)[..., :1]], axis=2), "depth": depth(50, 40)},
    }


SCENES = make_scenes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``w.safetensors``, ``photos/`` (a folder per scene), and what the command makes of them in ``out/``."""
    place = tmp_path_factory.mktemp("predictor")
    save_weights(place / "w.safetensors", write_data(place / "data").info)
    for name, scene in SCENES.items():
        for sensor, values in scene.items():
            (place / "photos" / name).mkdir(parents=True, exist_ok=True)
            np.save(place / "photos" / name / f"{sensor}.npy", values)
    words = ["predict", place / "photos", "-w", place / "w.safetensors", "--out", place / "out", "--device", "cpu"]
    options = ["--workers", "0", "--confidence", "--probabilities", "float16", "-q"]
    assert app.run([*map(str, words), *options]) == 0
    return place


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Iterator[Predictor]:
    with Predictor(folder / "w.safetensors", device="cpu") as made:
        yield made


def same(result: Result, out: Path, name: str) -> None:
    """A result is what the command wrote of a scene."""
    np.testing.assert_array_equal(result.classes, images.read(out / "masks" / f"{name}.png"))
    assert result.classes.dtype == np.uint8 and result.confidence.dtype == np.float32
    written = images.read(out / "confidence" / f"{name}.png")
    np.testing.assert_array_equal(np.rint(result.confidence * np.float32(255)).astype(np.uint8), written)
    with np.load(out / "probabilities" / f"{name}.npz") as found:
        assert found["classes"].tolist() == list(CLASSES)
        np.testing.assert_array_equal(result.probabilities().astype(np.float16), found["probabilities"])


def test_a_list_is_the_commands_batch_bit_for_bit(folder: Path, predictor: Predictor) -> None:
    results = predictor(list(SCENES.values()))
    lines = {line["id"]: line for line in documents.read_json_lines(folder / "out/predictions.jsonl")}
    assert list(lines) == list(SCENES)
    for (name, scene), result in zip(SCENES.items(), results, strict=True):
        same(result, folder / "out", name)
        assert (
            list(result.modalities) == lines[name]["modalities"] == [each for each in ("img", "depth") if each in scene]
        )


@pytest.mark.parametrize("name", list(SCENES))
def test_paths_tensors_and_arrays_are_one(name: str, folder: Path, predictor: Predictor) -> None:
    scene = SCENES[name]
    arrays = predictor(scene)
    for other in (
        {sensor: folder / "photos" / name / f"{sensor}.npy" for sensor in scene},
        {sensor: str(folder / "photos" / name / f"{sensor}.npy") for sensor in scene},
        {sensor: torch.from_numpy(values) for sensor, values in scene.items()},
        {"img": None, "depth": None, **{sensor: np.asfortranarray(values) for sensor, values in scene.items()}},
        {sensor: values.astype(values.dtype.newbyteorder(">")) for sensor, values in scene.items()},
    ):
        found = predictor(other)
        np.testing.assert_array_equal(found.classes, arrays.classes)
        np.testing.assert_array_equal(found.confidence, arrays.confidence)


def test_a_result_by_hand(predictor: Predictor) -> None:
    scene = SCENES["a-plain"]
    result = predictor(scene)
    probabilities = result.probabilities()
    assert probabilities.shape == (4, 41, 57) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(0), result.classes)
    np.testing.assert_array_equal(probabilities.max(0), result.confidence)
    expected = pictures.overlay(scene["img"], result.classes, PALETTE)
    np.testing.assert_array_equal(result.overlay(), expected)
    assert result.class_names == predictor.class_names == CLASSES
    assert result.palette == predictor.palette == PALETTE and predictor.modalities == ("img", "depth")
    assert repr(result) == "<Result 41×57, 4 classes, from img, depth>"
    result.free()
    with pytest.raises(UsageError, match="were freed"):
        result.probabilities()


def test_the_callers_arrays_stay_and_may_be_used_again(predictor: Predictor) -> None:
    scene = {sensor: values.copy() for sensor, values in SCENES["e-nan"].items()}
    result = predictor(scene)
    for sensor, values in SCENES["e-nan"].items():
        np.testing.assert_array_equal(scene[sensor], values)
    before = result.overlay()
    scene["img"][:] = 0  # a camera's buffer gets its next picture
    np.testing.assert_array_equal(result.overlay(), before)
    for values in scene.values():
        values.flags.writeable = False
    predictor(scene)


def test_thresholds_by_hand(folder: Path, predictor: Predictor) -> None:
    plain = predictor(SCENES["a-plain"])
    found = int(plain.classes[0, 0])
    needed = float(np.median(plain.confidence[plain.classes == found]))
    below = (plain.classes == found) & (plain.confidence < np.float32(needed))
    assert below.any() and not below.all()
    for unsure, value in ((None, 255), (255, 255), (CLASSES[3], 3), (2, 2)):
        with Predictor(
            folder / "w.safetensors", device="cpu", thresholds={CLASSES[found]: np.float32(needed)}, unsure=unsure
        ) as careful:
            result = careful(SCENES["a-plain"])
        np.testing.assert_array_equal(result.classes, np.where(below, value, plain.classes))
        np.testing.assert_array_equal(result.confidence, plain.confidence)
        assert result.overlay().shape == (41, 57, 3)


BAD: dict[str, tuple[Any, str]] = {
    "a wrong name": ({"imgg": SCENES["a-plain"]["img"]}, "no modality 'imgg'; did you mean 'img'?"),
    "nothing": ({}, "has none of the modalities img, depth"),
    "only None": ({"img": None}, "has none of the modalities img, depth"),
    "no mapping": ([3], "scene 0: is of type 'int'; give a mapping"),
    "no scenes": (3, "a scene is of type 'int'; give a mapping"),
    "a text": ("img.png", "a scene is of type 'str'; give a mapping"),
    "one dimension": ({"img": np.zeros(4, np.uint8)}, r"'img': an array of shape \(4,\)"),
    "no pixel": ({"img": np.zeros((0, 4), np.uint8)}, r"'img': an array of shape \(0, 4\)"),
    "channels first": ({"img": np.zeros((3, 40, 50), np.uint8)}, r"np.moveaxis\(array, 0, -1\)"),
    "a batch": ({"img": np.zeros((1, 4, 4, 3), np.uint8)}, r"'img': an array of shape \(1, 4, 4, 3\)"),
    "five channels": ({"img": np.zeros((4, 4, 5), np.uint8)}, "'img': has 5 channels"),
    "int64": ({"img": np.zeros((4, 4), np.int64)}, "'img': holds int64; allowed are uint8"),
    "bool": ({"depth": np.zeros((4, 4), bool)}, "'depth': holds bool; allowed"),
    "complex": ({"depth": np.zeros((4, 4), complex)}, "'depth': an array of complex128"),
    "objects": ({"depth": np.array([["a"]], object)}, "'depth': contains Python objects"),
    "texts": ({"depth": np.array([["a", "b"]])}, "'depth': an array of <U1"),
    "too large values": ({"depth": np.full((4, 4), 1e39)}, "'depth': holds values beyond 3.4e"),
    "masked": ({"depth": np.ma.masked_array(np.zeros((4, 4)), True)}, "'depth': is a masked array"),
    "bfloat16": ({"img": torch.zeros(4, 4, dtype=torch.bfloat16)}, "'img': is a tensor of torch.bfloat16"),
    "a number": ({"img": 7}, "'img': is of type 'int'; give an array"),
    "lists": ({"img": [[1, 2], [3, 4]]}, "'img': is of type 'list'; give an array"),
    "two for one": ({"img": (np.zeros((4, 4), np.uint8),) * 2}, "modality 'img' takes one file, not 2"),
    "no file": ({"img": "gone/rgb.png"}, "gone/rgb.png: no such file"),
    "a name that no file can have": ({"img": "a\0.png"}, "embedded null byte"),
    "another view": (
        {"img": np.zeros((40, 40), np.uint8), "depth": np.zeros((40, 90), np.uint16)},
        r"scene given: sizes differ \(img 40×40, depth 40×90\)",
    ),
    "the second": ([SCENES["a-plain"], {"img": np.zeros((4, 4), int)}], "scene 1: 'img': holds int64"),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_wrong_in_a_scene_is_one_exception_with_one_line(name: str, predictor: Predictor) -> None:
    scene, message = BAD[name]
    with pytest.raises(DataError, match=message) as raised:
        predictor(scene)
    assert "\n" not in str(raised.value) and isinstance(raised.value, MemorySamError)
    assert predictor(SCENES["a-plain"]).classes.shape == (41, 57), "the predictor continues"


def test_a_picture_beyond_the_limit_is_refused_as_a_file_is(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORYSAM_MAX_PIXELS", "100")
    with pytest.raises(DataError, match=r"'img': 41 x 57 = 0\.002337 Mpx is more than"):
        predictor(SCENES["a-plain"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "gpu"}, UsageError, "gpu: is not a device"),
        ({"device": "cuda:99"}, EnvironmentFault, "cuda:99: this machine has"),
        ({"modalities": ["lidar"]}, UsageError, "the weights know no such modality"),
        ({"batch": 0}, UsageError, "batch=0"),
        ({"precision": "tf32"}, UsageError, "tf32 needs"),
        ({"thresholds": {"raod": 0.5}}, UsageError, "no class 'raod'; did you mean 'road'?"),
        ({"thresholds": {"road": 1.5}}, UsageError, "must be a probability from 0 to 1"),
        ({"thresholds": {"road": 0.5}, "unsure": 4}, UsageError, "must be 255, or a class by name or number"),
        ({"thresholds": {"road": float("nan")}}, UsageError, "must be a probability from 0 to 1"),
        ({"thresholds": {"road": "0.5"}}, UsageError, "must be a probability from 0 to 1"),
        ({"unsure": 0}, UsageError, "is for pixels below a threshold"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(options: Any, error: type[Exception], message: str, folder: Path) -> None:
    with pytest.raises(error, match=message):
        Predictor(folder / "w.safetensors", **{"device": "cpu", **options})


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    for path in (tmp_path / "gone.safetensors", tmp_path, tmp_path / "w.safetensors"):
        with pytest.raises(WeightsError):
            Predictor(path, device="cpu")


def test_threads_share_one_predictor(predictor: Predictor) -> None:
    names = list(SCENES)
    alone = {name: predictor(SCENES[name]) for name in names}
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work(offset: int) -> None:
        start.wait()
        for name in names[offset:] + names[:offset]:
            found = predictor(SCENES[name])
            if not np.array_equal(found.confidence, alone[name].confidence):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_warms_up_once_and_closes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []
    from memorysam_cli.model.network import MemorySAM

    logits = MemorySAM.logits

    def counted(network: Any, frames: Any) -> Any:
        shapes.append([tuple(frame.shape) for frame in frames])
        return logits(network, frames)

    monkeypatch.setattr(MemorySAM, "logits", counted)
    with Predictor(folder / "w.safetensors", device="cpu", warm_up=True) as made:
        assert shapes == [[(1, 3, 32, 32)] * 2], "once, at the weights' own size, with all sensors"
        result = made(SCENES["a-plain"])
        made(SCENES["a-plain"])
        assert len(shapes) == 3
    assert result.probabilities().shape == (4, 41, 57), "results outlive it"
    made.close()
    with pytest.raises(UsageError, match="is closed"):
        made(SCENES["a-plain"])
    with Predictor(folder / "w.safetensors", device="cpu"):
        assert len(shapes) == 3, "on a CPU nothing is gained"


def test_values_unlike_those_of_training_warn_once_a_sensor_and_type(tmp_path: Path) -> None:
    known = ValueRange(scenes=3, dtypes=("uint16",), low=100, middle=500, high=1000)
    info = write_data(tmp_path / "data").info.model_copy(update={"ranges": {"depth": known}})
    save_weights(tmp_path / "w.safetensors", info)
    like = {"depth": np.full((8, 8), 700, np.uint16)}
    large = {"depth": np.full((8, 8), 60000, np.uint16)}
    meters = {"depth": np.full((8, 8), 0.7, np.float32)}
    with warnings.catch_warnings(record=True) as said, Predictor(tmp_path / "w.safetensors", device="cpu") as made:
        warnings.simplefilter("always")
        made({"img": SCENES["i-one-channel"]["img"], **like})
        assert not said
        made({"img": SCENES["i-one-channel"]["img"], **meters})
        made({"img": SCENES["i-one-channel"]["img"], **meters})
        (only,) = said
        assert only.category is UnlikeTraining and only.filename == __file__
        assert str(only.message).startswith("'depth': the weights were trained on uint16 100 to 1000 (1–99 %), these")
    with Predictor(tmp_path / "w.safetensors", device="cpu", strict=True) as made:
        made(like)
        made([like, like])
        for bad in (meters, large, [like, like, large]):  # however many scenes of this type were right before
            with pytest.raises(DataError, match="--strict refuses that"):
                made(bad)
    with Predictor(tmp_path / "w.safetensors", device="cpu") as made, pytest.warns(UnlikeTraining, match="60000 to"):
        made(like)
        made(large)  # a first scene that is right says nothing of the second


def test_a_set_of_sensors_that_training_never_showed_warns_once(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as said, Predictor(folder / "w.safetensors", device="cpu") as made:
        warnings.simplefilter("always")
        made(SCENES["a-plain"])
        assert not said
        made([SCENES["a-plain"], SCENES["c-no-depth"], SCENES["c-no-depth"]])
        made(SCENES["c-no-depth"])
        (only,) = said
        assert only.category is UnlikeTraining and str(only.message).startswith("2 of 2 scenes have a combination of")


def test_an_empty_list_is_no_scene(predictor: Predictor) -> None:
    assert predictor([]) == []


def test_it_is_the_commands_own_code() -> None:
    assert module.look is look, "the loop of predict, not a second one"


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        "import sys, memorysam_cli; from memorysam_cli import DataError; "
        "print({'torch', 'numpy', 'cv2', 'peft', 'pydantic'} & set(sys.modules), 'Predictor' in dir(memorysam_cli))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "set() True\n"
    with pytest.raises(ImportError):
        from memorysam_cli import Predictr  # type: ignore[attr-defined]  # noqa: F401
