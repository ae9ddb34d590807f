"""An engine's process, as the driver sees it: asked one thing at a time, and stopped while others run.

A stopped process takes no processor time, however its libraries wait for work.
"""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from runtime.bench.peers.install import last_error

MEMORY_LEFT = 1 << 30  # bytes: an engine that leaves the machine less than this is ended
LOOK = 0.25  # seconds between looks at the memory
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Failed(Exception):
    """An engine refused a request. The message says why; the process goes on."""


class Died(Failed):
    """The process is gone, or was ended."""


class Process:
    def __init__(self, name: str, command: Sequence[str], threads: int, log: Path) -> None:
        self.name, self._log = name, log
        limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | ENVIRONMENT | limits,
                process_group=0,  # with what it starts itself, such as an exporter
            )
        self._unread = b""

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The reply. Raises Failed where it is an error; Died without one within `timeout` seconds, or at all."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        reply: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout, timeout))
        if "error" in reply:
            raise Failed(str(reply["error"]).strip())
        return reply

    def pause(self) -> None:
        """Returns when it stands still, or is gone."""
        if self.alive:
            os.killpg(self._process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        if self.alive:
            os.killpg(self._process.pid, signal.SIGCONT)

    def processor_seconds(self) -> float:
        """Used so far, by all of its threads."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def memory(self) -> int:
        """Resident bytes, files that it has mapped among them."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def close(self) -> None:
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what was not sent yet has nobody to read it
                pass

    def _line(self, deadline: float, timeout: float) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if selector.select(LOOK):
                    part = os.read(self._process.stdout.fileno(), 1 << 20)
                    if not part:
                        raise self._death()
                    self._unread += part
                elif time.monotonic() > deadline:
                    self.close()
                    raise Died(f"no answer within {timeout:.0f} seconds ({self._log})")
                elif (left := psutil.virtual_memory().available) < MEMORY_LEFT:
                    taken = self.memory()
                    self.close()
                    raise Died(f"ended at {taken >> 20} MiB: the machine had {left >> 20} MiB of memory left")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _death(self) -> Died:
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Died(f"its process ended, {how}: {last_error(self._log)} ({self._log})")
