"""Who may ask: API keys from a file, and how many requests of a key run at the same time."""

import hmac
import math
from collections import Counter
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.errors import ConfigurationError
from service.engine_thread import EngineThread
from service.headers import header
from service.openai_answer import error_body
from service.page import STATIC

OPEN = frozenset({"/", "/health", "/health/live", "/health/ready", "/metrics"})  # who probes and scrapes has no key


class Keys:
    """Names and their keys."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, file: Path) -> "Keys":
        """One key a line, `name:key` or alone (its name is then its line); raises ConfigurationError.

        Empty lines and those that begin with # are left out. No message has a key in it.
        """
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--api-key-file {file} cannot be read: {error}") from None
        keys: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            before, colon, after = line.strip().partition(":")
            name, key = (before, after) if colon else (f"line-{number}", before)
            if not name or not key or not (name + key).isascii() or not (name + key).isprintable() or " " in name + key:
                right = "KEY or NAME:KEY, of printable ASCII without spaces"
                raise ConfigurationError(f"--api-key-file {file}, line {number} is no key: write {right}")
            if name in keys or key.encode() in keys.values():
                raise ConfigurationError(f"--api-key-file {file}, line {number}: its name or key was there before")
            keys[name] = key.encode()
        if not keys:
            raise ConfigurationError(f"--api-key-file {file} has no key: write one a line")
        return cls(keys)

    def name(self, authorization: str) -> str | None:
        """Whose key an Authorization header has; takes the same time for any key of a length."""
        scheme, _, given = authorization.partition(" ")
        found = None
        for name, key in self._keys.items():
            if hmac.compare_digest(key, given.strip().encode("latin-1")):
                found = name
        return found if scheme.lower() == "bearer" else None


class KeyCheck:
    """401 without a key, 429 with more than `most` requests of one key (0: no limit)."""

    def __init__(self, app: ASGIApp, keys: Keys, most: int, engine: EngineThread) -> None:
        self._app, self._keys, self._most, self._engine = app, keys, most, engine
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or scope["path"].startswith(f"{STATIC}/"):
            await self._app(scope, receive, send)
            return
        name = self._keys.name(header(scope, b"authorization"))
        if name is None:
            message = "no API key, or none that this server knows: send Authorization: Bearer KEY"
            body = error_body(message, 401, code="invalid_api_key")
            await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        scope["state"]["key"] = name
        if self._most and self._running[name] >= self._most:
            message = f"{self._most} requests of the key {name} are running, and no key may have more: try again later"
            share = self._engine.live / self._running[name]  # of what ends, every so many-th is this key's
            seconds = self._engine.retry_after(math.ceil(share))
            body = error_body(message, 429, code="key_limit")
            await JSONResponse(body, 429, {"Retry-After": str(seconds)})(scope, receive, send)
            return
        self._running[name] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running[name] -= 1
            if not self._running[name]:
                del self._running[name]
