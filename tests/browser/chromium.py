"""A headless Chromium over its devtools protocol, through a pipe: what people press and see, and what the page asks.

https://chromedevtools.github.io/devtools-protocol/ (stable parts, and Emulation).
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 30.0  # how long a test waits for what should come at once
NAMES = ("chromium", "chromium-browser", "google-chrome")
KEYS = {
    "Enter": 13,
    "Tab": 9,
    "Backspace": 8,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "End": 35,
    "Home": 36,
    " ": 32,
}
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--mute-audio", "--hide-scrollbars",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """The process. It reads commands from descriptor 3 and writes answers to 4, each JSON and a zero byte."""

    def __init__(self, program: str, home: Path) -> None:
        commands, self._commands = _pipe()
        self._answers, answers = _pipe()
        log = (os.POSIX_SPAWN_OPEN, 2, str(home / "log"), os.O_WRONLY | os.O_CREAT, 0o600)
        actions = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4), log]
        arguments = [program, *SWITCHES, f"--user-data-dir={home / 'profile'}", "about:blank"]
        self._process = os.posix_spawn(program, arguments, os.environ | {"HOME": str(home)}, file_actions=actions)
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._next = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, /, **params: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        os.write(self._commands, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while (answer := self.read(deadline - time.monotonic())) is None or answer.get("id") != self._next:
            assert time.monotonic() < deadline, f"Chromium does not answer {method}"
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def read(self, seconds: float) -> dict[str, Any] | None:
        """The next message within so many seconds; an event is kept as well."""
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], max(0.0, seconds))[0]:
                return None
            new = os.read(self._answers, 1 << 20)
            assert new, "Chromium has ended: its log says why"
            self._rest += new
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if "method" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        os.kill(self._process, signal.SIGKILL)  # it has nothing to keep
        os.waitpid(self._process, 0)
        os.close(self._commands)
        os.close(self._answers)


def _pipe() -> tuple[int, int]:
    """Above the descriptors that the child gets."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


class Page:
    """One tab of a browser that has never been anywhere."""

    def __init__(self, chromium: Chromium, context: str) -> None:
        self._chromium, self._context = chromium, context
        target = chromium.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.excused: tuple[str, ...] = ()  # words of the complaints that a test brings about
        self._session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # other tabs do not take the focus
        self.size(1280, 900)

    def close(self) -> None:
        self._chromium.call("Target.disposeBrowserContext", browserContextId=self._context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._chromium.call(method, self._session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a kind so far."""
        self.call("Runtime.evaluate", expression="0")  # what was sent before has come then
        return [
            e["params"] for e in self._chromium.events if (e.get("sessionId"), e["method"]) == (self._session, method)
        ]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def prefer(self, **features: str) -> None:
        """Such as `color_scheme="dark"`."""
        media = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=media)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits for it to become true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"!!({expression})"):
            assert time.monotonic() < deadline, f"it never came about: {expression}\n{self.text('body')}"
            time.sleep(0.01)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        """Of all such elements, also as far as they are not seen."""
        found: list[str] = self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
        return found

    def press(self, *keys: str) -> None:
        """Keys of KEYS, or one character each, "Shift+" before them or not."""
        for pressed in keys:
            key = pressed.removeprefix("Shift+")
            code = KEYS.get(key) or ord(key.upper())
            text = {"text": "\r" if key == "Enter" else key} if key in ("Enter", " ") or len(key) == 1 else {}
            event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 * (key != pressed)}
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def hover(self, selector: str) -> tuple[float, float]:
        place = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(
            f"(r => [r.x + Math.min(r.width, 8) / 2, r.y + Math.min(r.height, 30) / 2])({place}.getClientRects()[0])"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
        return box[0], box[1]

    def click(self, selector: str) -> None:
        x, y = self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def focused(self) -> str:
        """The accessible name of what has the focus."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return next(
            (n["name"]["value"] for n in nodes if _is(n, "focused") and n["role"]["value"] != "RootWebArea"), ""
        )

    def controls(self) -> list[tuple[str, str]]:
        """Role and accessible name of everything that takes the focus, as Chromium tells assistive technology."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        taking = [n for n in nodes if not n["ignored"] and _is(n, "focusable") and n["role"]["value"] != "RootWebArea"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in taking]

    def complaints(self) -> list[str]:
        """What the console has: errors, warnings, what the policy forbids, answers that are none."""
        logged = [event["entry"]["text"] for event in self.events("Log.entryAdded")]
        said = [str(event["args"]) for event in self.events("Runtime.consoleAPICalled")]
        thrown = [str(event["exceptionDetails"]) for event in self.events("Runtime.exceptionThrown")]
        return [text for text in logged + said + thrown if not any(word in text for word in self.excused)]

    def requests(self) -> list[dict[str, Any]]:
        """All that the page has asked for, its own address among it."""
        return [event["request"] | {"id": event["requestId"]} for event in self.events("Network.requestWillBeSent")]

    def shot(self, file: Path, **clip: float) -> None:
        options = {"clip": {"scale": 1, **clip}} if clip else {}
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"]))


def _is(node: dict[str, Any], state: str) -> bool:
    return any(p["name"] == state and p["value"].get("value") for p in node.get("properties", ()))


@contextmanager
def browser(program: str, home: Path) -> Iterator[Callable[[], Page]]:
    """A function that gives new pages, each without anything that another one kept."""
    chromium = Chromium(program, home)
    try:
        yield lambda: Page(chromium, chromium.call("Target.createBrowserContext")["browserContextId"])
    finally:
        chromium.close()
