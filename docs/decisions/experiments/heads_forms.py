"""The heads' graph by precision and vocabulary, at TinyLlama-1.1B's and vicuna-7b's width: ms a run of five heads.

Run:  .venv/bin/python -m docs.decisions.experiments.heads_forms [HIDDEN VOCAB]
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from export.draft_heads import build_heads

ROWS = (1, 2, 4, 8)
HEADS, TOP_K, RUNS = 5, 10, 15


class RandomHeads:
    """Heads of one layer each, with random weights."""

    count = HEADS

    def __init__(self, hidden: int, vocab: int) -> None:
        rng = np.random.default_rng(0)
        self._block = (rng.standard_normal((hidden, hidden), np.float32) / 64, np.zeros(hidden, np.float32))
        self._lm = rng.standard_normal((vocab, hidden), np.float32) / 64

    def resblock(self, head: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._block]

    def lm(self, head: int) -> np.ndarray:
        return self._lm * np.float32(1 + head / 8)  # equal weights would be kept once


def milliseconds(hidden: int, vocab: int, precision: str) -> list[str]:
    heads: Any = RandomHeads(hidden, vocab)
    config: Any = SimpleNamespace(hidden=hidden)
    with tempfile.TemporaryDirectory() as folder:
        build_heads(config, heads, lambda: heads.lm(0), precision, TOP_K, Path(folder))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(Path(folder) / "heads.onnx", options, providers=["CPUExecutionProvider"])
    cells = []
    for rows in ROWS:
        feed = {"hidden": np.random.default_rng(1).standard_normal((rows, hidden), np.float32)}
        times = []
        for _ in range(RUNS + 3):
            began = time.perf_counter()
            session.run(None, feed)
            times.append(time.perf_counter() - began)
        low, median, high = np.percentile(times[3:], (25, 50, 75)) * 1e3
        cells.append(f"{median:6.2f} [{low:.2f}, {high:.2f}]".rjust(24))
    return cells


def main() -> None:
    hidden, vocab = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (2048, 32000)
    print(f"hidden {hidden}, {HEADS} heads, ms".ljust(32), *[f"{rows} rows".rjust(24) for rows in ROWS])
    for precision, size in (("int8", vocab), ("int4", vocab), ("int8", vocab // 4), ("int4", vocab // 4)):
        print(f"{precision}, vocabulary {size}".ljust(32), *milliseconds(hidden, size, precision), flush=True)


if __name__ == "__main__":
    main()
