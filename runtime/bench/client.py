"""The client of a load: requests over HTTP, what comes back timed as it arrives.

It shares the machine with what it measures, so it is light while it measures: a request's bytes are there before the
first is sent, and answers are looked into when the last has ended. httptools finds where an answer ends.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import uvloop

from runtime.bench.arrivals import Closed, Load, Request
from runtime.bench.connection import Connection, Heard
from runtime.bench.timeline import Outcome, Timeline

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0  # of a connection: less than any server keeps one, so that none is closed under a request
REFUSALS: dict[int, Outcome] = {429: "refused", 503: "not ready"}


def drive(url: str, load: Load, requests: Sequence[Request], fields: dict[str, Any], timeout: float) -> list[Timeline]:
    """Sends all requests as the load wants it, `fields` in each body; waits at most `timeout` seconds for an event.

    A refused request is not sent again. The timelines are in the requests' order.
    """
    place = Place(url, timeout)
    asked = [place.request(_body(request, fields)) for request in requests]
    heard = [Heard() for _ in requests]
    began, dues = uvloop.run(_drive(place, load, requests, asked, heard))
    return [_timeline(due, one, began) for due, one in zip(dues, heard, strict=True)]


async def _drive(
    place: "Place", load: Load, requests: Sequence[Request], asked: Sequence[bytes], heard: Sequence[Heard]
) -> tuple[float, list[float]]:
    """When the run began, by `time.perf_counter`, and when each request was due, in seconds since then."""
    began = time.perf_counter()
    dues = [request.due for request in requests]
    waiting = iter(range(len(requests)))

    async def client() -> None:
        for i in waiting:
            dues[i] = time.perf_counter() - began
            await place.ask(asked[i], heard[i])

    async def visit(i: int) -> None:
        await asyncio.sleep(dues[i] - (time.perf_counter() - began))
        await place.ask(asked[i], heard[i])

    if isinstance(load, Closed):
        await asyncio.gather(*(client() for _ in range(load.clients)))
    else:
        await asyncio.gather(*(visit(i) for i in range(len(requests))))
    place.close()
    return began, dues


class Place:
    """Where requests go, and the connections there that wait for a next one."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        self._host, self._secure = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        self._timeout = timeout
        self._idle: list[tuple[float, Connection]] = []  # since when each

    def request(self, body: bytes) -> bytes:
        return f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def ask(self, request: bytes, heard: Heard) -> None:
        """One request to its end, whatever that is."""
        heard.sent = time.perf_counter()
        try:
            connection = self._waiting() or await self._connect()
            await connection.ask(request, heard)
        except OSError as error:
            heard.error = error
        heard.end = time.perf_counter()
        if heard.error is None and connection.open:
            self._idle.append((heard.end, connection))

    def close(self) -> None:
        for _, connection in self._idle:
            connection.close()

    def _waiting(self) -> Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.open and time.perf_counter() - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        """Raises OSError."""
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._timeout), self._host, self._port, ssl=self._secure or None
            )
        return connection


def _body(request: Request, fields: dict[str, Any]) -> bytes:
    own = {"prompt": request.prompt, "max_tokens": request.max_tokens, "seed": request.seed, "stream": True}
    return json.dumps(own | fields).encode()


def _timeline(due: float, heard: Heard, began: float) -> Timeline:
    """`began` is the clock at the start of the run. The last event of an answer has its usage, unless it broke off."""
    sent, end = heard.sent - began, heard.end - began
    if heard.error is None and heard.status != 200:
        outcome = REFUSALS.get(heard.status, "failed")
        return Timeline(due, sent, (), end, outcome, error=f"{heard.status}: {heard.body.decode(errors='replace')}")
    events, last, rest = [], b"", b""
    for at, piece in heard.pieces:
        *whole, rest = (rest + piece).split(b"\n\n")
        events += [at - began] * len(whole)
        last = whole[-1] if whole else last
    if heard.error is not None:
        outcome = "timed out" if isinstance(heard.error, TimeoutError) else "disconnected"
        reason = f"{type(heard.error).__name__}: {heard.error}"
        return Timeline(due, sent, tuple(events), end, outcome, error=reason)
    answer = json.loads(last.removeprefix(b"data: ")) if last else {}
    if "usage" not in answer:
        return Timeline(due, sent, tuple(events), end, "disconnected", error="the stream broke off before its end")
    error = answer.get("error")
    return Timeline(
        due,
        sent,
        tuple(events[:-1]),
        events[-1],
        "failed" if error else "completed",
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
        error and f"{error['type']}: {error['message']}",
    )
