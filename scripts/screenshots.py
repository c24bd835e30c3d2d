"""Make the pictures of the documentation from a demo: its reports, light and dark, its sheets and its figures.

    memorysam demo --out .demo
    python scripts/screenshots.py --demo .demo                                 # into docs/images, and docs/demo.png
    python scripts/screenshots.py --out /tmp/look --width 360 some.html        # of any pages, as a whole

Needs chromium and chromedriver, as tests/browser does. Evaluations (some minutes) are made in --work and kept there; a
new demo needs a new --work.
"""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from selenium import webdriver

from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import atomic

SCHEMES = ("light", "dark")
PARTS = ("img", "img,depth", "depth,event,lidar")
"""Modalities that are evaluated on their own too."""
VIEWS = {
    "training": ("training", "", 1200),
    "evaluation": ("evaluation", "", 1240),
    "confusion": ("evaluation", "confusion", 830),
    "scenes": ("evaluation", "scenes", 860),
    "prediction": ("prediction", "", 1080),
}
"""Of the demo's reports: which page, from which of its parts on (none: from its top), and how many pixels of it."""
SHEETS = {
    "../demo.png": ("training", "samples/validation-best.png", 1380, None),
    "first-batch.png": ("training", "samples/first-batch.png", 1100, None),
    "curves.png": ("training", "plots/curves.png", 900, None),
    "overlay.png": ("overlay", "", 700, None),
    "check.png": ("check", "sheet.png", 1100, 822),
    "check-labels.png": ("check", "labels.png", 700, None),
    "robustness.png": ("robustness", "robustness-any.png", 900, None),
}
"""Pictures that commands write: in which folder of :func:`folders`, which file, how wide and how much of it."""
WIDTH = 1280
MOST_BYTES = 250_000
"""Of a picture for the documentation; what is larger is stored with fewer colors."""
FIRST_LINE = "return document.getElementById(arguments[0]).getBoundingClientRect().top + scrollY - 24"
"""The line of a page in pixels that a part begins with, and a margin."""

Work = Annotated[Path, typer.Option(help="Folder for evaluations and pages.")]
Demo = Annotated[Path, typer.Option(help="What `memorysam demo --out` made.")]
Out = Annotated[Path, typer.Option(help="Where the pictures go.")]
Width = Annotated[int, typer.Option(min=200, help="Of the window, in pixels.")]
Pages = Annotated[list[Path] | None, typer.Argument(help="HTML files to take whole, instead of the demo's reports.")]


def main(
    pages: Pages = None,
    demo: Demo = Path(".demo"),
    work: Work = Path("build/screenshots"),
    out: Out = Path("docs/images"),
    width: Width = WIDTH,
) -> None:
    """Write the pictures, and say their sizes."""
    views: dict[str, tuple[Path, str, int | None]] = {page.stem: (page, "", None) for page in pages or ()}
    if not views:
        found = folders(demo, work)
        for name, (kind, file, wide, height) in SHEETS.items():
            report(out / name, shrunk(found[kind] / file if file else found[kind], width=wide, height=height))
        made = reports(found, work)
        views = {f"report-{name}": (made[kind], part, height) for name, (kind, part, height) in VIEWS.items()}
    with window() as browser:
        for name, (page, part, height) in views.items():
            for scheme in SCHEMES:
                path = out / f"{name}-{scheme}.png"
                report(path, picture(browser, page, part=part, scheme=scheme, width=width, height=height))


def report(path: Path, png: bytes) -> None:
    """Write a picture and say its size."""
    atomic.write_bytes(path, png)
    console.say(f"{path}: {len(png) / 1000:.0f} kB")


def folders(demo: Path, work: Path) -> dict[str, Path]:
    """A demo's run and prediction, one of its overlays, and what else is made of it: evaluations and a check."""
    runs = [path.parent for path in sorted(demo.glob("runs/demo-*/result.json")) if "-rgb-" not in path.parent.name]
    predictions = sorted(demo.glob("predictions-*"))
    if not runs or not predictions:
        raise UsageError(f"--demo {demo}: holds no finished demo; make one: memorysam demo --out {demo}")
    data, robustness, check = demo / "data", work / "robustness", work / "check"
    weights = ["--weights", f"{runs[-1]}/checkpoints/best.safetensors", "--data", str(data)]
    if not (robustness / "robustness-any.png").is_file():
        call("evaluate", *weights, "--quiet", "--robustness", "any", "--out", str(robustness))
    if not (check / "sheet.png").is_file():
        call("check", str(data), "--quiet", "--out", str(check))
    return {
        "training": runs[-1],
        "evaluation": evaluated(runs[-1], data, work / "evaluation"),
        "prediction": predictions[-1],
        "overlay": min(predictions[-1].glob("overlay/**/*.png")),
        "robustness": robustness,
        "check": check,
    }


def reports(found: dict[str, Path], work: Path) -> dict[str, Path]:
    """The pages of a demo's training, of an evaluation of it, and of its prediction."""
    from memorysam_cli.engine.reporting.run_pages import write

    kinds = ("training", "evaluation", "prediction")
    return {kind: write([found[kind]], out=work / f"{kind}.html").out for kind in kinds}


def evaluated(run: Path, data: Path, out: Path) -> Path:
    """Results of all sensors with some of them beside, as one has them after a few `memorysam evaluate`."""
    common = ["--weights", f"{run}/checkpoints/best.safetensors", "--data", str(data), "--quiet"]
    commands = {out: [*common, "--out", str(out)]}
    for part in PARTS:
        folder = out / part.replace(",", "+")
        commands[folder] = [*common, "--modalities", part, "--gallery", "0", "--out", str(folder)]
    for folder, words in commands.items():
        if (folder / "metrics.json").is_file():
            continue
        call("evaluate", *words)
    return out


def call(*words: str) -> None:
    """Run a command in a process of its own, as people do: its settings of threads and seeds are not ours."""
    if subprocess.run([sys.executable, "-m", "memorysam_cli", *words], check=False).returncode:
        raise EnvironmentFault(f"{words[0]}: failed, as it says above")


def shrunk(path: Path, *, width: int, height: int | None) -> bytes:
    """A PNG of a picture at a width, or of its upper part."""
    whole = Image.open(path).convert("RGB")
    if whole.width > width:
        whole = whole.resize((width, round(whole.height * width / whole.width)), Image.Resampling.LANCZOS)
    return stored(whole.crop((0, 0, whole.width, min(height or whole.height, whole.height))), is_bounded=True)


@contextmanager
def window() -> Iterator[Any]:
    """A headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise EnvironmentFault("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    browser.set_script_timeout(120)
    browser.command_executor.client_config.timeout = 300  # a busy machine takes long for a tall page
    try:
        yield browser
    finally:
        browser.quit()


def picture(browser: Any, page: Path, *, part: str, scheme: str, width: int, height: int | None) -> bytes:
    """A PNG of a part of a page, or of all of it.

    Args:
        browser: of :func:`window`.
        page: an HTML file.
        part: the id of what it begins with; empty for the top.
        scheme: ``light`` or ``dark``.
        width: of the window, in pixels.
        height: how many pixels of it; None for all.
    """
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": height or 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.resolve().as_uri())
    shown = height or browser.execute_script("return document.documentElement.scrollHeight")
    top = browser.execute_script(FIRST_LINE, part) if part else 0
    clip = {"x": 0, "y": top, "width": width, "height": shown, "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    taken = Image.open(io.BytesIO(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])))
    return stored(taken.convert("RGB"), is_bounded=height is not None)


def stored(taken: Image.Image, *, is_bounded: bool) -> bytes:
    """A picture as PNG; with fewer colors where it is too large for the documentation."""
    whole = io.BytesIO()
    taken.save(whole, "PNG", optimize=True)
    if whole.tell() <= MOST_BYTES or not is_bounded:
        return whole.getvalue()
    few = io.BytesIO()
    # An octree keeps rare colors, such as those of a legend.
    taken.quantize(255, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(few, "PNG", optimize=True)
    return few.getvalue()


if __name__ == "__main__":
    typer.run(main)
