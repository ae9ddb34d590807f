"""One client's connection: no request may take for ever to come, nor an answer to be taken.

uvicorn gives a connection time only between two requests; a client that sends half a request, or does not read, would
hold it, and what was written for it, for as long as it likes.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGER_NOT = struct.pack("ii", 1, 0)  # the system drops what waits too, and the client learns of it
HEAD_BYTES = 64 << 10  # of a request line and its headers
REFUSAL = "HTTP/1.1 {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}"


class Connection(HttpToolsProtocol):
    """Closes itself where a request's head is not whole after `read_seconds`, or is larger than HEAD_BYTES.

    Breaks off where the client has taken nothing of what waits for it for `write_seconds`. What waits is bounded: from
    64 KiB on, asyncio's high-water mark, an answer writes no more until the client has read. 0 seconds: no bound.

    A request's state has it as `connection`, and says with `came` when all of the request is there.
    """

    def __init__(self, *arguments: Any, read_seconds: float, write_seconds: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._read_seconds, self._write_seconds = read_seconds, write_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._ended = False  # a head or a body, amid the data that came last
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread = 0  # bytes that waited when the timer was set
        self._when_lost: Callable[[], None] | None = None
        self._lost = False

    def when_lost(self, call: Callable[[], None] | None) -> None:
        """What to call once the client has gone, at once if it has already; None: nobody needs to know any more.

        Of the one request that is answered, whose body has been read.
        """
        self._when_lost = call
        if call is not None:
            self.flow.resume_reading()  # a large body paused it, and who does not read hears of no end
            if self._lost:
                call()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)
        self._forget_reader()
        self._lost = True
        if self._when_lost is not None:
            self._when_lost()

    def data_received(self, data: bytes) -> None:
        self._ended = False
        super().data_received(data)
        if self._in_head:  # of one that begins amid the data, after something else, it is not known how much came
            self._head_bytes = 1 if self._ended else self._head_bytes + len(data)
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()  # something has begun to come, if only empty lines
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large", f"the headers have more than {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["connection"] = self
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes, self._ended = False, 0, True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if not self.flow.write_paused:
            self._forget_reader()  # it will write more: what waits no longer tells whether the client reads
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._ended = True
        self.scope["state"]["came"] = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._forget_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head_bytes and self._head_timer is None:  # a next request began to come amid this one
            self._unset_keepalive_if_required()
            self._await_head()
        if self.transport.get_write_buffer_size() and not self.flow.write_paused:
            self._await_reader()

    def _await_head(self) -> None:
        if self._read_seconds:
            self._head_timer = self.loop.call_later(self._read_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(
                "408 Request Timeout", f"the request did not come within the {self._read_seconds:g} s that it has"
            )
        else:
            self.transport.close()  # nothing was asked

    def _refuse(self, status: str, message: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(REFUSAL.format(status, len(message), message).encode())
            self.transport.close()

    def _await_reader(self) -> None:
        """From now on nothing is written, until it is told to forget: what waits can only become less."""
        self._forget_reader()
        self._unread = self._waiting()
        if self._write_seconds:
            self._write_timer = self.loop.call_later(self._write_seconds, self._reader_is_late)

    def _waiting(self) -> int:
        """Bytes that the client has not taken; where the system tells it, those too that it keeps for the client.

        It asks for more only when it has got rid of a third of what it keeps: a slow client would seem to read nothing.
        """
        mine = self.transport.get_write_buffer_size()
        if not mine or sys.platform != "linux":
            return mine
        kept = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return mine + int.from_bytes(kept, sys.byteorder)

    def _forget_reader(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _reader_is_late(self) -> None:
        self._write_timer = None
        unread = self._waiting()
        if unread and unread >= self._unread:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            self.transport.abort()
        elif unread:
            self._await_reader()
