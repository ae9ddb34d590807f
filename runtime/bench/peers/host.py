"""One engine behind a pipe: JSON lines in, JSON lines out. Runs in a peer's own environment, without the project.

    python -P host.py ENGINE        ENGINE is a module of engines/ with a class Engine

    {"do": "prepare", "checkpoint", "out", "precision"}          -> {}
    {"do": "load", "checkpoint", "prepared", "precision", "threads", "rows", "length", "simulated"}
                                                                 -> {"versions": {...}, "notes": [...]}
    {"do": "run", "prompts", "new_tokens", "ignore_eos", "speculation"}
                                                                 -> {"tokens": [row][...], "steps": [[seconds, [new]]]}
    a request that fails                                         -> {"error": "..."}

A run starts all of its prompts together. `steps` says, for each step that gave tokens, the seconds since the run began
and how many tokens each row got; what of that counts as decoding is for the driver to say, for all engines alike.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

PR_SET_PDEATHSIG = 1  # of Linux's prctl
Step = Callable[[list[list[int]]], None]  # told each row's new tokens


class Engine(Protocol):
    """What a file of engines/ defines. `run` calls `step` whenever rows got tokens, each up to its end token."""

    def prepare(self, checkpoint: str, out: str, precision: str) -> None: ...

    def load(
        self, checkpoint: str, prepared: str, precision: str, threads: int, rows: int, length: int, simulated: bool
    ) -> dict[str, Any]: ...

    def run(
        self, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, speculation: str, step: Step
    ) -> None: ...


class Record:
    """The tokens of a run as they came."""

    def __init__(self, rows: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.steps: list[tuple[float, list[int]]] = []
        self._began = time.perf_counter()

    def step(self, new: list[list[int]]) -> None:
        self.steps.append((time.perf_counter() - self._began, [len(tokens) for tokens in new]))
        for row, tokens in zip(self.tokens, new, strict=True):
            row += tokens


def answer(engine: Engine, message: dict[str, Any]) -> dict[str, Any]:
    do = message.pop("do")
    if do == "prepare":
        engine.prepare(**message)
        return {}
    if do == "load":
        return engine.load(**message)
    if do == "run":
        record = Record(len(message["prompts"]))
        engine.run(**message, step=record.step)
        return {"tokens": record.tokens, "steps": record.steps}
    raise ValueError(f"no such request: {do!r}")


def serve(make: Callable[[], Engine]) -> None:
    """Answers requests until standard input ends. What libraries print, from now on, goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed driver leaves nobody stopped behind
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process is the one to go
    engine = make()
    for line in sys.stdin:
        try:
            reply = answer(engine, json.loads(line))
        except Exception as error:  # of any library: the driver reports it, and this process goes on
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))  # last: an installed package of any name comes first
    serve(lambda: importlib.import_module(f"engines.{sys.argv[1]}").Engine())
