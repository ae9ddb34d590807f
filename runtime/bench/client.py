"""The client of a load: requests over HTTP, their events timed as they arrive.

It shares the machine with what it measures, so it is light: aiohttp on uvloop takes a fifth of httpx's processor time
an event, and an event is looked into only when it is its answer's last. Answers are not kept.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import uvloop

from runtime.bench.arrivals import Closed, Load, Request
from runtime.bench.timeline import Outcome, Timeline

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0  # of a connection: less than any server keeps one, so that none is closed under a request
REFUSALS: dict[int, Outcome] = {429: "refused", 503: "not ready"}


def drive(url: str, load: Load, requests: Sequence[Request], fields: dict[str, Any], timeout: float) -> list[Timeline]:
    """Sends all requests as the load wants it, `fields` in each body; waits at most `timeout` seconds for an event.

    A refused request is not sent again. The timelines are in the requests' order.
    """
    return uvloop.run(_drive(url, load, requests, fields, timeout))


async def _drive(
    url: str, load: Load, requests: Sequence[Request], fields: dict[str, Any], timeout: float
) -> list[Timeline]:
    bodies = [_body(request, fields) for request in requests]
    patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout)
    headers = {"content-type": "application/json"}
    timelines: list[Timeline | None] = [None] * len(requests)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=patience, headers=headers) as session:
        began = time.perf_counter()
        waiting = iter(enumerate(requests))

        async def client() -> None:
            for i, _ in waiting:
                timelines[i] = await _ask(session, url, bodies[i], time.perf_counter() - began, began)

        async def visit(i: int, due: float) -> None:
            await asyncio.sleep(due - (time.perf_counter() - began))
            timelines[i] = await _ask(session, url, bodies[i], due, began)

        if isinstance(load, Closed):
            await asyncio.gather(*(client() for _ in range(load.clients)))
        else:
            await asyncio.gather(*(visit(i, request.due) for i, request in enumerate(requests)))
    assert None not in timelines
    return timelines  # type: ignore[return-value]


def _body(request: Request, fields: dict[str, Any]) -> bytes:
    own = {"prompt": request.prompt, "max_tokens": request.max_tokens, "seed": request.seed, "stream": True}
    return json.dumps(own | fields).encode()


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, due: float, began: float) -> Timeline:
    """One request to its end, whatever that is. `began` is the clock at the start of the run."""
    clock = time.perf_counter
    sent, events, last, rest = clock() - began, [], b"", b""
    outcome: Outcome
    try:
        async with session.post(url, data=body) as response:
            if response.status != 200:
                outcome, error = REFUSALS.get(response.status, "failed"), await response.text()
                return Timeline(due, sent, (), clock() - began, outcome, error=f"{response.status}: {error}")
            async for data in response.content.iter_any():
                now = clock() - began
                *whole, rest = (rest + data).split(b"\n\n")
                if whole:
                    events += [now] * len(whole)
                    last = whole[-1]
    except (TimeoutError, aiohttp.ClientError) as broken:
        outcome = "timed out" if isinstance(broken, TimeoutError) else "disconnected"
        reason = f"{type(broken).__name__}: {broken}"
        return Timeline(due, sent, tuple(events), clock() - began, outcome, error=reason)
    return _ended(due, sent, events, clock() - began, last)


def _ended(due: float, sent: float, events: list[float], end: float, last: bytes) -> Timeline:
    """The timeline of a stream that the server has closed; its last event has the usage, unless it broke off."""
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
