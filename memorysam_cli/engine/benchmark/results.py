"""A benchmark's figures for people."""

from __future__ import annotations

from typing import Any

from memorysam_cli.engine.measuring.memory import gigabytes
from memorysam_cli.report import console

ROWS = {
    "seconds per step": ("seconds", ".4g"),
    "scenes per second": ("scenes_per_second", ".4g"),
    "TFLOP per step": ("tflop", ".4g"),
    "TFLOP per second": ("tflop_per_second", ".4g"),
    "best matrix product, TFLOP per second": ("matmul_tflop_per_second", ".4g"),
    "share of it in per cent (MFU)": ("mfu_percent", ".1f"),
    "peak memory in GB": ("peak_bytes", ".2f"),
}
"""What a line says, its key, and its digits."""
COMPARED = {"seconds": "time", "peak_bytes": "peak"}


def show(report: dict[str, Any], *, title: str) -> None:
    """Print the figures of :func:`memorysam_cli.engine.benchmark.measurement.measure`."""
    fast, plain, ratio = report["fast"], report["plain"], report["ratio"]
    columns = ["", "memorysam"] if plain is None else ["", "memorysam", "plain", "memorysam / plain"]
    rows = []
    for name, (key, digits) in ROWS.items():
        row = [name, _cell(fast, key, digits)]
        if plain is not None:
            compared = ratio[COMPARED[key]] if key in COMPARED else None
            row += [_cell(plain, key, digits), "–" if compared is None else f"{compared:.2f}"]
        rows.append(row)
    console.table(columns, rows, title=title)
    if plain is not None and not plain["fits"]:
        console.say(f"plain     does not fit: {plain['why']}, after {gigabytes(plain['peak_bytes'])}")
    if report["difference"]:
        said = ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in report["difference"].items())
        console.say(f"apart by  {said} (relative; other classes: share of the pixels)")
    show_machine(report["machine"])


def show_machine(machine: dict[str, Any]) -> None:
    """One line about where it was measured."""
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    console.say(
        f"machine   {device}{machine['processor']} ({machine['instructions']}), {machine['threads']} of "
        f"{machine['cores']} cores, torch {machine['versions']['torch']}"
    )


def _cell(figures: dict[str, Any], key: str, digits: str) -> str:
    value = figures.get(key)
    if value is None:
        return "–"
    return format(value / 1e9 if key == "peak_bytes" else value, digits)
