"""A small folder of someone's own sensors: six of them, in five formats."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from memorysam_cli.storage import images

CLASSES = "ground\ncar\nbox\n"
HEIGHT, WIDTH = 40, 56


def write_sensors(root: Path, *, scenes: int = 10) -> Path:
    """RGB (JPEG), depth (16-bit PNG), thermal (float TIFF), six bands (NPY), events (NPZ), an angle (two NPY)."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text(CLASSES)
    for number in range(scenes):
        rng = np.random.Generator(np.random.PCG64(number))
        label = np.zeros((HEIGHT, WIDTH), np.uint8)
        label[8:24, 6 + 3 * number % 20 : 30], label[30:] = 1, 2
        name = f"cam{number % 2}/{number:04}"
        gray = np.clip(label * 80 + rng.integers(0, 40, label.shape), 0, 255).astype(np.uint8)
        write(root / f"images/{name}.jpg", np.repeat(gray[..., None], 3, axis=2))
        write(root / f"depth/{name}_depth.png", label.astype(np.uint16) * 900 + 1000)
        write(root / f"ir/{name}.tiff", gray.astype(np.float32) / 255)
        save(root / f"ms/{name}.npy", np.stack([gray] * 6, axis=-1).astype(np.float32) / 255)
        (root / f"events/{name}.npz").parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(root / f"events/{name}.npz", rng.integers(-1, 2, label.shape).astype(np.float32))
        for part, function in (("sin", np.sin), ("cos", np.cos)):
            save(root / f"aolp/{part}/{name}.npy", function(label.astype(np.float64)))
        images.write_png(root / f"masks/{name}.png", label, fsync=False)
    return root


def write(path: Path, array: np.ndarray) -> None:
    """An image in the format that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_encoded, content = cv2.imencode(path.suffix, array)
    assert is_encoded
    path.write_bytes(content.tobytes())


def save(path: Path, array: np.ndarray) -> None:
    """An array as .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
