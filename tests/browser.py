"""A headless Chromium, driven by its own protocol: no driver is installed, and none has to fit its version."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

#: The packages of Debian are ``chromium-headless-shell`` and ``chromium``.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_STARTS_WITHIN_S, _ANSWERS_WITHIN_S = 30.0, 30.0


def find_chromium() -> str | None:
    """Return the browser that CHROMIUM names, or the first that is installed."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser; a context manager. What the page logs, breaks on and asks for is written down."""

    def __init__(self, program: str, folder: Path, *, headers: Mapping[str, str]) -> None:
        self._program, self._folder, self._headers = program, folder, dict(headers)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._loaded = 0

    def __enter__(self) -> Self:
        # Some environments name a proxy: what is asked of this machine is no business of its.
        self._process = subprocess.Popen(
            [
                self._program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-proxy-server",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port, _, path = self._address().partition("\n")
            self._socket = connect(f"ws://127.0.0.1:{port}{path.strip()}", max_size=64 << 20, proxy=None)
            target = self._say("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self._say(f"{domain}.enable")
            self._say("Network.setExtraHTTPHeaders", headers=self._headers)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=_ANSWERS_WITHIN_S)

    def look(self, *, width: int, height: int, scheme: str = "light", scale: float = 1.0) -> None:
        """Be a screen of this size, of somebody who likes it light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
        self._say("Emulation.setDeviceMetricsOverride", **size)
        self._say("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        """Go to an address and wait until all of it is loaded."""
        before = self._loaded
        self._say("Page.navigate", url=url)
        until = time.monotonic() + _ANSWERS_WITHIN_S
        while self._loaded == before:
            self._hear(until - time.monotonic())

    def run(self, script: str) -> Any:
        """Return what an expression is worth in the page; a promise is waited for."""
        found = self._say("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go: Tab, Enter."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        event = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self._say("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self._say("Input.dispatchKeyEvent", type="keyUp", **event)

    def shoot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page, or of what the screen shows of it."""
        found = self._say("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(found["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._say("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _address(self) -> str:
        told = self._folder / "DevToolsActivePort"
        until = time.monotonic() + _STARTS_WITHIN_S
        while not told.exists() or "\n" not in told.read_text():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self._program} does not start: run it by hand to see why")
            time.sleep(0.05)
        return told.read_text()

    def _say(self, method: str, **given: Any) -> Any:
        number = next(self._numbers)
        session = getattr(self, "_session", None)
        message = {"id": number, "method": method, "params": given}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        until = time.monotonic() + _ANSWERS_WITHIN_S
        while True:
            heard = self._hear(until - time.monotonic())
            if heard.get("id") == number:
                assert "error" not in heard, (method, heard)
                return heard["result"]

    def _hear(self, within_s: float) -> dict[str, Any]:
        heard: dict[str, Any] = json.loads(self._socket.recv(timeout=max(0.1, within_s)))
        what, given = heard.get("method"), heard.get("params", {})
        if what == "Page.loadEventFired":
            self._loaded += 1
        elif what == "Network.requestWillBeSent":
            self.asked.append(given["request"]["url"])
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(str(given["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.complaints.append(str(given["args"]))
        elif what == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(given["entry"]))
        elif what == "Network.loadingFailed" and not given.get("canceled"):
            self.complaints.append(str(given))
        return heard
