"""What a decoder step is made of: its time with and without two nodes a row, and the operators' shares of it.

`python -m docs.decisions.experiments.step ARTIFACT`: ms, median [quartiles], of alternating runs; operators as
ONNX Runtime's profiler times them, which itself costs some microseconds an operator.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort

from runtime.batch import Packer
from runtime.manifest import Manifest
from runtime.ragged import RaggedSession
from runtime.session import Batch
from runtime.tree import Tree

ROWS, PAST, WIDEST = 8, 128, 129
SECONDS = 4.0  # of runs for each comparison
STEPS = 20  # profiled
SHOWN = 8  # operators


def batch(packer: Packer, rows: int, nodes: int) -> Batch:
    tokens = list(range(5, 5 + nodes))
    tree = Tree(tokens, list(range(-1, nodes - 1)), np.arange(nodes), np.tri(nodes, dtype=bool))
    return packer.pack([(PAST, tree)] * rows)[0]


def compare(session: RaggedSession, steps: dict[str, Batch]) -> str:
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, step in steps.items():
            began = time.perf_counter()
            session.run(step)
            times[name].append((time.perf_counter() - began) * 1e3)
    parts = []
    for name, series in times.items():
        low, median, high = np.percentile(series[1:], [25, 50, 75])
        parts.append(f"{name} {median:.2f} [{low:.2f}, {high:.2f}]")
    return ", ".join(parts)


def operators(artifact: Path, steps: dict[str, Batch]) -> None:
    for name, step in steps.items():
        with tempfile.TemporaryDirectory() as folder:
            options = ort.SessionOptions()
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
            inner = ort.InferenceSession(artifact / "decoder.onnx", options, providers=["CPUExecutionProvider"])
            session = RaggedSession(artifact, Manifest.read(artifact), ROWS)
            session._decoder = inner
            for _ in range(STEPS):
                session.run(step)
            events = json.loads(Path(inner.end_profiling()).read_text())
        found: dict[str, list[int]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
                found[event["args"]["op_name"]].append(event["dur"])
        total = {op: float(np.median(series)) * len(series) / STEPS / 1e3 for op, series in found.items()}
        most = sorted(total, key=lambda op: -total[op])[:SHOWN]
        print(f"{name}: " + ", ".join(f"{op} {total[op]:.2f} ({len(found[op]) // STEPS})" for op in most), flush=True)


def main() -> None:
    artifact = Path(sys.argv[1]).resolve()
    manifest = Manifest.read(artifact)
    session = RaggedSession(artifact, manifest, ROWS)
    exact, free = (Packer(wide, manifest.even_tokens, WIDEST) for wide in (True, False))
    prompt, _ = exact.pack([(0, list(range(5, 5 + PAST)))])
    session.run(prompt)
    for row in range(1, ROWS):
        session.copy(0, row, PAST)
    print(f"{artifact.name}, {PAST} tokens committed in each row")
    for rows in (1, ROWS):
        steps = {"two nodes in attention": batch(exact, rows, 1), "one": batch(free, rows, 1)}
        print(f"{rows} rows of 1: {compare(session, steps)}", flush=True)
    for rows, nodes in ((1, 4), (1, 8), (1, 16), (ROWS, 2), (ROWS, 4), (ROWS, 8)):
        print(f"{rows} rows of {nodes}: {compare(session, {'': batch(exact, rows, nodes)}).strip()}", flush=True)
    print("operators, ms a step (and how many):")
    operators(artifact, {f"{rows} rows of {n}": batch(exact, rows, n) for rows, n in ((1, 1), (1, 8), (ROWS, 1))})


if __name__ == "__main__":
    main()
