"""A connection of a load's client: requests over HTTP, one after the other, and what comes back with its times."""

import asyncio
import time
from dataclasses import dataclass, field

import httptools


@dataclass(slots=True)
class Heard:
    """What came of one request; times by `time.perf_counter`."""

    sent: float = 0.0
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)  # of the body, as they came
    end: float = 0.0
    error: OSError | None = None  # why it broke off, if it did: TimeoutError where nothing came any more

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class Connection(asyncio.Protocol):
    """Keeps what it receives, and looks into nothing but HTTP's own framing."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds in which something has to come."""
        self.open = False
        self._timeout = timeout
        self._heard = Heard()
        self._whole: asyncio.Future[None] | None = None  # of the answer that is awaited

    async def ask(self, request: bytes, heard: Heard) -> None:
        """Sends the bytes of a request; returns with its answer. Raises OSError where that breaks off."""
        loop = asyncio.get_running_loop()
        self._heard, self._whole = heard, loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._last = time.perf_counter()
        self._timer = loop.call_later(self._timeout, self._look)
        self._transport.write(request)
        try:
            await self._whole
        finally:
            self._timer.cancel()
            self._whole = None

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def _fail(self, error: OSError) -> None:
        self.close()
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(error)

    def _look(self) -> None:
        """Whether something came since the timer was set; if so, it is set again."""
        left = self._timeout - (time.perf_counter() - self._last)
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self._fail(TimeoutError(f"nothing came for {self._timeout:g} s"))

    # Called by the event loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        self._last = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"what came is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"the connection broke off: {exc or 'closed by the server'}"))

    # Called by the parser.

    def on_headers_complete(self) -> None:
        self._heard.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._heard.pieces.append((self._last, body))

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._whole is not None and not self._whole.done():
            self._whole.set_result(None)
