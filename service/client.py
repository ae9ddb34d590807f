"""The client's end of a request: work goes on only while somebody waits for it."""

import asyncio
from collections.abc import Callable

from starlette.types import Receive


class Client:
    """Calls `gone` once the client closes the connection, until it is told that nobody needs to know any more.

    One task from a request to the end of its response: what the request waits for has to end by `gone`.
    """

    def __init__(self, receive: Receive, gone: Callable[[], None]) -> None:
        """Of a request whose body has been read."""
        self._gone = gone
        self._task = asyncio.ensure_future(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def forget(self) -> None:
        self._task.cancel()
