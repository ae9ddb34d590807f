"""A server process, and what it says of itself."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
START_SECONDS = 300.0
STOP_SECONDS = 120.0


class Process:
    """`python -m MODULE` on a free port, ready once it is entered; killed where it has not ended by itself."""

    def __init__(self, module: str, *options: str) -> None:
        self._command = [sys.executable, "-m", module, *options, "--port", "0"]
        self.lines: list[str] = []  # of what it printed

    def __enter__(self) -> "Process":
        self.began = time.monotonic()
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self._await(lambda: any(line.startswith("ready: ") for line in self.lines))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.start_seconds = time.monotonic() - self.began
        [host, port] = re.findall(r"listening on http://(.+):(\d+),", "\n".join(self.lines))[0]
        self.address = (host, int(port))
        self.http = httpx.Client(base_url=f"http://{host}:{port}", timeout=STOP_SECONDS, trust_env=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Its exit code."""
        code = self._process.wait(STOP_SECONDS)
        self._reader.join()
        self.http.close()
        return code

    def metrics(self) -> dict[str, float]:
        """The figures without labels but the model's."""
        text = self.http.get("/metrics").raise_for_status().text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels.keys() - {"model_name"}
        }

    def settle(self) -> int:
        """Waits until nobody has a row any more; returns how many still have one, or wait, after a long time."""
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            metrics = self.metrics()
            busy = metrics["vllm:num_requests_running"] + metrics["vllm:num_requests_waiting"]
            if not busy or time.monotonic() > deadline:
                return int(busy)
            time.sleep(0.02)

    @property
    def memory(self) -> int:
        """Bytes that are resident and its own."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            assert self._process.poll() is None, f"it ended with code {self._process.returncode}: {self.lines[-5:]}"
            assert time.monotonic() < deadline, "it never became ready"
            time.sleep(0.01)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip())
