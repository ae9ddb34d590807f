"""One HTTP request on a socket of its own, which can be sent in parts, read in sips, or left at any byte."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any

import h11

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, as a process that dies does


@dataclass(frozen=True, slots=True)
class Reply:
    """`whole`: it came to its end, as its own length or last chunk says."""

    status: int
    body: bytes
    whole: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of server-sent events that came whole."""
        return [event.decode().removeprefix("data: ") for event in self.body.split(b"\n\n")[:-1]]


class Exchange:
    """Raises OSError where there is no connection, or it is reset."""

    def __init__(self, path: str, body: bytes) -> None:
        self._http = h11.Connection(h11.CLIENT)
        headers = {"host": "x", "content-type": "application/json", "content-length": str(len(body))}
        request = h11.Request(method="POST", target=path, headers=list(headers.items()))
        self.head = self._http.send(request)
        self.body = self._http.send(h11.Data(data=body)) or b""
        self._http.send(h11.EndOfMessage())
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket

    async def open(self, address: tuple[str, int], receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if receive_buffer is not None:  # before it connects: it bounds what the server may send ahead
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await self._loop.sock_connect(self._socket, address)
        except BaseException:
            self._socket.close()
            raise

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def reply(self, sip: int = 1 << 16, pause: float = 0.0) -> Reply:
        """Reads to the end of the response, or of the connection; `sip` bytes at a time, with a `pause` between."""
        status, body = 0, bytearray()
        while True:
            event = self._next()
            match event:
                case h11.Response():
                    status = event.status_code
                case h11.Data():
                    body += event.data
                case h11.EndOfMessage():
                    return Reply(status, bytes(body), True)
                case h11.ConnectionClosed() | None:
                    return Reply(status, bytes(body), False)
                case _:
                    await asyncio.sleep(pause)
                    try:
                        data = await self._loop.sock_recv(self._socket, sip)
                    except ConnectionError:  # a reset: what came before it is what there is
                        return Reply(status, bytes(body), False)
                    self._http.receive_data(data)

    def _next(self) -> Any:
        """None where the connection ended amid a response."""
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            return None

    def error(self) -> int:
        """The error that the connection has met, 0 if it has none: a reset shows without reading."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self, abruptly: bool = False) -> None:
        """Of one that was opened."""
        if abruptly:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._socket.close()
