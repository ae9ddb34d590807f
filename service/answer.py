"""What one request hears from the engine: the event loop's side of a sequence."""

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from service.news import News
from service.trace import Trace

if TYPE_CHECKING:
    from runtime.sampling import Logprobs
    from runtime.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step said, and when; `logprobs` of its tokens and its `trace`, if the request asks for them."""

    text: str
    logprobs: "tuple[Logprobs, ...]" = ()
    trace: Trace | None = None
    at: float = 0.0  # by time.monotonic

    @classmethod
    def of(cls, pieces: "Items[Piece]") -> "Piece":
        """All of them as one, without what is true of a step only."""
        return cls("".join(piece.text for piece in pieces), tuple(entry for p in pieces for entry in p.logprobs))


class Answer:
    """Pieces, then exactly one end, with an error or without.

    Everything but `sequence` is touched on the event loop's thread only. The engine's thread sets `sequence` before
    the loop hears of it, and no longer changes it once the answer has ended.
    """

    def __init__(self, abort: Callable[["Answer"], None], news: News | None = None, traced: bool = False) -> None:
        """`news` is set when there are pieces, or the end: one that several answers share, or its own.

        `traced`: its pieces have a trace, also those of steps that said nothing.
        """
        self.sequence: Sequence | None = None
        self.traced = traced
        self._abort = abort
        self._pieces: list[Piece] = []  # that nobody has taken yet. A piece a step: at most max_tokens
        self.news = news or News()
        self._error: Exception | None = None
        self._ended = False
        self.cancelled = False
        self.began = time.monotonic()
        self.first: float | None = None  # when there was something to say
        self.gaps: list[float] = []  # seconds from each piece to the next
        self._last = self.began
        self.deadline: asyncio.TimerHandle | None = None

    def take(self) -> tuple[list[Piece], bool]:
        """The new pieces since the last call, and whether the answer has ended with them.

        One of each step where it is traced, else at most one.
        """
        pieces, self._pieces = self._pieces, []
        return pieces if self.traced or len(pieces) < 2 else [Piece.of(pieces)], self._ended

    def check(self) -> None:
        """Raises what ended the answer early, if anything did."""
        if self._error is not None:
            raise self._error

    async def whole(self) -> Piece:
        """All pieces as one; raises what ended the answer early."""
        pieces, ended = self.take()
        while not ended:
            await self.news.wait()
            more, ended = self.take()
            pieces += more
        self.check()
        return Piece.of(pieces)

    @property
    def reason(self) -> str:
        """Why it ended: the sequence's reason, "abort" if nobody listened any more, or the error's class."""
        if self._error is not None and not isinstance(self._error, ClientDisconnect):
            return type(self._error).__name__
        return "abort" if self.cancelled or self.sequence is None else self.sequence.finish_reason or "abort"

    def cancel(self) -> None:
        """Nobody listens any more: asks the engine for the row back. Does nothing on an answer that has ended."""
        if not self._ended and not self.cancelled:
            self.cancelled = True
            self._abort(self)

    def leave(self) -> None:
        """The client has gone: who waits for the answer hears it at once, as ClientDisconnect."""
        self.cancel()
        self.end(ClientDisconnect())

    def push(self, pieces: Items[Piece]) -> None:
        if not self._ended:
            for piece in pieces:
                if self.first is None:
                    self.first = piece.at
                else:
                    self.gaps.append(piece.at - self._last)
                self._last = piece.at
            self._pieces += pieces
            self.news.tell()

    def end(self, error: Exception | None) -> None:
        """The first end counts: a server that stops does not wait for the engine's."""
        if not self._ended:
            self._ended = True
            self._error = error
            if self.deadline is not None:
                self.deadline.cancel()
            self.news.tell()


async def begun(answers: Items[Answer], news: News) -> None:
    """Returns once there is something to hear of an answer, and the engine has taken all; raises why it has not.

    That it has taken a request is no news by itself: who waits would be woken once more for each. `news` is theirs.
    """
    await news.wait()
    while untaken := [answer for answer in answers if answer.sequence is None]:
        for answer in untaken:
            answer.check()
        await news.wait()
