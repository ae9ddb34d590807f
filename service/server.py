"""The process around the application: its socket, its signals, and how it ends."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from runtime.errors import ConfigurationError, GorgonError, StepError
from service.app import create_app
from service.config import WebConfig
from service.connection import Connection
from service.doorkeeper import Doorkeeper
from service.engine_thread import EngineThread
from service.metrics import Metrics
from service.tracing import Tracing

if TYPE_CHECKING:
    from runtime.engine import Engine

BACKLOG = 2048
UNREAD_BYTES = 256 << 10  # that the system keeps for a client that does not read; by itself it would keep megabytes
GRACE_SECONDS = 2.0  # for the last bytes of answers that have ended, once the server stops

logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigurationError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error}") from None
    # Connections inherit it. asyncio does not set it on sockets it was handed, and a token that waits for the client to
    # acknowledge the one before is up to 40 ms late.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
    return listener


def serve(load: Callable[[], "Engine"], listener: socket.socket, web: WebConfig) -> None:
    """Serves until a signal comes; returns when what ran has finished. Raises what ended the engine, if it died."""
    tracing = None if web.otlp_traces_endpoint is None else Tracing.to(web.otlp_traces_endpoint)
    engine = EngineThread(load, web.request_timeout, web.stream_interval)
    try:
        Server(engine, web, tracing).run(sockets=[listener])
    finally:
        if tracing is not None:
            tracing.close()
    if isinstance(engine.error, GorgonError):
        raise engine.error
    if engine.error is not None:
        raise StepError(f"the engine has stopped: {engine.error}") from engine.error


class Server(uvicorn.Server):
    """Drains: after the first SIGTERM or Ctrl-C it finishes what runs, while new requests get 503.

    It leaves when every request has its answer, when `drain_seconds` have passed, or at the second signal; also when
    the engine cannot be loaded, or breaks. Answers that still run then end with an error.
    """

    def __init__(self, engine: EngineThread, web: WebConfig, tracing: Tracing | None = None) -> None:
        metrics = Metrics(engine, web.served_model_name[0] if web.served_model_name else None)
        connection = partial(Connection, read_seconds=web.read_timeout, write_seconds=web.write_timeout)
        options = uvicorn.Config(
            Doorkeeper(create_app(engine, metrics, web), metrics, web.log_requests, tracing),
            http=connection,  # type: ignore[arg-type]  # called as a class is
            loop="uvloop",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            ws="none",
            proxy_headers=False,  # nothing here asks who the client is, nor sends it elsewhere
        )
        super().__init__(options)
        self._engine = engine
        self._drain_seconds = web.drain_seconds
        self._leave_by: float | None = None
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1  # the rest is on_tick's: little is safe in a signal handler

    async def on_tick(self, counter: int) -> bool:
        leave = await super().on_tick(counter)
        if self._engine.status == "failed":  # who supervises the process starts another one
            return True
        if self._signals and not self._engine.draining:
            self._engine.draining = True
            self._leave_by = time.monotonic() + self._drain_seconds
            if live := self._engine.live:
                logger.info("finishing %d requests, at most %g s; stop again to leave now", live, self._drain_seconds)
        if self._leave_by is None:
            return leave
        return leave or self._signals > 1 or not self.server_state.tasks or time.monotonic() >= self._leave_by

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.end_all("the server has stopped before the answer was complete")
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._drop_connections)
        await super().shutdown(sockets)

    def _drop_connections(self) -> None:
        """Clients that do not read, or never finished a request, do not keep the process."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
