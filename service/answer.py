"""What one request hears from the engine: the event loop's side of a sequence."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.sequence import Sequence


class Answer:
    """Admitted or refused, then texts, then exactly one end, with an error or without.

    Everything but `sequence` is touched on the event loop's thread only. The engine's thread sets `sequence` before
    the loop hears of the admission, and no longer changes it once the answer has ended.
    """

    def __init__(self, abort: Callable[["Answer"], None]) -> None:
        self.sequence: Sequence | None = None
        self._abort = abort
        self._admitted = asyncio.Event()
        self._texts: list[str] = []  # that nobody has taken yet. A text a step: at most max_tokens
        self._news = asyncio.Event()  # there are texts, or the end
        self._error: Exception | None = None
        self._ended = False
        self.cancelled = False

    async def admitted(self) -> "Sequence":
        """The sequence, once the engine has taken the request; raises why it has not."""
        await self._admitted.wait()
        if self.sequence is None:
            assert self._error is not None
            raise self._error
        return self.sequence

    async def news(self) -> tuple[list[str], bool]:
        """Waits for new text: one of each step since the last call, and whether the answer has ended with them."""
        await self._news.wait()
        self._news.clear()
        texts, self._texts = self._texts, []
        return texts, self._ended

    def check(self) -> None:
        """Raises what ended the answer early, if anything did."""
        if self._error is not None:
            raise self._error

    async def whole(self) -> str:
        """The text from first to last; raises what ended the answer early."""
        texts, ended = await self.news()
        while not ended:
            more, ended = await self.news()
            texts += more
        self.check()
        return "".join(texts)

    def cancel(self) -> None:
        """Nobody listens any more: asks the engine for the row back. Does nothing on an answer that has ended."""
        if not self._ended and not self.cancelled:
            self.cancelled = True
            self._abort(self)

    def admit(self) -> None:
        self._admitted.set()

    def push(self, text: str) -> None:
        if not self._ended:
            self._texts.append(text)
            self._news.set()

    def end(self, error: Exception | None) -> None:
        """The first end counts: a server that stops does not wait for the engine's."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._news.set()
            self._admitted.set()
