"""From an empty folder to a data set: the list of scenes, each scene's pictures, and their files.

The layouts' folders and names are written here again, independently of ``data/datasets``, because the renderer does not
use ``data``. The tests read its output with the readers of the real data sets.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from memorysam_cli.dataset import IGNORE
from memorysam_cli.storage import atomic, images
from memorysam_cli.streetworld import recordings
from memorysam_cli.streetworld.light import WEATHER, Lighting, lighting, radiance
from memorysam_cli.streetworld.recordings import FAILURES
from memorysam_cli.streetworld.surfaces import Rng
from memorysam_cli.streetworld.world import Surface, World, build_world, survey

SHARES = {"val": 0.25, "test": 0.15}
"""Shares of the scenes; the rest is for training."""
MAPS = {"train": (1, 2, 3, 5, 6, 8), "val": (1, 2, 3, 5, 6, 8), "test": (7, 10, 1, 3)}
"""As in DELIVER, maps 7 and 10 are met in test alone."""
SEQUENCE_FRAMES = 3
SPLITS = ("train", "val", "test")
PURPOSES = ("world", "img", "scan", "lidar", "event", "polarization", "nir", "overlap")
FAILURE_SHARE = 0.35
"""Of the sequences."""


@dataclass(frozen=True, slots=True)
class PlannedScene:
    """A frame to draw."""

    split: str
    sequence: int
    """Number of the sequence within its split; it decides the world."""
    frame: int
    """Number of the frame within its sequence."""
    condition: str
    case: str | None
    map: int
    point: int


def generator(seed: int, scene: PlannedScene, purpose: str) -> Rng:
    """The random numbers of a scene for one purpose; they depend on nothing else, so the order of work does not matter.

    Args:
        seed: of the data set.
        scene: the scene.
        purpose: one of :data:`PURPOSES`; ``world`` is the same for all frames of a sequence.
    """
    frame = 0 if purpose == "world" else scene.frame
    key = (SPLITS.index(scene.split), scene.sequence, frame, PURPOSES.index(purpose))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def counts(scenes: int) -> dict[str, int]:
    """Scenes per split; every split has one as soon as there are three."""
    found = {split: max(round(share * scenes), int(scenes >= 3)) for split, share in SHARES.items()}
    return {"train": scenes - sum(found.values()), **found}


def plan(scenes: int) -> list[PlannedScene]:
    """All scenes of a data set, sequence by sequence.

    Args:
        scenes: number of scenes over all splits, at least 1.

    Returns:
        ``scenes`` entries. Conditions alternate from sequence to sequence, and about every third sequence has a
        failure. Sequences are short if there are few scenes, so that each split has as many of them as possible.
    """
    points: Counter[int] = Counter()
    conditions = tuple(WEATHER)
    planned: list[PlannedScene] = []
    for split, count in counts(scenes).items():
        length = min(max(count // 15, 1), SEQUENCE_FRAMES)
        for sequence in range(-(-count // length)):
            number = MAPS[split][sequence % len(MAPS[split])]
            points[number] += 1
            planned += [
                PlannedScene(
                    split=split,
                    sequence=sequence,
                    frame=frame,
                    condition=conditions[sequence % len(conditions)],
                    case=_case(sequence),
                    map=number,
                    point=points[number],
                )
                for frame in range(min(length, count - sequence * length))
            ]
    return planned


def _case(sequence: int) -> str | None:
    """The failure of a sequence: none for about two thirds; in the long run each occurs with each condition."""
    before, after = int(sequence * FAILURE_SHARE), int((sequence + 1) * FAILURE_SHARE)
    return FAILURES[(before + before // len(FAILURES)) % len(FAILURES)] if after > before else None


EVENT_SECONDS = 0.03
"""Time between the two moments that the event camera compares."""


@dataclass(frozen=True)
class View:
    """A world seen at one moment: its surface, and its light (H, W, 3)."""

    surface: Surface
    light: np.ndarray


@lru_cache(maxsize=1)
def _last_world(first: PlannedScene, seed: int) -> World:
    """The world of a sequence, cached while its frames are drawn."""
    return build_world(generator(seed, first, "world"))


def world_of(scene: PlannedScene, *, seed: int) -> World:
    """The world that a scene shows; frames of a sequence share it."""
    return _last_world(replace(scene, frame=0), seed)


def lighting_of(scene: PlannedScene, *, seed: int) -> Lighting:
    """The scene's world in the light of its condition."""
    world = world_of(scene, seed=seed)
    return lighting(world, world.solids_at(frame=scene.frame), WEATHER[scene.condition])


def look(lights: Lighting, *, frame: int, height: int, width: int, seconds: float = 0.0) -> View:
    """Render one moment of a world."""
    world = lights.world
    camera = world.camera(frame=frame, height=height, width=width, seconds=seconds)
    surface = survey(camera, world.ground, world.solids_at(frame=frame, seconds=seconds), salt=world.salt)
    return View(surface, radiance(surface, lights))


def deliver_pictures(scene: PlannedScene, *, size: int, seed: int) -> dict[str, np.ndarray]:
    """All pictures of a scene in DELIVER's format.

    Args:
        scene: the scene.
        size: height and width in pixels.
        seed: of the data set.

    Returns:
        Folder -> uint8 array: ``img``, ``hha``, ``depth``, ``event``, ``lidar`` (H, W, 3), ``semantic`` (H, W, 4). The
        event picture is smaller in the case ``eventlowres``.
    """
    lights = lighting_of(scene, seed=seed)
    weather = lights.weather
    now = look(lights, frame=scene.frame, height=size, width=size)
    soon = look(lights, frame=scene.frame, height=size, width=size, seconds=EVENT_SECONDS)
    points = recordings.scan(now.surface, weather, rng=generator(seed, scene, "scan"))
    image = recordings.picture(now.light, now.surface, weather, case=scene.case, rng=generator(seed, scene, "img"))
    return {
        "img": (image * 255 + 0.5).astype(np.uint8),
        "hha": recordings.hha(now.surface),
        "depth": recordings.depth_code(now.surface),
        "event": recordings.event(now.light, soon.light, weather, case=scene.case, rng=generator(seed, scene, "event")),
        "lidar": recordings.lidar(points, now.surface, case=scene.case, rng=generator(seed, scene, "lidar")),
        "semantic": recordings.semantic(now.surface),
    }


def mcubes_pictures(scene: PlannedScene, *, size: int, seed: int) -> dict[str, np.ndarray]:
    """All pictures of a scene in MCubeS' format, which has no sensor failures.

    Args:
        scene: the scene.
        size: height in pixels; the width is 1224/1024 of it.
        seed: of the data set.

    Returns:
        Folder -> array: ``polL_color`` (H, W, 3) and ``NIR_warped`` (H, W) uint16; ``polL_aolp_sin``, ``polL_aolp_cos``
        and ``polL_dolp`` (H, W) float32; ``NIR_warped_mask``, ``GT`` (material, 255 unlabeled), ``SS`` (DELIVER's
        class, 255 unlabeled) and ``SSGT4MS`` (the same as ``SS``), (H, W) uint8.
    """
    width = round(size * 1224 / 1024)
    lights = lighting_of(scene, seed=seed)
    weather = lights.weather
    now = look(lights, frame=scene.frame, height=size, width=width)
    image = recordings.picture(now.light, now.surface, weather, case=None, rng=generator(seed, scene, "img"))
    angle = recordings.polarization(now.surface, weather, rng=generator(seed, scene, "polarization"))
    infrared = recordings.near_infrared(now.surface, lights, rng=generator(seed, scene, "nir"))
    mask = recordings.overlap(size, width, rng=generator(seed, scene, "overlap"))
    is_labeled = now.surface.label > 0
    semantic = np.where(is_labeled, now.surface.label - np.uint8(1), np.uint8(IGNORE))
    return {
        "polL_color": (image * 65535 + 0.5).astype(np.uint16),
        "polL_aolp_sin": angle.sine,
        "polL_aolp_cos": angle.cosine,
        "polL_dolp": angle.degree,
        "NIR_warped": np.where(mask > 0, (infrared * 65535 + 0.5).astype(np.uint16), np.uint16(0)),
        "NIR_warped_mask": mask,
        "GT": np.where(is_labeled, now.surface.material, np.uint8(IGNORE)),
        "SS": semantic,
        "SSGT4MS": semantic,
    }


FRAME_STEP = 50
"""Frames are numbered 000050, 000100 …, starting again in every sequence."""
DELIVER_NAMES = {
    "img": "rgb",
    "hha": "depth",
    "event": "event",
    "lidar": "lidar",
    "depth": "depth",
    "semantic": "semantic",
}
"""DELIVER's folders, and the corresponding parts of file names."""
MCUBES_FOLDER = "multimodal_dataset"
MCUBES_ARRAYS = ("polL_aolp_sin", "polL_aolp_cos", "polL_dolp")
"""Folders of ``.npy`` files; the others hold PNG."""


def deliver_place(scene: PlannedScene) -> tuple[tuple[str, str, str], str]:
    """The place of a scene's files: (condition, split, sequence) and the frame's name."""
    case = f"_{scene.case}" if scene.case else ""
    sequence = f"MAP_{scene.map}_point{scene.point}{case}"
    return (scene.condition, scene.split, sequence), f"{(scene.frame + 1) * FRAME_STEP:06d}"


def write_deliver(root: Path, scene: PlannedScene, *, size: int, seed: int) -> None:
    """Render one scene and write its six files below ``root``.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    (condition, split, sequence), frame = deliver_place(scene)
    for folder, picture in deliver_pictures(scene, size=size, seed=seed).items():
        path = root / folder / condition / split / sequence / f"{frame}_{DELIVER_NAMES[folder]}_front.png"
        # After a power loss one renders again; syncing 1440 small files would cost more than drawing them.
        images.write_png(path, picture, fsync=False)


def mcubes_name(scene: PlannedScene) -> str:
    """The scene's name in the form of ``outscene1208_2_0000000150``."""
    return f"outscene{scene.map:02d}{scene.point:02d}_1_{(scene.frame + 1) * FRAME_STEP:010d}"


def write_mcubes(root: Path, scene: PlannedScene, *, size: int, seed: int) -> None:
    """Render one scene and write its nine files below ``root/multimodal_dataset``.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    for folder, picture in mcubes_pictures(scene, size=size, seed=seed).items():
        path = root / MCUBES_FOLDER / folder / mcubes_name(scene)
        # After a power loss one renders again: no syncing of masses of small files.
        if folder in MCUBES_ARRAYS:
            buffer = io.BytesIO()
            np.save(buffer, picture, allow_pickle=False)
            atomic.write_bytes(path.with_suffix(".npy"), buffer.getvalue(), fsync=False)
        else:
            images.write_png(path.with_suffix(".png"), picture, fsync=False)


def write_mcubes_lists(root: Path, scenes: Sequence[PlannedScene]) -> None:
    """Write ``list_folder/{all,train,val,test}.txt``: one name per line.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    for split in ("all", *SPLITS):
        names = [mcubes_name(scene) for scene in scenes if split in ("all", scene.split)]
        path = root / MCUBES_FOLDER / "list_folder" / f"{split}.txt"
        atomic.write_text(path, "".join(f"{name}\n" for name in names))


def render(
    root: Path,
    *,
    layout: Literal["deliver", "mcubes"] = "deliver",
    scenes: int = 240,
    size: int = 160,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> None:
    """Write a data set below ``root``.

    The same ``layout``, ``scenes``, ``size`` and ``seed`` give the same files, bit by bit, on one machine.

    Args:
        root: the data set's folder; existing files are replaced.
        layout: whose folders, file names and encodings to use.
        scenes: number of scenes over all splits (about 60 % train, 25 % val, 15 % test).
        size: height of the pictures in pixels; DELIVER's are square, MCubeS' 1224/1024 times as wide.
        seed: of the worlds; not negative.
        advance: called after each scene.

    Raises:
        EnvironmentFault: a file cannot be written.
        ValueError: ``scenes`` below 1, ``size`` below 32 or a negative ``seed``.
    """
    if scenes < 1 or size < 32 or seed < 0:
        raise ValueError(f"scenes={scenes}, size={size}, seed={seed}: at least 1, 32 and 0 are needed")
    scenes_planned = plan(scenes)
    write = {"deliver": write_deliver, "mcubes": write_mcubes}[layout]
    for scene in scenes_planned:
        write(root, scene, size=size, seed=seed)
        if advance is not None:
            advance()
    if layout == "mcubes":
        write_mcubes_lists(root, scenes_planned)
