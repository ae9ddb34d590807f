"""No body larger, or slower to come, than what the server allows, whether its length is said or not."""

import asyncio

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.headers import header


class BodyLimit:
    """Ends the reading of a body with a 413 as soon as it is, or says it is, too large, with a 408 when it is late.

    Starlette's own limit answers in plain text where a length is said, which clients of OpenAI's interface cannot read.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        """`seconds` that all of a body may take, 0: as long as it likes."""
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = int(header(scope, b"content-length") or 0)  # the HTTP parser has seen that it is a number
        due = asyncio.get_running_loop().time() + self._seconds if self._seconds else None
        size, whole = 0, False

        async def receiving() -> Message:
            nonlocal size, whole
            if whole:  # what comes now is that the client goes
                return await receive()
            self._check(said)
            message = await (receive() if "came" in scope["state"] else self._in_time(receive, due))
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                self._check(size)
                whole = not message.get("more_body", False)
            return message

        await self._app(scope, receiving, send)

    async def _in_time(self, receive: Receive, due: float | None) -> Message:
        try:
            async with asyncio.timeout_at(due):
                return await receive()
        except TimeoutError:
            late = f"the body did not come within the {self._seconds:g} s that it has"
            raise HTTPException(408, late, {"Connection": "close"}) from None

    def _check(self, size: int) -> None:
        if size > self._most:
            raise HTTPException(413, f"the body has more than the {self._most} bytes that this server takes")
