"""What every request passes first and every response last: its id, its count, its line in the log, its span."""

import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answer import Answer
from service.headers import header
from service.ids import new_id
from service.metrics import Metrics
from service.tracing import Tracing

HEADER = b"x-request-id"
TAKEN = re.compile(r"[!-~]{1,128}")  # an id that is taken over: no spaces, nothing that breaks a line
PROBES = ("/health", "/health/live", "/health/ready", "/metrics")  # asked every few seconds: not logged

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asked the engine for: routes leave it in `request.state.asked`."""

    answers: Sequence[Answer]
    per_prompt: int = 1  # consecutive answers that have a prompt in common

    def figures(self, began: float) -> dict[str, Any]:
        """What the log says of them; `began` is when the request came."""
        sequences = [answer.sequence for answer in self.answers if answer.sequence is not None]
        prompts = [answer.sequence for answer in self.answers[:: self.per_prompt] if answer.sequence is not None]
        steps = sum(sequence.steps for sequence in sequences)
        decoded = sum(max(0, len(sequence.tokens) - 1) for sequence in sequences)
        first = min((answer.first for answer in self.answers if answer.first is not None), default=None)
        return {
            "prompt_tokens": sum(len(sequence.prompt) for sequence in prompts),
            "completion_tokens": sum(len(sequence.tokens) for sequence in sequences),
            "tokens_per_step": round(decoded / steps, 3) if steps else None,
            "ttft_ms": None if first is None else _ms(first - began),
            "reason": ",".join(sorted({answer.reason for answer in self.answers})),
        }

    def times(self) -> dict[str, float]:
        """Seconds by the engine's clock, all choices together: until the first was let in, to the first token, and on.

        What never began, or has not ended yet, is left out.
        """
        sequences = [answer.sequence for answer in self.answers if answer.sequence is not None]
        started = min((s.started for s in sequences if s.started is not None), default=None)
        first = min((s.first for s in sequences if s.first is not None), default=None)
        ended = max((s.ended for s in sequences if s.ended is not None), default=None)
        found = {}
        if started is not None:
            found["queue"] = started - min(s.arrived for s in sequences)
            if first is not None:
                found["prefill"] = first - started
                if ended is not None:
                    found["decode"] = max(0.0, ended - first)
        return found


class Doorkeeper:
    """Around the application, so that also its failures are seen."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log_requests: bool, tracing: Tracing | None = None) -> None:
        self._app, self._metrics, self._log_requests, self._tracing = app, metrics, log_requests, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        given = header(scope, HEADER)
        name = given if TAKEN.fullmatch(given) else new_id()
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.responded(_path(scope), message["status"])
                message["headers"] = [*message.get("headers", ()), (HEADER, name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            if scope["path"] not in PROBES:
                self._tell(scope, name, status, began)

    def _tell(self, scope: Scope, name: str, status: int | None, began: float) -> None:
        """Log and traces, of a request that is over."""
        if self._log_requests:
            logger.info("%s", json.dumps(_line(scope, name, status, began)))
        if self._tracing is not None:
            asked: Asked | None = scope["state"].get("asked")
            figures = {} if asked is None else asked.figures(began) | asked.times()
            self._tracing.record(
                Headers(scope=scope), scope["method"], _path(scope), status, time.monotonic() - began,
                {"id": name, **figures},
            )  # fmt: skip


def _path(scope: Scope) -> str:
    """A route's path: clients may ask for any number of others."""
    route = scope.get("route")
    return "other" if route is None else str(route.path)


def _line(scope: Scope, name: str, status: int | None, began: float) -> dict[str, Any]:
    """What is said of a request: never any of its text, nor a key."""
    state = scope["state"]
    asked: Asked | None = state.get("asked")
    own = {"id": name, "key": state.get("key"), "method": scope["method"], "path": scope["path"], "status": status}
    figures = {} if asked is None else asked.figures(began)
    return {**own, **figures, "total_ms": _ms(time.monotonic() - began)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
