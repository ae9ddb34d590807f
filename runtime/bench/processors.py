"""Who used the machine's processors during a measurement: the client, the server, and others."""

import time
from dataclasses import dataclass

import psutil

from runtime.bench.machine import OtherLoad


@dataclass(frozen=True, slots=True)
class Shares:
    """From 0 to 1, of all cores. `server` is None for a server whose process is not ours: others' share has it."""

    client: float
    server: float | None
    others: float


class ProcessorTime:
    """What this process, the process `server` and the others used since this was made."""

    def __init__(self, server: int | None) -> None:
        self._server = None if server is None else psutil.Process(server)
        self._other = OtherLoad()
        self._began, self._own, self._its = time.perf_counter(), time.process_time(), self._used()

    def shares(self) -> Shares:
        others = self._other.share()
        cores = (time.perf_counter() - self._began) * psutil.cpu_count()
        client = (time.process_time() - self._own) / cores
        if self._server is None:
            return Shares(client, None, others)
        server = (self._used() - self._its) / cores
        return Shares(client, server, max(0.0, others - server))

    def _used(self) -> float:
        if self._server is None:
            return 0.0
        times = self._server.cpu_times()
        return float(times.user + times.system)
