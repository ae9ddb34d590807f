"""`python -m tests.faults.server RATE OPTIONS`: the server as it is, but that its session may throw.

RATE is the part of the session's calls that raise. Step times are not measured: a start is quick, and what is drafted
the same on any machine. When the server has stopped, the engine checks itself, and the process ends with code 70 where
it contradicts itself or has not got every row back.
"""

import logging
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

from runtime.engine import Engine
from runtime.params import EngineConfig
from runtime.session import Batch, Draft, Result, Session
from service.__main__ import main
from tests.fake import fake_cost

THROWN = "thrown by the test"


class Throwing:
    """A session that may raise wherever a real one calls ONNX Runtime, before or after that has run."""

    def __init__(self, session: Session, rate: float) -> None:
        self.manifest, self.provider, self.release = session.manifest, session.provider, session.release
        self._session, self._rate, self._rng = session, rate, random.Random(0)

    def run(self, batch: Batch) -> Result:
        return self._call(partial(self._session.run, batch))

    def heads(self, rows: list[int], depth: int) -> Draft:
        return self._call(partial(self._session.heads, rows, depth))

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        self._call(partial(self._session.commit, row, length, path, last))

    def copy(self, source: int, target: int, length: int) -> None:
        self._call(partial(self._session.copy, source, target, length))

    def _call(self, call: Any) -> Any:
        if self._rng.random() < self._rate / 2:
            raise RuntimeError(THROWN)
        result = call()
        if self._rng.random() < self._rate / 2:
            raise RuntimeError(THROWN)
        return result


def run(rate: float, options: list[str]) -> int:
    engines: list[Engine] = []
    load = Engine.from_artifact

    def loading(path: Path, config: EngineConfig, progress: Any) -> Engine:
        engine = load(path, config, fake_cost(), progress)
        if rate:
            engine.session = Throwing(engine.session, rate)
        engines.append(engine)
        return engine

    Engine.from_artifact = loading  # type: ignore[method-assign, assignment]
    code = main(options)
    [engine] = engines
    engine.check_integrity()
    stats = engine.stats()
    if stats["rows_in_use"] or stats["waiting"] or stats["kv_bytes_reserved"]:
        logging.error("rows are still in use: %s", stats)
        return 70
    return code


if __name__ == "__main__":
    try:
        sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
    except AssertionError:
        logging.exception("the engine contradicts itself")
        sys.exit(70)
