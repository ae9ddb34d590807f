"""How ONNX Runtime's idle threads should wait: steps of one engine under each setting, in turns.

spin    a pool's threads spin for a while after each run (ONNX Runtime's default)
sleep   they never spin
stop    they spin while a run goes on, and stop when it ends

Run:  .venv/bin/python -m docs.decisions.experiments.threads artifacts/demo-int8
"""

import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnxruntime as ort

from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams

ENTRIES = {
    "spin": {"session.force_spinning_stop": "0"},
    "sleep": {"session.force_spinning_stop": "0", "session.intra_op.allow_spinning": "0"},
    "stop": {"session.force_spinning_stop": "1"},
}
REPEATS, TOKENS, PROMPT = 9, 60, 32


def load(artifact: Path, mode: str) -> Engine:
    make = ort.SessionOptions

    class Options(make):  # type: ignore[misc, valid-type]
        def add_session_config_entry(self, key: str, value: str) -> None:
            for entry in ENTRIES[mode].items():
                super().add_session_config_entry(*entry)

    with patch.object(ort, "SessionOptions", Options):
        return Engine.from_artifact(artifact, EngineConfig(rows=8))


def seconds(engine: Engine, rows: int, speculation: int | str) -> float:
    """A decode step: the median over one run."""
    rng = np.random.default_rng(0)
    params = SamplingParams(TOKENS, ignore_eos=True, speculation=speculation)
    for _ in range(rows):
        engine.add(rng.integers(3, engine.manifest.vocab, PROMPT).tolist(), params)
    times = []
    while engine.has_work:
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    engines = {mode: load(Path(sys.argv[1]), mode) for mode in ENTRIES}
    print(f"ms a step, median of {REPEATS} alternating runs [quartiles]")
    for rows in (1, 8):
        for speculation in ("off", 16):
            times: dict[str, list[float]] = {mode: [] for mode in engines}
            for _ in range(REPEATS):
                for mode, engine in engines.items():
                    times[mode].append(seconds(engine, rows, speculation) * 1e3)
            cells = []
            for mode, ms in times.items():
                low, middle, high = np.percentile(ms, [25, 50, 75])
                cells.append(f"{mode} {middle:.2f} [{low:.2f}, {high:.2f}]")
            print(f"{rows} rows, speculation {speculation}: " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
