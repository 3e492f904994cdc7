"""A headless Chromium, spoken to by the WebDriver protocol: plain HTTP, no package needed."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Browser:
    """One window; `call` is a command of the W3C WebDriver protocol."""

    def __init__(self, port: int, width: int, height: int, dark: bool) -> None:
        self.address = f"http://127.0.0.1:{port}/session"
        scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
        flags = [*FLAGS, f"--window-size={width},{height}", *scheme]
        found = self.call(
            "",
            capabilities={
                "alwaysMatch": {
                    "goog:chromeOptions": {"args": flags},
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
            },
        )
        self.address += f"/{found['sessionId']}"

    def call(self, path: str, method: str = "POST", **data: Any) -> Any:
        body = json.dumps(data).encode() if method == "POST" else None
        request = Request(self.address + path, body, method=method)
        with urlopen(request, timeout=180) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        """Loads a page from the disk and waits until all of it is there."""
        self.call("/url", url=page.resolve().as_uri())
        until = time.monotonic() + 120
        while not self.run("return document.readyState === 'complete'"):
            assert time.monotonic() < until, "the page does not come to rest"
            assert not (said := self.errors()), said
            time.sleep(0.1)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("/execute/sync", script=script, args=list(arguments))

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Moves the mouse there, from the window's upper left corner."""
        steps = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 50}]
        steps += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")] * click
        mouse = {"type": "pointer", "id": "mouse", "actions": steps}
        self.call("/actions", actions=[mouse])

    def press(self, *keys: str) -> None:
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("/actions", actions=[{"type": "key", "id": "keys", "actions": steps}])

    def errors(self) -> list[str]:
        """What the page has logged as errors so far."""
        lines = self.call("/se/log", type="browser")
        return [line["message"] for line in lines if line["level"] == "SEVERE"]


@contextmanager
def browser(width: int = 1300, height: int = 900, *, dark: bool = False) -> Iterator[Browser]:
    """A window of that size.

    Raises:
        FileNotFoundError: If there is no chromedriver.
    """
    program = shutil.which("chromedriver")
    if program is None:
        raise FileNotFoundError("no chromedriver (Debian: apt-get install chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([program, f"--port={port}", "--log-level=OFF"])
    try:
        window = connect(port, width, height, dark)
        try:
            yield window
        finally:
            window.call("", "DELETE")
    finally:
        driver.terminate()
        driver.wait()


def connect(port: int, width: int, height: int, dark: bool) -> Browser:
    until = time.monotonic() + 60
    while True:
        try:
            return Browser(port, width, height, dark)
        except URLError as error:
            if time.monotonic() > until or getattr(error, "code", 0):
                raise
            time.sleep(0.2)
