"""A headless Chromium: Debian's own, or whatever chromium and chromedriver the PATH has; nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install '.[dev]')")

NAMES = ("chromium", "chromium-browser", "google-chrome")
Opened = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One for all tests; it may reach nothing, and tells each request that it would make."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (apt-get install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    found.set_page_load_timeout(30)
    yield found
    found.quit()


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """Opens a page in a window of a size and a color scheme; its console must stay empty."""

    def load(path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Any:
        wishes = {
            "prefers-color-scheme": scheme,
            "prefers-reduced-motion": "reduce",
        }  # clicks do not wait for scrolling
        media = {"features": [{"name": name, "value": value} for name, value in wishes.items()]}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.resolve().as_uri())
        return browser

    yield load
    assert [each["message"] for each in browser.get_log("browser")] == []
