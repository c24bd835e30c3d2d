"""Take the pictures of docs/reports.md: the three kinds of reports, light and dark, of a demo.

    memorysam demo --out .demo
    python scripts/screenshots.py --demo .demo                                 # into docs/images
    python scripts/screenshots.py --out /tmp/look --width 360 some.html        # of any pages, as a whole

Needs chromium and chromedriver, as tests/browser does. Evaluations are made in --work, and kept there for the next time.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
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
HEIGHT = {"training": 1240, "evaluation": 1360, "prediction": 1240}
"""Pixels of a page that its picture shows."""
COLOURS = 255
"""Of a picture: few enough for small files, more than a page has."""

Work = Annotated[Path, typer.Option(help="Folder for evaluations and pages.")]
Demo = Annotated[Path, typer.Option(help="What `memorysam demo --out` made.")]
Out = Annotated[Path, typer.Option(help="Where the pictures go.")]
Width = Annotated[int, typer.Option(min=200, help="Of the window, in pixels.")]
Pages = Annotated[list[Path] | None, typer.Argument(help="HTML files to take whole, instead of the demo's reports.")]


def main(
    pages: Pages = None,
    demo: Demo = Path(".demo"),
    work: Work = Path(".screenshots"),
    out: Out = Path("docs/images"),
    width: Width = 1280,
) -> None:
    """Write the pictures, and say their sizes."""
    wanted = {page.stem: page for page in pages or ()} or reports(demo, work)
    with window() as browser:
        for name, page in wanted.items():
            for scheme in SCHEMES:
                path = out / f"{'' if pages else 'report-'}{name}-{scheme}.png"
                height = None if pages else HEIGHT[name]
                atomic.write_bytes(path, picture(browser, page, scheme=scheme, width=width, height=height))
                console.say(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def reports(demo: Path, work: Path) -> dict[str, Path]:
    """The pages of a demo's training, of an evaluation of it, and of its prediction."""
    from memorysam_cli.engine.reporting import writing

    runs = [path.parent for path in sorted(demo.glob("runs/demo-*/result.json")) if "-rgb-" not in path.parent.name]
    predictions = sorted(demo.glob("predictions-*"))
    if not runs or not predictions:
        raise UsageError(f"--demo {demo}: holds no finished demo; make one: memorysam demo --out {demo}")
    folders = {
        "training": runs[-1],
        "evaluation": evaluated(runs[-1], demo / "data", work / "evaluation"),
        "prediction": predictions[-1],
    }
    return {kind: writing.write([folder], out=work / f"{kind}.html").out for kind, folder in folders.items()}


def evaluated(run: Path, data: Path, out: Path) -> Path:
    """Results of all sensors with some of them beside, as one has them after a few `memorysam evaluate`."""
    common = f"--weights {run}/checkpoints/best.safetensors --data {data} --quiet"
    commands = {out: f"{common} --out {out}"}
    for part in PARTS:
        folder = out / part.replace(",", "+")
        commands[folder] = f"{common} --modalities {part} --gallery 0 --out {folder}"
    for folder, words in commands.items():
        if not (folder / "metrics.json").is_file():
            atomic.make_folder(folder) if hasattr(atomic, "make_folder") else folder.mkdir(parents=True, exist_ok=True)
            if os.spawnlp(os.P_WAIT, "memorysam", "memorysam", "evaluate", *words.split()):
                raise EnvironmentFault(f"memorysam evaluate {words}: failed, as it says above")
    return out


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
    try:
        yield browser
    finally:
        browser.quit()


def picture(browser: Any, page: Path, *, scheme: str, width: int, height: int | None) -> bytes:
    """A PNG of a page's top, or of all of it.

    Args:
        browser: of :func:`window`.
        page: an HTML file.
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
    clip = {"x": 0, "y": 0, "width": width, "height": shown, "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": height is None, "clip": clip}
    taken = Image.open(io.BytesIO(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])))
    stored = io.BytesIO()
    taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(stored, "PNG", optimize=True)
    return stored.getvalue()


if __name__ == "__main__":
    typer.run(main)
