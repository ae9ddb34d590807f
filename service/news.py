"""Something to wait for, again and again."""

import asyncio


class News:
    """An event for one who waits: `told` any number of times, it wakes him once. On the event loop's thread only.

    asyncio.Event is for any number of waiters, and takes three times as long; each text of an answer passes here.
    """

    def __init__(self) -> None:
        self._told = False
        self._waiter: asyncio.Future[None] | None = None

    def tell(self) -> None:
        self._told = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Returns once it was told something since it last returned."""
        if not self._told:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._told = False
