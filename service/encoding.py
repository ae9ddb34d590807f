"""Where prompts are encoded: on the event loop's own thread, or beside it."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

AT_ONCE = 1000  # characters of a prompt that are encoded in less time than a thread takes to be given them

T = TypeVar("T")


async def encoded(encode: Callable[[], T], size: int) -> T:
    """What `encode` returns; `size` in characters."""
    return encode() if size <= AT_ONCE else await asyncio.to_thread(encode)
