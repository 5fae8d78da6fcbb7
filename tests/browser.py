"""Chromium without a screen, driven by Selenium."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-partial-raster",  # what does not change is painted to the same pixels
    "--force-device-scale-factor=1",
]
KEYS = {"left": Keys.LEFT, "right": Keys.RIGHT, "tab": Keys.TAB, "home": Keys.HOME, "enter": Keys.ENTER}


class Browser:
    """One window; `log` collects what the page writes to its console."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def devtools(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def open(self, page: Path) -> None:
        self.driver.get(page.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a JavaScript function body returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, seconds: float) -> None:
        """Lets the page go on for so long."""
        self.driver.set_script_timeout(4 * seconds)
        self.driver.execute_async_script("setTimeout(arguments[1], 1000 * arguments[0])", seconds)

    def keys(self, *names: str) -> None:
        """Presses and releases keys, in whatever has the focus."""
        ActionChains(self.driver).send_keys(*(KEYS.get(name, name) for name in names)).perform()

    def mouse(self, *steps: tuple[str, int, int]) -> None:
        """Steps ("move" | "down" | "up", x, y) in the window."""
        chain = ActionChains(self.driver, duration=20)
        pointer = chain.w3c_actions.pointer_action
        for what, x, y in steps:
            if what == "move":
                pointer.move_to_location(x, y)
            elif what == "down":
                pointer.pointer_down()
            else:
                pointer.pointer_up()
        chain.perform()

    def log(self) -> list[str]:
        """Messages of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """Gives the window a size in CSS pixels, and light or dark colours."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        time.sleep(0.3)  # until the page has drawn itself anew

    def pixels(self) -> np.ndarray:
        """What the window shows, `(height, width, 3)` in 0 … 255."""
        image = self.driver.get_screenshot_as_png()
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, closed in the end."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, Service(DRIVER)) as driver:  # nothing is looked for, nor fetched
        yield Browser(driver)
