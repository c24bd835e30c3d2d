"""Every figure that needs a GPU, in one call of under ten minutes.

python benchmarks/gpu.py [--out FOLDER] [--small] [--seconds 560] [--parts train,predict,…]

Measures SAM 2 base+ at 1024×1024 pixels, four modalities, batch 4: the training step in bf16 against the plain one,
with the memory saver off and on; prediction; both compiled; equality with the plain network on this device; the loss
kernels; training and prediction from PNG files; and where the time goes. Each part (see gpu_parts.py) runs in a
process of its own with a time limit, so that one that fails or hangs costs its own figures alone.

Writes gpu.json, gpu.txt (the targets and what was reached) and profiles into FOLDER, else $OUT, else ./gpu. --small
does all of it in miniature, on a CPU too: it tests this script and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BUDGETS = {"train": 220, "predict": 80, "equality": 100, "loss": 60, "profile": 90, "data": 120, "compile": 200}
"""Seconds at most of each part, the most important first; a part also ends when the whole call must."""
LAST = 12
"""Lines of a failed part that are shown."""


def main() -> None:
    """Run the parts one after the other, and keep what is known after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--parts", type=parts, default=list(BUDGETS))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + asked.seconds
    results: dict[str, Any] = {}
    for name in asked.parts:
        seconds = min(BUDGETS[name], end - time.monotonic())
        results[name] = run(name, out=asked.out, small=asked.small, seconds=seconds)
        (asked.out / "gpu.json").write_text(json.dumps(results, indent=1))
        (asked.out / "gpu.txt").write_text(summary(results))
    print(summary(results))
    if all("failed" in found for found in results.values()):
        sys.exit("no part came to its end")


def parts(text: str) -> list[str]:
    """``a,b`` as a list of parts."""
    if unknown := [name for name in text.split(",") if name not in BUDGETS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: is not a part (known: {', '.join(BUDGETS)})")
    return text.split(",")


def run(name: str, *, out: Path, small: bool, seconds: float) -> dict[str, Any]:
    """A part's result, as far as it came, and under ``failed`` why not further."""
    if seconds < 5:
        return {"failed": "no time was left"}
    print(f"{name}: at most {seconds:.0f} s", flush=True)
    start, path, log = time.monotonic(), out / f"{name}.json", out / f"{name}.log"
    command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), name, str(path), *["--small"] * small]
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    lines = log.read_text().strip().splitlines()
    for leftover in (path, log):
        leftover.unlink(missing_ok=True)
    if code != 0:
        with (out / "failed.log").open("a") as failed:
            failed.write("\n".join([f"== {name}: {code}", *lines, ""]))
        found |= {"failed": str(code), "last_lines": lines[-LAST:]}
    return found | {"part_seconds": time.monotonic() - start}


def summary(results: Mapping[str, Any]) -> str:
    """The targets and what was measured, for people."""
    lines = [f"{'what':<48}{'target':>12}{'measured':>14}", ""]
    for what, target, value in targets(results):
        lines.append(f"{what:<48}{target:>12}{'–' if value is None else format(value, '.3g'):>14}")
    lines += ["", "equality with the plain network (relative):"]
    lines += [f"  {name:<28}{found}" for name, found in results.get("equality", {}).items() if isinstance(found, dict)]
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"{name}: failed: {found['failed']}: {' | '.join(found.get('last_lines', []))[-600:]}")
        for part, inner in found.items():
            if isinstance(inner, dict) and "failed" in inner:
                lines.append(f"{name}/{part}: failed: {inner['failed'][:600]}")
    return "\n".join(lines) + "\n"


def targets(results: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """Each row of the targets with its figure, None where it was not measured."""

    def figure(*path: str) -> float | None:
        place: Any = results
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        return place if isinstance(place, int | float) else None

    def over(first: float | None, second: float | None) -> float | None:
        return first / second if first is not None and second else None

    off, on = figure("train", "off", "fast", "seconds"), figure("train", "on", "fast", "seconds")
    giga = 1e9
    return [
        ("peak of training in GB, saver on", "<= 16", over(figure("train", "on", "fast", "peak_bytes"), giga)),
        ("peak of training in GB, saver off", "<= 45", over(figure("train", "off", "fast", "peak_bytes"), giga)),
        ("peak of plain training in GB", "", over(figure("train", "off", "plain", "peak_bytes"), giga)),
        ("training step in s, saver off", "", off),
        ("plain training step in s", "", figure("train", "off", "plain", "seconds")),
        ("plain step / ours", ">= 10", over(1, figure("train", "off", "ratio", "time"))),
        ("plain step / ours compiled", ">= 10",
         over(figure("train", "off", "plain", "seconds"), figure("compile", "train", "fast", "seconds"))),
        ("share of the matmul rate in %, training", ">= 40", figure("train", "off", "fast", "mfu_percent")),
        ("  the same, compiled", ">= 40", figure("compile", "train", "fast", "mfu_percent")),
        ("share of the matmul rate in %, prediction", ">= 50", figure("predict", "bf16", "fast", "mfu_percent")),
        ("  the same, compiled", ">= 50", figure("compile", "predict", "fast", "mfu_percent")),
        ("matmul rate in bf16, TFLOP/s", "", figure("train", "off", "fast", "matmul_tflop_per_second")),
        ("step with saver / without", "<= 1.3", over(on, off)),
        ("from files / model alone in %, training", ">= 90", figure("data", "train", "share_percent")),
        ("from files / model alone in %, prediction", ">= 90", figure("data", "predict", "share_percent")),
        ("loss in bands / full resolution, seconds", "",
         over(figure("loss", "bands", "seconds"), figure("loss", "full", "seconds"))),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
