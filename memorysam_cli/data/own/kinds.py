"""What kinds of sensors there are, and how the frames of each are best treated unless told otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from memorysam_cli.dataset import Flip, Interpolation, Kind, Modality
from memorysam_cli.errors import UsageError

KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What SAM 2 was trained with. Source: METHOD §5, DATASETS §0."""


@dataclass(frozen=True)
class Defaults:
    """How the frames of a kind are treated."""

    looks_like_a_photo: bool = False
    """Normalised as ImageNet's photos and changed in colour and sharpness during training; others: neither, as the
    reference does it."""
    interpolation: Interpolation = "bilinear"
    flip: Flip = "mirror"


DEFAULTS: dict[Kind, Defaults] = {
    "rgb": Defaults(looks_like_a_photo=True),
    "gray": Defaults(looks_like_a_photo=True),
    # Between a wall and what stands before it there is nothing in the middle: distances are not blended.
    "depth": Defaults(interpolation="nearest"),
    "hha": Defaults(),
    # Sparse: most pixels say "nothing", which must not bleed into those that say something.
    "event": Defaults(interpolation="nearest"),
    "lidar": Defaults(interpolation="nearest"),
    "thermal": Defaults(),
    # Which of sine and cosine a mirror turns round depends on how the sensor counts its angle: dataset.json can say.
    "angle": Defaults(),
}

WORDS: dict[Kind, str] = {
    "rgb": "rgb img image images color colour camera cam visible vis photo ms multispectral hyperspectral",
    "gray": "gray grey mono pan panchromatic nir swir dolp",
    "depth": "depth disparity disp distance range dsm dem",
    "hha": "hha",
    "event": "event events dvs",
    "lidar": "lidar radar velodyne points sar",
    "thermal": "thermal ther ir lwir mwir infrared flir heat",
    "angle": "angle aolp aop orientation azimuth",
}
"""The words in a modality's name by which its kind is guessed."""


def guess(name: str) -> Kind:
    """The kind that a modality's name tells, such as depth for ``depth_left`` and thermal for ``IR2``.

    Raises:
        UsageError: no word of the name is known, or two speak for different kinds.
    """
    said = {word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.lower())}
    found = [kind for kind, words in WORDS.items() if said & set(words.split())]
    if len(found) != 1:
        why = "tells no kind" if not found else f"tells {' and '.join(found)}"
        raise UsageError(f"--modality {name}: its name {why}; say --kind {name}=KIND, one of {', '.join(KINDS)}")
    return found[0]


def make(name: str, kind: Kind, *, scale: float | None = None, channels: Sequence[int] | None = None) -> Modality:
    """A modality with the defaults of its kind.

    Args:
        name: of the modality.
        kind: decides normalisation, interpolation, photometric augmentation and flip.
        scale: of stored values; None: by dtype.
        channels: which three stored channels to take, from 0; one is taken three times.
    """
    defaults = DEFAULTS[kind]
    is_photo = defaults.looks_like_a_photo
    chosen = tuple(channels or ())
    chosen = chosen * 3 if len(chosen) == 1 else chosen
    return Modality(
        name=name,
        kind=kind,
        mean=IMAGENET_MEAN if is_photo else None,
        std=IMAGENET_STD if is_photo else None,
        interpolation=defaults.interpolation,
        photometric=("jitter", "blur") if is_photo else (),
        channels=(chosen[0], chosen[1], chosen[2]) if chosen else None,
        scale=scale,
        flip=defaults.flip,
    )
