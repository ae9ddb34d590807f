"""The heads' graph by the precision of its vocabulary products, by operators and vocabulary: ms a run of five heads.

Run:  .venv/bin/python -m docs.decisions.experiments.heads_forms [HIDDEN VOCAB]
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort

from export import numerics, quantize
from export.draft_heads import build_heads
from export.progress import unheard
from runtime import graphs
from runtime.native.library import BUILD_COMMAND, find

ROWS = (1, 2, 4, 8)
HEADS, TOP_K = 5, 10
WARM, SECONDS = 3, 6  # runs before measuring, and for all forms of a number of rows
RNG = np.random.default_rng(0)


class RandomHeads:
    """Heads of one layer each, whose weights are not looked at."""

    count, shared = HEADS, False

    def __init__(self, hidden: int, vocab: int) -> None:
        self._block = (RNG.standard_normal((hidden, hidden), np.float32) / 64, np.zeros(hidden, np.float32))
        self._lm = np.broadcast_to(np.float32(0), (vocab, hidden))

    def resblock(self, head: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._block]

    def lm(self, head: int) -> np.ndarray:
        return self._lm


def random_int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(-127, 128, weight.shape[::-1], np.int8), RNG.uniform(0.001, 0.01, len(weight)).astype(
        np.float32
    )


def random_int4(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    out, blocks = len(weight), -(-weight.shape[1] // block)
    scale = RNG.uniform(0.001, 0.01, (out, blocks)).astype(np.float16).astype(np.float32)
    return RNG.integers(0, 256, (out, blocks, block // 2), np.uint8), scale


def session(hidden: int, vocab: int, drafts: str, native: bool) -> ort.InferenceSession:
    heads: Any = RandomHeads(hidden, vocab)
    config: Any = SimpleNamespace(hidden=hidden)
    form: Any = numerics.NUMERICS["ragged"]
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(form, int8=replace(form["int8"], drafts=drafts)),
        patch.object(quantize, "int8", random_int8),
        patch.object(quantize, "int4", random_int4),
    ):
        build_heads(config, heads, lambda: heads.lm(0), "ragged", "int8", TOP_K, Path(folder), unheard)
        return graphs.load(Path(folder) / "heads.onnx", library=find() if native else None)


def main() -> None:
    if find() is None:
        sys.exit(f"native operators are not built: {BUILD_COMMAND}")
    hidden, vocab = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (2048, 32000)
    forms = [("int8", False, vocab), ("int8", True, vocab), ("int4", False, vocab), ("int4", True, vocab)]
    forms.append(("int4", True, vocab // 4))
    sessions = [session(hidden, size, drafts, native) for drafts, native, size in forms]
    times: list[list[np.ndarray]] = [[] for _ in forms]
    for rows in ROWS:
        feed = {"hidden": RNG.standard_normal((rows, hidden), np.float32), "depth": np.array([HEADS])}
        turns: list[list[float]] = [[] for _ in forms]
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(turns[-1]) <= WARM:
            for taken, heads in zip(turns, sessions, strict=True):
                began = time.perf_counter()
                heads.run(None, feed)
                taken.append(time.perf_counter() - began)
        for cells, taken in zip(times, turns, strict=True):
            cells.append(np.percentile(taken[WARM:], (50, 25, 75)) * 1e3)
    print(f"| ms, hidden {hidden}, {HEADS} heads |", *(f"{rows} rows |" for rows in ROWS))
    print("|---|" + "---|" * len(ROWS))
    for (drafts, native, size), cells in zip(forms, times, strict=True):
        row = " | ".join(f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in cells)
        print(f"| {drafts}, {'native' if native else 'stock'}, {size} tokens | {row} |")


if __name__ == "__main__":
    main()
