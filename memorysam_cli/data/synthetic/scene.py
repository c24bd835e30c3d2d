"""One planned scene becomes the pictures of all its sensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from memorysam_cli.data.synthetic import sensors
from memorysam_cli.data.synthetic.light import Lighting, lighting, radiance
from memorysam_cli.data.synthetic.plan import PlannedScene, generator
from memorysam_cli.data.synthetic.polarisation import near_infrared, overlap, polarisation
from memorysam_cli.data.synthetic.surface import Surface, survey
from memorysam_cli.data.synthetic.weather import WEATHER
from memorysam_cli.data.synthetic.world import World, build
from memorysam_cli.dataset import IGNORE

EVENT_SECONDS = 0.03
"""Time between the two moments that the event camera compares."""


@dataclass(frozen=True)
class View:
    """A world seen at one moment: its surface, and its light (H, W, 3)."""

    surface: Surface
    light: np.ndarray


@lru_cache(maxsize=1)
def _last_world(first: PlannedScene, seed: int) -> World:
    """The world of a sequence, kept while its frames are drawn."""
    return build(generator(seed, first, "world"))


def world_of(scene: PlannedScene, *, seed: int) -> World:
    """The world that a scene shows; frames of a sequence share it."""
    return _last_world(replace(scene, frame=0), seed)


def look(world: World, lights: Lighting, *, frame: int, height: int, width: int, seconds: float = 0.0) -> View:
    """Render one moment of a world."""
    camera = world.camera(frame=frame, height=height, width=width, seconds=seconds)
    solids = world.solids_at(frame=frame, seconds=seconds)
    surface = survey(camera, world.ground, solids, salt=world.salt)
    return View(surface, radiance(surface, lights))


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
    lights = lighting(world, world.solids_at(frame=scene.frame), weather)
    now = look(world, lights, frame=scene.frame, height=size, width=size)
    soon = look(world, lights, frame=scene.frame, height=size, width=size, seconds=EVENT_SECONDS)
    points = sensors.scan(now.surface, weather, rng=generator(seed, scene, "scan"))
    image = sensors.picture(now.light, now.surface, weather, case=scene.case, rng=generator(seed, scene, "img"))
    return {
        "img": (image * 255 + 0.5).astype(np.uint8),
        "hha": sensors.hha(now.surface),
        "depth": sensors.depth_code(now.surface),
        "event": sensors.event(now.light, soon.light, weather, case=scene.case, rng=generator(seed, scene, "event")),
        "lidar": sensors.lidar(points, now.surface, case=scene.case, rng=generator(seed, scene, "lidar")),
        "semantic": sensors.semantic(now.surface),
    }


def mcubes_pictures(scene: PlannedScene, *, size: int, seed: int) -> dict[str, np.ndarray]:
    """All pictures of a scene in MCubeS' manner; sensor failures do not happen there.

    Args:
        scene: what to draw.
        size: height in pixels; the width is 1224/1024 of it.
        seed: of the data set.

    Returns:
        Folder -> array: ``polL_color`` (H, W, 3) and ``NIR_warped`` (H, W) uint16; ``polL_aolp_sin``,
        ``polL_aolp_cos`` and ``polL_dolp`` (H, W) float32; ``NIR_warped_mask``, ``GT`` (material, 255 unlabelled),
        ``SS`` (DELIVER's class, 255 unlabelled) and ``SSGT4MS`` (the same as ``SS``), (H, W) uint8.
    """
    width = round(size * 1224 / 1024)
    world, weather = world_of(scene, seed=seed), WEATHER[scene.condition]
    lights = lighting(world, world.solids_at(frame=scene.frame), weather)
    now = look(world, lights, frame=scene.frame, height=size, width=width)
    image = sensors.picture(now.light, now.surface, weather, case=None, rng=generator(seed, scene, "img"))
    angle = polarisation(now.surface, weather, rng=generator(seed, scene, "polarisation"))
    infrared = near_infrared(now.surface, lights, rng=generator(seed, scene, "nir"))
    mask = overlap(size, width, rng=generator(seed, scene, "overlap"))
    is_labelled = now.surface.label > 0
    semantic = np.where(is_labelled, now.surface.label - np.uint8(1), np.uint8(IGNORE))
    return {
        "polL_color": (image * 65535 + 0.5).astype(np.uint16),
        "polL_aolp_sin": angle.sine,
        "polL_aolp_cos": angle.cosine,
        "polL_dolp": angle.degree,
        "NIR_warped": np.where(mask > 0, (infrared * 65535 + 0.5).astype(np.uint16), np.uint16(0)),
        "NIR_warped_mask": mask,
        "GT": np.where(is_labelled, now.surface.material, np.uint8(IGNORE)),
        "SS": semantic,
        "SSGT4MS": semantic,
    }
