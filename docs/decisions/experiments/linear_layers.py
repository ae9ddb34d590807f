"""Linear layers by precision and number of tokens: ms a product, as export/linear.py emits them.

Run:  .venv/bin/python -m docs.decisions.experiments.linear_layers [IN OUT COPIES]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export import linear
from export.emitter import FLOAT, OPSET, Emitter

TOKENS = (1, 2, 4, 8, 16, 32, 64)
RUNS = 15


def session(precision: str, block: int, weights: np.ndarray) -> ort.InferenceSession:
    linear.INT4_BLOCK = block
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "linear.onnx"
        with Emitter(path, OPSET) as emitter:
            for i, weight in enumerate(weights):
                x = emitter.input(f"x{i}", FLOAT, ["tokens", weight.shape[1]])
                linear.linear(emitter, x, f"w{i}", weight, None, precision, result=f"y{i}")
                emitter.output(f"y{i}", FLOAT, ["tokens", weight.shape[0]])
            emitter.save("linear")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    width, out, copies = map(int, sys.argv[1:4]) if len(sys.argv) > 3 else (2048, 5632, 12)  # several defeat the cache
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((copies, out, width), np.float32)
    forms = {
        "fp32": ("fp32", 0), "int8": ("int8", 0), "int8-block32": ("int8-block32", 0), "int4, block 32": ("int4", 32),
        "int4, block 128": ("int4", 128),
    }  # fmt: skip
    print(f"{width} x {out}, ms a product, median of {RUNS}".ljust(44), *[f"{t:>7d}" for t in TOKENS])
    for name, (precision, block) in forms.items():
        run, cells = session(precision, block, weights), []
        for tokens in TOKENS:
            feed = {f"x{i}": rng.standard_normal((tokens, width), np.float32) for i in range(copies)}
            times = []
            for _ in range(RUNS + 3):
                began = time.perf_counter()
                run.run(None, feed)
                times.append(time.perf_counter() - began)
            cells.append(np.median(times[3:]) * 1e3 / copies)
        print(name.ljust(44), *[f"{ms:7.2f}" for ms in cells], flush=True)


if __name__ == "__main__":
    main()
