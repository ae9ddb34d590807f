"""A response of server-sent events, for answers that go on while it is sent."""

from abc import abstractmethod

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.connection import Connection
from service.news import News


class Stream(Response):
    """Sends what there is, and what comes with each news, to the end or until the client goes; then gives rows back.

    What is there at the same time goes out as one piece, the end of the response with it: a piece costs more than all
    else that is done for an event.
    """

    media_type = "text/event-stream"
    status_code = 200
    background = None
    raw_headers = [
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (b"content-type", b"text/event-stream; charset=utf-8"),
    ]

    def __init__(self, news: News, connection: Connection) -> None:
        """Response's own would work out the same headers for every request."""
        self._news, self._connection = news, connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            events, running = self.take()
            while running:
                await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
                await self._news.wait()
                events, running = self.take()
            await send({"type": "http.response.body", "body": b"".join(events), "more_body": False})
        except ClientDisconnect:
            pass
        finally:
            self.cancel()
            self._connection.when_lost(None)

    @abstractmethod
    def take(self) -> tuple[list[bytes], bool]:
        """The events since the last call, and whether there will be more. Raises ClientDisconnect."""

    @abstractmethod
    def cancel(self) -> None:
        """Nobody listens any more, or the end has been sent."""
