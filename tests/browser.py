"""Chromium without a screen, driven through ChromeDriver by the W3C WebDriver protocol."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "tab": "\ue004", "home": "\ue011"}


class Browser:
    """One window; `log` collects what the page writes to its console."""

    def __init__(self, address: str, profile: Path) -> None:
        self.address = address
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None

    def close(self) -> None:
        self._send("DELETE", self.session)

    def command(self, path: str, **body: Any) -> Any:
        return self._send("POST", self.session + path, body)

    def devtools(self, name: str, **parameters: Any) -> Any:
        return self.command("/goog/cdp/execute", cmd=name, params=parameters)

    def open(self, page: Path) -> None:
        self.command("/url", url=page.resolve().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """What a JavaScript function body returns."""
        return self.command("/execute/sync", script=script, args=list(arguments))

    def find(self, selector: str) -> str:
        return self.command("/element", using="css selector", value=selector)[ELEMENT]

    def click(self, selector: str) -> None:
        self.command(f"/element/{self.find(selector)}/click")

    def keys(self, *names: str) -> None:
        """Presses and releases keys, in whatever has the focus."""
        typed = [KEYS.get(name, name) for name in names]
        actions = [{"type": kind, "value": key} for key in typed for kind in ("keyDown", "keyUp")]
        self.command("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def mouse(self, *steps: tuple[str, int, int]) -> None:
        """Steps ("move" | "down" | "up", x, y) in the window."""
        actions: list[dict[str, Any]] = []
        for what, x, y in steps:
            if what == "move":
                actions.append({"type": "pointerMove", "duration": 20, "x": x, "y": y})
            else:
                actions.append({"type": "pointerDown" if what == "down" else "pointerUp", "button": 0})
        self.command("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": actions}])

    def log(self) -> list[str]:
        """Messages of the console since the last call."""
        return [entry["message"] for entry in self.command("/se/log", type="browser")]

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
        image = base64.b64decode(self._send("GET", self.session + "/screenshot"))
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)

    def picture(self, path: Path) -> None:
        """Saves a PNG of the whole page."""
        image = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, closed in the end."""
    assert DRIVER is not None
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            line = next(line for line in driver.stdout if "successfully on port" in line)
            browser = Browser(f"http://127.0.0.1:{line.rstrip().rstrip('.').split()[-1]}", profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
