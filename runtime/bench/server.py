"""The server that a load is for: one that runs already, or one started for the measurement."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime.errors import ConfigurationError, StepError
from runtime.params import EngineConfig

POLL_SECONDS = 0.1
STOP_SECONDS = 60.0  # longer than a server without requests takes

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def health(url: str) -> tuple[int, dict[str, Any]]:
    """Status and body of /health. Raises ConfigurationError if nobody of ours answers there."""
    try:
        with _direct.open(f"{url}/health", timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise ConfigurationError(f"{url}/health answers {error.code}: no Gorgon server") from None
        return error.code, json.load(error)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"no server at {url}: {error}") from None


class RunningServer:
    """A server that somebody else runs, where it is ready."""

    pid = None

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError."""
        self.url = url.rstrip("/")
        status, self.health = health(self.url)
        if status != 200:
            raise ConfigurationError(f"the server at {self.url} is {self.health['status']}")

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        """A server that goes away shows in the requests' outcomes."""


class StartedServer:
    """`python -m service` on a free port, from __enter__ to __exit__; what it prints is passed on."""

    def __init__(self, artifact: Path, config: EngineConfig) -> None:
        self._command = [
            sys.executable,
            "-m",
            "service",
            "--artifact",
            str(artifact),
            "--port",
            "0",
            *arguments(config),
        ]
        self._last: deque[str] = deque(maxlen=1)  # line that it printed
        self._address: str | None = None

    def __enter__(self) -> "StartedServer":
        """Returns once it is ready. Raises ConfigurationError if it ends before that."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            while not self._ready():
                if self._process.poll() is not None:
                    self._close()
                    raise ConfigurationError(f"the server ended, exit code {self._process.returncode}: {self._said}")
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """SIGTERM. Raises StepError where it does not end well, unless something else is being raised."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._close()
        if code and error is None:
            raise StepError(f"the server ended with exit code {code}: {self._said}")

    def check(self) -> None:
        """Raises StepError if it has died."""
        if self._process.poll() is not None:
            self._reader.join()
            raise StepError(f"the server died, exit code {self._process.returncode}: {self._said}")

    def _close(self) -> None:
        """After its end: waits for its last line."""
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def _said(self) -> str:
        return self._last[0] if self._last else "it said nothing"

    def _ready(self) -> bool:
        if self._address is None:
            return False
        self.url = self._address
        try:
            status, self.health = health(self.url)
        except ConfigurationError:  # it is about to answer, or to end: asked again for as long as it lives
            return False
        return status == 200

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last.append(line.strip())
            found = re.match(r"listening on (http://\S+), ", line)
            if found:
                self._address = found[1]
            print(line, end="", file=sys.stderr)


def arguments(config: EngineConfig) -> list[str]:
    """The options of `python -m service` for all that differs from the defaults, which are the same there."""
    given = []
    for field in fields(EngineConfig):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if value == field.default:
            continue
        given += (
            ([f"--{name}"] if value else [f"--no-{name}"]) if isinstance(value, bool) else [f"--{name}", str(value)]
        )
    return given
