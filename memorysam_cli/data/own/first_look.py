"""What the first few files of a new data set give reason to say, before all of them are checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

LOOKED_AT = 3
"""Files of each sensor, and labels."""
FAR = 8.0
"""Values beyond this many times the range [-1, 1] would swamp the network."""
NARROW = 1 / 16
"""Values that reach no further would hardly be seen by it."""


def values(manifest: Manifest, *, will_measure: bool) -> list[str]:
    """What the values of the first few files of each sensor give reason to say."""
    notes = []
    for modality in manifest.info.modalities:
        paths = [path for scene in manifest.scenes[:LOOKED_AT] for path in scene.files[modality.name]]
        frames = _readable(manifest.root, paths)
        if not frames:
            continue
        top = max(
            float(abs(frame.astype("float64") * _scale(frame, modality) + modality.offset).max()) for frame in frames
        )
        if frames[0].ndim == 3 and frames[0].shape[2] == 4 and modality.channels is None:
            notes.append(
                f"'{modality.name}': the fourth channel is taken for alpha and dropped (--channels says otherwise)"
            )
        if will_measure:
            continue
        if top > FAR:
            notes.append(
                f"'{modality.name}': values up to {top:.4g}, the network is used to about 1; normalise with --measure, "
                f"or give --scale {modality.name}={1 / top:.1g}"
            )
        elif modality.scale is None and 0 < top < NARROW:
            notes.append(
                f"'{modality.name}': the first files use only {100 * top:.2g} % of the range; normalise with "
                f"--measure, or give --scale {modality.name}={_scale(frames[0], modality) / top:.1g}"
            )
    return notes


def labels(manifest: Manifest) -> list[str]:
    """A word on labels that count from 1, and on masks of one class and 'ignored' only, as 0 and 255 often are."""
    rule = manifest.info.label
    paths = [scene.label for scene in manifest.scenes if scene.label][:LOOKED_AT]
    found = {int(value) for label in _readable(manifest.root, paths) for value in np.unique(label)}
    given, ignored = found - set(rule.ignore), min(found & set(rule.ignore), default=None)
    if rule.mapping or rule.colours:
        return []
    if given and rule.shift == 0 and (min(given), max(given)) == (1, len(manifest.info.classes)):
        return [f"the first labels hold 1 to {max(given)}; classes are counted from 0: --label-shift -1 moves them"]
    if len(manifest.info.classes) < 2 or ignored is None or len(given) > 1:
        return []
    one, two = manifest.info.classes[:2]
    return [
        f"the first labels hold {' and '.join(map(str, sorted(found)))} only, and {ignored} counts as 'ignored'; if "
        f"it is a class, give values in the class list, such as '0: {one}' and '{ignored}: {two}'"
    ]


def _readable(root: Path, paths: Sequence[str]) -> list[Any]:
    """The files' values; none if one cannot be read: the check will tell, with all that is wrong."""
    try:
        return [images.read(root / path) for path in paths]
    except DataError:
        return []


def _scale(frame: Any, modality: Modality) -> float:
    """What stored values are multiplied by."""
    if modality.scale is not None:
        return modality.scale
    return {"uint8": 1 / 255, "uint16": 1 / 65535}.get(frame.dtype.name, 1.0)
