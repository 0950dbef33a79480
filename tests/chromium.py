"""A page in headless Chromium, by its debugging pipe: what stands on the page, and what a mouse or a finger does to it.

The protocol is JSON with a zero byte behind each message (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
Place = tuple[float, float]  # as shares of the width and the height of an element


@dataclass
class BrowserPage:
    commands: IO[bytes]
    answers: IO[bytes]
    session: str | None = None
    complaints: list[str] = field(default_factory=list)  # errors of the page, and requests that leave its file
    _asked: int = 0

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        self.commands.write(
            json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        self.commands.flush()
        while True:
            found: dict[str, Any] = json.loads(self._message())
            if found.get("id") == self._asked:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self._listen(found)

    def value(self, expression: str) -> Any:  # JSON
        """The value of an expression of JavaScript on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def drag(self, selector: str, start: Place, end: Place, *, by_finger: bool = False) -> None:
        """Drags over the first element of this selector, in two moves."""
        self.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.value(f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())")
        area = json.loads(box)
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        places = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, middle, end)]
        for kind, (x, y) in zip(("begin", "move", "move", "end"), (places[0], *places[1:], places[2]), strict=True):
            if by_finger:
                named = {"begin": "touchStart", "move": "touchMove", "end": "touchEnd"}[kind]
                points = [] if kind == "end" else [{"x": x, "y": y}]
                self.call("Input.dispatchTouchEvent", type=named, touchPoints=points)
            else:
                named = {"begin": "mousePressed", "move": "mouseMoved", "end": "mouseReleased"}[kind]
                self.call("Input.dispatchMouseEvent", type=named, x=x, y=y, button="left", clickCount=1)

    def _message(self) -> bytes:
        found = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            found += byte
        return bytes(found)

    def _listen(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        is_outside = event.get("method") == "Network.requestWillBeSent" and told["request"]["url"][:5] != "file:"
        if is_outside or event.get("method") in (
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
        ):
            self.complaints.append(json.dumps(told))


@contextlib.contextmanager
def opened(file: Path, profile: Path, width: int = 1200, *, has_touch: bool = False) -> Iterator[BrowserPage]:
    """The page of a file, drawn, in a window of this width."""
    (read_commands, write_commands), (read_answers, write_answers) = os.pipe(), os.pipe()
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}")
    at_their_places = f"exec chromium {' '.join(options)} 3<&{read_commands} 4>&{write_answers}"
    with subprocess.Popen(
        ["bash", "-c", at_their_places], pass_fds=(read_commands, write_answers), stderr=subprocess.DEVNULL
    ) as process:
        os.close(read_commands)
        os.close(write_answers)
        with os.fdopen(write_commands, "wb") as commands, os.fdopen(read_answers, "rb") as answers:
            page = BrowserPage(commands, answers)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=has_touch
            )
            page.call("Emulation.setTouchEmulationEnabled", enabled=has_touch)
            page.call("Page.navigate", url=file.as_uri())
            until = time.monotonic() + 30
            while not page.value(
                "document.readyState === 'complete' && document.querySelector('#provenance') !== null"
            ):
                assert time.monotonic() < until, page.complaints
            try:
                yield page
            finally:
                process.kill()
