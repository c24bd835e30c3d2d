"""Pairing by time: what names and tables say, and the pairs that are right, by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import inputs
from memorysam_cli.data.own import clocks
from memorysam_cli.data.own.folder import FolderRequest, FolderSurvey, survey
from memorysam_cli.data.own.patterns import Pattern
from memorysam_cli.dataset import DatasetInfo, Layout
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

MS = 10**6
NAMES = [
    ("1699999999.123456789", ("s", 1_699_999_999_123_456_789)),
    ("frame_12.5", ("s", 12_500_000_000)),
    ("1699999999123456789", ("ns", 1_699_999_999_123_456_789)),
    ("rgb_1699999999123456", ("us", 1_699_999_999_123_456_000)),
    ("1699999999123", ("ms", 1_699_999_999_123_000_000)),
    ("1699999999", ("s", 1_699_999_999_000_000_000)),
    ("cam0_1699999999_000000005", ("s and ns", 1_699_999_999_000_000_005)),
    # 1,700,000,000 s after 1970 it was 22:13:20 on 14 November 2023 in UTC.
    ("2023-11-14T22-13-20.123", ("a date", 1_700_000_000_123_000_000)),
    ("20231114_221320", ("a date", 1_700_000_000_000_000_000)),
    ("2023-11-14 22:13:20", ("a date", 1_700_000_000_000_000_000)),
    ("ir-120ms", ("ms", 120_000_000)),
    ("000123", None),
    ("0000000012", None),  # KITTI counts frames with ten digits
    ("cam1", None),
    ("2023-13-40T22-13-20", None),
]


@pytest.mark.parametrize(("name", "clock"), NAMES)
def test_the_time_of_a_name(name: str, clock: object) -> None:
    assert clocks.read_time(name) == clock


@pytest.mark.parametrize(
    ("first", "second", "tolerance", "pairs"),
    [
        ([0, 10, 20], [1, 11, 21], 5, [(0, 0), (1, 1), (2, 2)]),
        ([0, 10, 20], [6, 16], 5, [(1, 0), (2, 1)]),
        # 4 is nearest to both; but two pairs are more than one, and the other way is 4 + 4.
        ([0, 5], [4, 9], 4, [(0, 0), (1, 1)]),
        # One pair either way: the least offset wins.
        ([0, 5], [4], 10, [(1, 0)]),
        ([0], [20], 19, []),
        ([0], [20], 20, [(0, 0)]),
        ([], [1], 5, []),
    ],
)
def test_as_many_pairs_as_can_be_and_then_the_nearest(
    first: list[int], second: list[int], tolerance: int, pairs: list[tuple[int, int]]
) -> None:
    assert clocks.assign(first, second, tolerance) == pairs


def best_by_trying(first: list[int], second: list[int], tolerance: int) -> tuple[int, int]:
    """Of all one-to-one pairings, the one with most pairs and then the least sum."""
    best = (0, 0)
    for count in range(1, min(len(first), len(second)) + 1):
        for left in itertools.combinations(first, count):
            for right in itertools.permutations(second, count):
                apart = [abs(one - two) for one, two in zip(left, right, strict=True)]
                if max(apart) <= tolerance:
                    best = min(best, (-count, sum(apart)))
    return best


def test_no_other_pairing_is_better() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(150):
        first, second = (sorted(rng.integers(0, 25, rng.integers(0, 5)).tolist()) for _ in range(2))
        tolerance = int(rng.integers(0, 12))
        pairs = clocks.assign(first, second, tolerance)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        apart = [abs(first[i] - second[j]) for i, j in pairs]
        assert (-len(pairs), sum(apart)) == best_by_trying(first, second, tolerance)


def put(root: Path, *paths: str) -> None:
    for path in paths:
        images.write_png(root / path, np.zeros((4, 4), np.uint8), fsync=False)


def surveyed(root: Path, *, tolerance_ms: int = 20, times: tuple[str, ...] = (), **patterns: str) -> FolderSurvey:
    request = FolderRequest(
        "rig", {name: (Pattern(text),) for name, text in patterns.items()}, kinds=dict.fromkeys(patterns, "gray"),
        pair="nearest", tolerance_ns=tolerance_ms * MS, times=times,
    )  # fmt: skip
    return survey(root, request)


def files(found: FolderSurvey) -> list[tuple[str, ...]]:
    return [tuple(path for group in scene.files.values() for path in group) for scene in found.manifest.scenes]


RGB, IR = {"rgb": "rgb/*.png"}, {"ir": "ir/*.png"}


def test_two_clocks_of_a_rig_pair_one_to_one_and_the_rest_is_counted(tmp_path: Path) -> None:
    put(tmp_path, *(f"rgb/1700000000.{ms:03}.png" for ms in (0, 100, 200, 300)))
    # Unix time in ns beside seconds: one clock. 8 ms late; 15 ms early; nothing near 200; 3 ms late; one more alone.
    put(tmp_path, *(f"ir/{1_700_000_000_000 + ms}000000.png" for ms in (8, 85, 303, 500)))
    found = surveyed(tmp_path, **RGB, **IR)
    assert files(found) == [
        ("rgb/1700000000.000.png", "ir/1700000000008000000.png"),
        ("rgb/1700000000.100.png", "ir/1700000000085000000.png"),
        ("rgb/1700000000.300.png", "ir/1700000000303000000.png"),
    ]
    said = "'ir' pairs by time with 'rgb': 3 pairs within 20 ms; without a partner: 1 of 'rgb', 1 of 'ir'"
    assert said in found.notes and "1 of 4 frames of 'rgb' left out" in found.notes
    apart = clocks.offsets(tmp_path, found.manifest.scenes, found.manifest.info.layout)
    assert apart == {"ir": (8 * MS, -15 * MS, 3 * MS)}
    assert found.laws["files matched = files of scenes"]["left"] == 8


def test_names_that_meet_by_chance_are_told_to_pair_by_time(tmp_path: Path) -> None:
    """One of three pairs by name; three numbers that are no times say nothing of clocks."""
    put(tmp_path, *(f"rgb/1700000000.{ms:03}.png" for ms in (0, 100, 200)))
    put(tmp_path, *(f"ir/1700000000.{ms:03}.png" for ms in (0, 104, 208)))
    put(tmp_path, *(f"a/{number:03}.png" for number in (1, 2, 3)), *(f"b/{number:03}.png" for number in (1, 2, 4)))
    sensors = {"rgb": RGB["rgb"], "ir": IR["ir"]}, {"a": "a/*.png", "b": "b/*.png"}
    clocked, counted = (
        survey(
            tmp_path,
            FolderRequest("rig", {n: (Pattern(text),) for n, text in each.items()}, kinds=dict.fromkeys(each, "gray")),
        )
        for each in sensors
    )
    advice = (
        "4 of 5 names are not in every sensor's folder; the names contain times: add --pair nearest --tolerance 20ms"
    )
    assert advice in clocked.notes and not any("--pair" in note for note in counted.notes)


def test_recordings_never_mix(tmp_path: Path) -> None:
    # Both clocks begin at 0, so that times alone would pair across the two drives.
    put(tmp_path, "a/rgb/0.100.png", "b/rgb/0.104.png", "a/ir/0.105.png", "b/ir/0.120.png")
    assert files(surveyed(tmp_path, rgb="*/rgb/*.png", ir="*/ir/*.png")) == [
        ("a/rgb/0.100.png", "a/ir/0.105.png"),
        ("b/rgb/0.104.png", "b/ir/0.120.png"),
    ]


TABLES = {
    "a header with the unit": ("file,time_ms\nrgb/a.png,1000\nrgb/b.png,2000\nir/x.png,2005\nir/y.png,1005\n"),
    "TUM's, without a header": "# timestamp filename\n1.0 rgb/a.png\n2.0 rgb/b.png\n2.005 ir/x.png\n1.005 ir/y.png\n",
    "last names, semicolons": "name;t [s]\na.png;1\nb.png;2\nx.png;2.005\ny.png;1.005\n",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_gives_the_times(table: str, tmp_path: Path) -> None:
    put(tmp_path, "rgb/a.png", "rgb/b.png", "ir/x.png", "ir/y.png")
    (tmp_path / "times.csv").write_text(TABLES[table])
    found = surveyed(tmp_path, times=("times.csv",), **RGB, **IR)
    assert files(found) == [("rgb/a.png", "ir/y.png"), ("rgb/b.png", "ir/x.png")]


REFUSED = {
    "no time": (["rgb/0001.png"], ["ir/1.5.png"], "", "0001.png contains no time|'rgb': rgb/0001.png contains no time"),
    "two units in one folder": (
        ["rgb/1700000000123.png", "rgb/1700000001.png"], ["ir/1700000000123.png"], "",
        r"'rgb': times are written in (s|ms) \(.*\) and in (s|ms) \(.*\); write all in one unit",
    ),
    "a date beside a count from some start": (
        ["rgb/1700000000.5.png"], ["ir/0.5.png"], "", "'rgb' contains dates .*, 'ir' counts from some start",
    ),
    "too far": (
        ["rgb/0.0.png"], ["ir/0.5.png"], "", "within 20 ms of one of 'rgb' .* the nearest two are 500 ms apart",
    ),
    "a number without its unit": (
        ["rgb/a.png"], ["ir/b.png"], "file,time\na.png,7\nb.png,8\n", "times.csv:2: '7' has no time; name the column",
    ),
    "a table of other files": (
        ["rgb/a.png"], ["ir/b.png"], "file,time_ms\na.png,7\n", "has no time of any file of 'ir'",
    ),
    "one time of two files": (  # what looks like a time is none: 1.2 s
        ["rgb/v1.2_1700000000100.png", "rgb/v1.2_1700000000200.png"], ["ir/1.2.png"], "",
        r"rgb/v1.2_1700000000100.png and rgb/v1.2_1700000000200.png: are of one time \(1.2 s\)",
    ),
    "two times of one file": (
        ["rgb/a.png"], ["ir/b.png"], "a.png,1.5\na.png,1.6\n", "times.csv:2: 'a.png' has another time before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_refused(case: str, tmp_path: Path) -> None:
    rgb, ir, table, said = REFUSED[case]
    put(tmp_path, *rgb, *ir)
    if table:
        (tmp_path / "times.csv").write_text(table)
    with pytest.raises(DataError, match=said):
        surveyed(tmp_path, times=("times.csv",) * bool(table), **RGB, **IR)


def test_tables_of_two_sensors_whose_files_have_the_same_names_are_not_mixed_up(tmp_path: Path) -> None:
    put(tmp_path, "rgb/1.png", "rgb/2.png", "ir/1.png", "ir/2.png")
    (tmp_path / "rgb.csv").write_text("file,time_ms\n1.png,1000\n2.png,2000\n")
    (tmp_path / "ir.csv").write_text("file,time_ms\n1.png,2005\n2.png,1005\n")
    with pytest.raises(DataError, match=r"ir\.csv: '1\.png' has another time in rgb\.csv; in both, write files"):
        surveyed(tmp_path, times=("rgb.csv", "ir.csv"), **RGB, **IR)
    for name in ("rgb", "ir"):
        text = (tmp_path / f"{name}.csv").read_text()
        (tmp_path / f"{name}.csv").write_text(text.replace("\n1", f"\n{name}/1").replace("\n2", f"\n{name}/2"))
    found = surveyed(tmp_path, times=("rgb.csv", "ir.csv"), **RGB, **IR)
    assert files(found) == [("rgb/1.png", "ir/2.png"), ("rgb/2.png", "ir/1.png")]


LAYOUT = Layout(modalities={"rgb": ("cam/*.png",), "ir": ("heat/*.png",)}, pair="nearest", tolerance_ns=20 * MS)


def test_a_new_recording_of_the_same_rig_pairs_as_remembered(tmp_path: Path) -> None:
    put(tmp_path, "cam/5.000.png", "cam/5.100.png", "heat/5.007.png", "extra/1.png")
    found = inputs.discover(tmp_path, modalities=["rgb", "ir"], layout=LAYOUT)
    assert {scene.id: scene.files for scene in found.scenes} == {
        "5.000": {"rgb": ("cam/5.000.png",), "ir": ("heat/5.007.png",)},
        "5.100": {"rgb": ("cam/5.100.png",)},  # predicted without
    }
    assert "read as the weights' own data were: rgb=cam/*.png, ir=heat/*.png" in found.notes
    assert any("1 of 2 scenes lack 'ir'" in note for note in found.notes)


def test_a_remembered_layout_hides_no_other_reading(tmp_path: Path) -> None:
    put(tmp_path, "rgb/1.png", "ir/1.png", "cam/2.png")  # folders called as the sensors have more of them
    found = inputs.discover(tmp_path, modalities=["rgb", "ir"], layout=LAYOUT.model_copy(update={"pair": "name"}))
    assert [scene.files for scene in found.scenes] == [{"rgb": ("rgb/1.png",), "ir": ("ir/1.png",)}]
    # A sensor that is gone beside a folder that nobody knows: it may be that sensor, as ever.
    put(tmp_path / "two", "cam/1.png", "warm/1.png")
    with pytest.raises(DataError, match="no ir, but there is warm/; name each one"):
        inputs.discover(tmp_path / "two", modalities=["rgb", "ir"], layout=LAYOUT.model_copy(update={"pair": "name"}))


def test_patterns_that_are_given_must_match(tmp_path: Path) -> None:
    put(tmp_path, "cam/1.png", "rgb/1.png", "ir/1.png")
    with pytest.raises(DataError, match=r"no file matches 'heat/\*.png'"):
        inputs.discover(tmp_path, modalities=["rgb", "ir"], layout=LAYOUT, is_asked=True)


def test_cards_of_earlier_versions_have_no_layout(tmp_path: Path) -> None:
    put(tmp_path, "rgb/0.1.png", "ir/0.1.png")
    info = surveyed(tmp_path, **RGB, **IR).manifest.info
    stored = info.model_dump(mode="json")
    assert DatasetInfo.model_validate(stored) == info and info.layout is not None
    del stored["layout"]
    assert DatasetInfo.model_validate(stored).layout is None
