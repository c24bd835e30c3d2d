"""``predict --follow``: each scene exactly once, and at the end what the command without it writes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memorysam_cli.dataset import Layout
from memorysam_cli.engine.predict import run as running
from memorysam_cli.errors import Terminated
from memorysam_cli.storage import documents, images

from ..engine.predict.jobs import Killed, tree
from ..engine.stand_ins import write_data
from .trained import Ended, Program, save_weights

Step = Callable[[], object]
FOLLOW = ("predict", "rig", "-w", "w.safetensors", "--device", "cpu", "--workers", 0, "--follow")
PLAIN = ("predict", "rig", "-w", "w.safetensors", "--device", "cpu", "--workers", 0, "--batch", 1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``w.safetensors``, and ``all/img`` and ``all/depth`` with six scenes of two sizes, to be sent to ``rig/``."""
    folder = tmp_path_factory.mktemp("following")
    save_weights(folder / "w.safetensors", write_data(folder / "data").info)
    shutil.rmtree(folder / "data")
    (folder / "rig").mkdir()
    rng = np.random.Generator(np.random.PCG64(1))
    for number in range(6):
        size = ((40, 56), (33, 47))[number % 2]
        rgb, depth = rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(0, 65536, size, dtype=np.uint16)
        images.write_png(folder / f"all/img/{number:03}.png", rgb, fsync=False)
        images.write_png(folder / f"all/depth/{number:03}.png", depth, fsync=False)
    return folder


class Clock:
    """Stands for ``time``: nothing sleeps, and each sleep is a step of the world outside; after the last, Ctrl-C."""

    def __init__(self, steps: list[Step], *, end: BaseException | None = None) -> None:
        self.steps: Iterator[Step] = iter(steps)
        self.now = 0.0
        self.end = KeyboardInterrupt() if end is None else end

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        step = next(self.steps, None)
        if step is None:
            raise self.end
        step()


def send(number: int, *sensors: str, cut: int | None = None) -> Step:
    """A scene's files arrive in the rig's folder; or only the first bytes of them."""

    def step() -> None:
        for sensor in sensors or ("img", "depth"):
            data = Path(f"all/{sensor}/{number:03}.png").read_bytes()
            target = Path(f"rig/{sensor}/{number:03}.png")
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(data[:cut])
            os.utime(target, (1, number))  # so that two runs of a test have the same stamps

    return step


def nothing() -> None:
    """A look at an unchanged folder."""


def ids(out: Path = Path("masks")) -> list[str]:
    return [line["id"] for line in documents.read_json_lines(out / "predictions.jsonl")]


@pytest.fixture
def follow(here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Follows ``rig/`` while steps happen, one between two looks, a second apart."""

    def run(steps: list[Step], *words: object, end: BaseException | None = None) -> Ended:
        monkeypatch.setattr(running, "time", Clock(steps, end=end))
        return memorysam(*FOLLOW, *words)

    return run


def test_what_arrived_is_at_the_end_what_the_command_without_it_writes(
    follow: Callable[..., Ended], memorysam: Program
) -> None:
    steps = [send(2), send(0), nothing, nothing, send(1), send(3, "depth"), send(3, "img"), *[nothing] * 3]
    ended = follow(steps, "--color", "--confidence")
    assert ended.code == 130 and "stopped by a signal; the same command continues" in ended.err
    assert ended.out.splitlines()[:4] == [f"masks/masks/{number:03}.png" for number in (2, 0, 1, 3)]
    assert memorysam(*PLAIN, "--color", "--confidence", "--out", "plain").code == 0
    plain = {name: data.replace(b'"plain', b'"masks') for name, data in tree(Path("plain")).items()}
    followed = tree(Path("masks"))
    followed.pop("errors.jsonl", None)
    assert followed == plain, "and in its order"
    again = memorysam(*PLAIN, "--color", "--confidence")
    assert again.code == 0 and "already complete" in again.err


RECORDED = 1_700_000_000_000_000_000
LAYOUT = Layout(modalities={"img": ("camera/*.png",), "depth": ("tof/*.png",)}, pair="nearest", tolerance_ns=20_000_000)


def record(number: int, *, behind_ms: int | None) -> Step:
    """A photo every 100 ms, and a depth image some time behind it, both named by their time; or none."""

    def step() -> None:
        time_ns = RECORDED + number * 100_000_000
        names = {"img": ("camera", 0)} | ({} if behind_ms is None else {"depth": ("tof", behind_ms * 1_000_000)})
        for sensor, (place, behind_ns) in names.items():
            target = Path(f"rig/{place}/{time_ns + behind_ns}.png")
            target.parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(f"all/{sensor}/{number:03}.png", target)
            os.utime(target, (1, number))

    return step


@pytest.mark.parametrize("is_remembered", [True, False], ids=["remembered", "--modality"])
def test_scenes_pair_by_time_as_they_arrive(
    follow: Callable[..., Ended], memorysam: Program, is_remembered: bool
) -> None:
    words: tuple[str, ...] = ()
    if is_remembered:
        save_weights(Path("w.safetensors"), write_data(Path("data")).info.model_copy(update={"layout": LAYOUT}))
        shutil.rmtree("data")
    else:
        patterns = [f"{name}={group[0]}" for name, group in LAYOUT.modalities.items()]
        words = ("--modality", patterns[0], "--modality", patterns[1], "--pair", "nearest", "--tolerance", "20ms")
    # The second frame's depth is too far, so that it waits for ever; a frame without a depth image waits likewise.
    steps = [record(0, behind_ms=7), record(1, behind_ms=30), record(2, behind_ms=None), record(3, behind_ms=-9)]
    ended = follow([*steps, *[nothing] * 4], *words)
    assert ended.code == 130, ended.err
    expected = [str(RECORDED + number * 100_000_000) for number in (0, 3)]
    assert ids() == expected
    lines = documents.read_json_lines(Path("masks/predictions.jsonl"))
    assert [line["inputs"]["depth"] for line in lines] == [
        [f"tof/{RECORDED + number * 100_000_000 + ms * 1_000_000}.png"] for number, ms in ((0, 7), (3, -9))
    ]
    assert all(line["modalities"] == ["img", "depth"] for line in lines)


def test_a_restart_does_nothing_twice_and_goes_on(
    follow: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow([send(0), send(1), *[nothing] * 4]).code == 130
    before = {path: path.stat().st_mtime_ns for path in Path("masks/masks").glob("*.png")}
    assert ids() == ["000", "001"]
    ended = follow([send(2), *[nothing] * 3])
    assert ended.code == 130 and "continues: 2 scenes done" in ended.err
    assert ended.out.splitlines()[0] == "masks/masks/002.png"
    assert ids() == ["000", "001", "002"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # A rig that clears up behind itself loses no result; one whose picture is another one gets another mask.
    for sensor in ("img", "depth"):
        Path(f"rig/{sensor}/000.png").unlink()
    send(3)()
    Path("rig/img/001.png").write_bytes(Path("all/img/003.png").read_bytes())
    Path("rig/depth/001.png").write_bytes(Path("all/depth/003.png").read_bytes())
    ended = follow([nothing] * 4)
    assert "1 scene is done again: inputs have changed" in ended.err and ended.code == 130
    assert ended.out.splitlines()[:2] == ["masks/masks/001.png", "masks/masks/003.png"]
    assert ids() == ["001", "002", "003", "000"], "those that are gone come last"
    one, three = (Path(f"masks/masks/{name}.png").read_bytes() for name in ("001", "003"))
    assert one == three


def test_a_signal_before_it_has_begun_leaves_what_was_done(
    follow: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(0)(), send(1)()
    assert follow([nothing] * 4).code == 130
    done = {path: path.read_bytes() for path in Path("masks").rglob("*.png")}

    def signalled(path: Path, *_: object, **__: object) -> None:
        with path.open("ab") as stream:
            stream.write(b'{"status": "done"}\n')  # somebody's own line, which nobody has looked at yet
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running.ledger, "take_up", signalled)
        ended = follow([nothing])
        assert ended.code == 130 and ended.out == ""
    assert follow([nothing] * 4).code == 130 and ids() == ["000", "001"]
    assert done == {path: path.read_bytes() for path in Path("masks").rglob("*.png")}


@pytest.mark.parametrize("line", [0, 1, 3])
def test_a_kill_at_any_line_costs_nothing(
    line: int, follow: Callable[..., Ended], memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        send(number)()
    append, count = documents.append_json_line, 0

    def killed(path: Path, value: Any, **options: Any) -> None:
        nonlocal count
        if isinstance(value, dict) and value.get("status") == "done":
            count += 1
            if count > line:
                raise Killed
        append(path, value, **options)

    with monkeypatch.context() as patch:
        patch.setattr(documents, "append_json_line", killed)
        with pytest.raises(Killed):
            from memorysam_cli.engine.predict import job as jobs

            patch.setattr(running, "time", Clock([nothing] * 4))
            made = jobs.plan(Path("w.safetensors"), scenes=Path("rig"), batch=1, follows=True)
            running.follow(made, Path("masks"), jobs.RunOptions("cpu", workers=0), running.Following())
    ended = follow([nothing] * 4)
    assert ended.code == 130 and ids() == ["000", "001", "002", "003"]
    assert len([text for text in ended.out.splitlines() if text.endswith(".png")]) == 4 - line
    assert memorysam(*PLAIN, "--out", "plain").code == 0
    assert tree(Path("masks"))["predictions.jsonl"] == tree(Path("plain"))["predictions.jsonl"]


def test_a_file_that_grows_is_waited_for(follow: Callable[..., Ended]) -> None:
    cut = [send(0, "depth"), send(0, "img", cut=0), *[nothing] * 5, send(0, "img", cut=90), nothing, send(0, "img")]
    ended = follow([*cut, nothing])  # whole for one second of the two
    assert ended.code == 130 and ended.out == ""
    assert "1 scene was not whole at the end and not segmented: 000" in ended.err
    assert not Path("masks/_SUCCESS.json").exists()
    assert follow([nothing, nothing, nothing]).out.splitlines()[0] == "masks/masks/000.png"


def test_a_late_sensor_is_waited_for_or_not(follow: Callable[..., Ended], memorysam: Program) -> None:
    steps = [send(0), send(1, "img"), *[nothing] * 9]
    ended = follow([*steps, send(1, "depth"), *[nothing] * 3])
    assert "scenes wait for 'depth'; segment them without it with --late SECONDS" in ended.err
    assert ended.err.count("wait for") == 1
    lines = documents.read_json_lines(Path("masks/predictions.jsonl"))
    assert [line["modalities"] for line in lines] == [["img", "depth"]] * 2
    shutil.rmtree("rig/depth"), shutil.rmtree("rig/img")
    ended = follow([*steps, send(1, "depth"), *[nothing] * 3], "--late", 5, "--out", "late")
    lines = documents.read_json_lines(Path("late/predictions.jsonl"))
    assert [(line["id"], line["modalities"]) for line in lines] == [("000", ["img", "depth"]), ("001", ["img"])]
    assert "001: one of its sensors came too late" in ended.err


def test_a_limit_ends_it_with_0_and_json_is_one_object(follow: Callable[..., Ended]) -> None:
    ended = follow([send(4), send(0), send(1), *[nothing] * 9], "--limit", 2, "--json")
    assert ended.code == 0 and ended.answer["done"] == 2
    assert documents.read_json(Path("masks/_SUCCESS.json")) == ended.answer
    ended = follow([nothing] * 5, "--limit", 3, "--json")
    assert (ended.code, ended.answer["done"]) == (0, 3)
    ended = follow([send(5), *[nothing] * 4], "--json", end=Terminated(signal.SIGTERM))
    assert ended.code == 143 and ended.answer["done"] == 4 and ended.answer["error"]["code"] == 143


def test_a_folder_that_is_empty_or_odd_is_waited_for_and_told_once(follow: Callable[..., Ended]) -> None:
    def odd() -> None:
        Path("rig/img/000.jpg").write_bytes(b"a second one")

    def fixed() -> None:
        Path("rig/img/000.jpg").unlink()

    ended = follow([nothing, nothing, send(0), odd, nothing, nothing, fixed, *[nothing] * 4])
    assert ended.code == 130 and ids() == ["000"]
    assert ended.err.count("no scene found") == 1 and ended.err.count("stand for the same thing") == 1
    nobody = follow([nothing], "--out", "none", "--json")
    assert nobody.code == 130


def test_a_bad_scene_ends_it_or_is_listed(follow: Callable[..., Ended]) -> None:
    def bad() -> None:
        Path("rig/img/001.png").write_bytes(Path("all/img/001.png").read_bytes()[:300])

    steps = [send(0), send(1, "depth"), bad, *[nothing] * 3]
    ended = follow(steps)
    assert ended.code == 3 and "001.png" in ended.err and "--on-error skip" in ended.err
    ended = follow([nothing] * 4, "--on-error", "skip")
    assert ended.code == 130 and "continues: 1 scene done" in ended.err
    assert [line["status"] for line in documents.read_json_lines(Path("masks/predictions.jsonl"))] == ["done", "failed"]
    ended = follow([send(1), *[nothing] * 4], "--on-error", "skip")
    assert [line["status"] for line in documents.read_json_lines(Path("masks/predictions.jsonl"))] == ["done", "failed"]
    ended = follow([nothing] * 4, "--on-error", "skip", "--limit", 2)
    assert ended.code == 0 and ids() == ["000", "001"], "a fixed scene is taken up by the next start"


def test_another_prediction_is_not_replaced_by_mistake(follow: Callable[..., Ended], memorysam: Program) -> None:
    send(0)(), send(1)()
    assert follow([nothing] * 4).code == 130
    other = follow([nothing] * 4, "--color", "--resume")
    assert other.code == 2 and "a finished prediction of another job" in other.err
    assert follow([nothing] * 4, "--overwrite").out.splitlines()[0] == "masks/masks/000.png"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("predict", "--follow"), 2, "--follow: give the folder"),
        ((*FOLLOW, "--batch", 4), 2, "with --follow it is 1"),
        ((*FOLLOW, "--shard", "0/2"), 2, "is the work of one process"),
        ((*FOLLOW, "--engine", "ray"), 2, "is the work of one process"),
        ((*FOLLOW, "--split", "val"), 2, "is a prepared data set, which does not grow"),
        (("predict", "data", "-w", "w.safetensors", "--follow"), 2, "is a prepared data set, which does not grow"),
        (("predict", "w.safetensors", "-w", "w.safetensors", "--follow"), 3, "is a file"),
        (("predict", "rig", "--settle", 1), 2, "--settle: needs --follow"),
        (("predict", "rig", "--poll", 1), 2, "--poll: needs --follow"),
        (("predict", "rig", "--late", 1), 2, "--late: needs --follow"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused(
    words: tuple[object, ...], code: int, message: str, here: Path, memorysam: Program
) -> None:
    write_data(here / "data")
    ended = memorysam(*words)
    assert ended.code == code and message in ended.err and ended.err.count("\n") == 1
    assert not Path("masks").exists()
