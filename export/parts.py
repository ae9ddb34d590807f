"""Work on a large array some rows at a time, on every core."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

PART = 2**19  # values that a thread takes at once: few enough for its cache, enough to wait little for Python's lock
Result = TypeVar("Result")


def in_parts(array: np.ndarray, work: Callable[[slice], Result]) -> Iterator[Result]:
    """What `work` gives for each part of the array's rows, in order."""
    rows = max(1, PART * len(array) // max(1, array.size))
    parts = [slice(start, start + rows) for start in range(0, len(array), rows)]
    if len(parts) == 1:
        yield work(parts[0])
        return
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(work, parts)
