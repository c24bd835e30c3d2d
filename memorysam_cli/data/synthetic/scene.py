"""One planned scene becomes the pictures of all its sensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memorysam_cli.data.synthetic import sensors
from memorysam_cli.data.synthetic.light import WEATHER, Weather, radiance
from memorysam_cli.data.synthetic.plan import PlannedScene
from memorysam_cli.data.synthetic.surface import Surface, survey
from memorysam_cli.data.synthetic.world import World, build

EVENT_SECONDS = 0.03
"""Time between the two moments that the event camera compares."""


@dataclass(frozen=True)
class View:
    """A world seen at one moment: its surface, and its light (H, W, 3)."""

    surface: Surface
    light: np.ndarray


@lru_cache(maxsize=2)
def _world(scene: PlannedScene, seed: int) -> World:
    """The world of a sequence (``scene`` is its first frame)."""
    return build(scene.world_generator(seed))


def world_of(scene: PlannedScene, *, seed: int) -> World:
    """The world that a scene shows; frames of a sequence share it."""
    first = PlannedScene(scene.split, scene.sequence, 0, "", None, 0, 0)
    return _world(first, seed)


def look(world: World, weather: Weather, *, frame: int, height: int, width: int, seconds: float = 0.0) -> View:
    """Render one moment of a world."""
    camera = world.camera(frame=frame, height=height, width=width, seconds=seconds)
    solids = world.solids_at(frame=frame, seconds=seconds)
    surface = survey(camera, world.ground, solids, salt=world.salt)
    return View(surface, radiance(surface, world, solids, weather))


def deliver_pictures(scene: PlannedScene, *, size: int, seed: int) -> dict[str, np.ndarray]:
    """All pictures of a scene in DELIVER's manner.

    Args:
        scene: what to draw.
        size: height and width in pixels.
        seed: of the data set.

    Returns:
        Folder -> uint8 array: ``img``, ``hha``, ``depth``, ``event``, ``lidar`` (H, W, 3), ``semantic`` (H, W, 4).
        The event picture is smaller in the case ``eventlowres``.
    """
    world, weather = world_of(scene, seed=seed), WEATHER[scene.condition]
    now = look(world, weather, frame=scene.frame, height=size, width=size)
    soon = look(world, weather, frame=scene.frame, height=size, width=size, seconds=EVENT_SECONDS)
    points = sensors.scan(now.surface, weather, rng=scene.generator(seed, "scan"))
    image = sensors.picture(
        now.light, now.surface, weather, case=scene.case, rng=scene.generator(seed, "img")
    )
    return {
        "img": (image * 255 + 0.5).astype(np.uint8),
        "hha": sensors.hha(now.surface),
        "depth": sensors.depth_code(now.surface),
        "event": sensors.event(
            now.light, soon.light, weather, case=scene.case, rng=scene.generator(seed, "event")
        ),
        "lidar": sensors.lidar(points, now.surface, case=scene.case, rng=scene.generator(seed, "lidar")),
        "semantic": sensors.semantic(now.surface),
    }
