"""No body larger than what the server allows, whether its length is said or not."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Ends the reading of a body with a 413 as soon as it is, or says it is, too large.

    Starlette's own limit answers in plain text where a length is said, which clients of OpenAI's interface cannot read.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "0")
        size = 0

        async def receiving() -> Message:
            nonlocal size
            self._check(int(said))  # the HTTP parser has seen that it is a number
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                self._check(size)
            return message

        await self._app(scope, receiving, send)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise HTTPException(413, f"the body has more than the {self._most} bytes that this server takes")
