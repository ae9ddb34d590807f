"""vicuna-7b at its true size, random weights: exported, loaded, served and refused; writes docs/size.md.

Takes 30 GB of disk under .size/, where the checkpoint stays for the next run. The limits of time are for two cores
that have nothing else to do.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.bench.machine import Machine
from runtime.bench.markdown import table
from runtime.bench.server import StartedServer
from runtime.manifest import Manifest
from runtime.params import EngineConfig
from tests.size.conftest import FOLDER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

DOCUMENT = Path("docs/size.md")
LIMITS = {  # what a model of this size may take at most
    "minutes of export": 10.0, "GB of memory of the export": 6.0, "seconds from start to first answer": 60.0,
}  # fmt: skip
PROMPT = "The quick brown fox jumps over the lazy dog, and then it goes on to tell why: " * 4
TOKENS = 12
ROUNDS = 4  # of the settings whose steps are timed
TWO_REQUESTS = 400 << 20  # bytes of keys and values: two of the test's requests fit, a third waits
PRECISIONS = ("int4", "int8")


def run(*arguments: str) -> tuple[float, int]:
    """Runs a module; seconds and the most bytes that it had resident."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return time.monotonic() - began, usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def document() -> Iterator[dict[str, dict[str, str]]]:
    """Figures by precision; written once every test has run."""
    found: dict[str, dict[str, str]] = {}
    yield found
    if found.keys() != set(PRECISIONS):
        return
    machine = Machine.here()
    rows = [[name, *(found[precision][name] for precision in PRECISIONS)] for name in found[PRECISIONS[0]]]
    lines = [
        "# vicuna-7b's size",
        "",
        "Random weights in vicuna-7b's shape (fp16, five Medusa heads), exported and served over HTTP on "
        f"{machine.cores} cores of {machine.cpu} with {machine.memory / 2**30:.0f} GiB.",
        "Written by `pytest tests/size`, a part of `make test-full`.",
        "",
        *table([["", *PRECISIONS], *rows]),
    ]
    DOCUMENT.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_from_checkpoint_to_answers(checkpoint: Path, document: dict[str, dict[str, str]], precision: str) -> None:
    artifact = FOLDER / f"vicuna-7b-{precision}"
    seconds, memory = run("export", str(checkpoint), "--precision", precision, "--out", str(artifact))
    size = sum(int(file["size"]) for file in Manifest.read(artifact).files.values())
    figures = {
        "export": f"{seconds / 60:.1f} min",
        "largest memory of the export": f"{memory / 1e9:.1f} GB",
        "artifact": f"{size / 1e9:.1f} GB",
    }

    _refused(artifact)
    config = EngineConfig(rows=4, kv_memory=TWO_REQUESTS)
    with StartedServer(artifact, config):  # measures the machine
        pass
    began = time.monotonic()
    with StartedServer(artifact, config) as server, httpx.Client(base_url=server.url, timeout=600) as client:
        first = ask(client, max_tokens=1)
        waited = time.monotonic() - began
        figures["start to first answer, files in memory"] = f"{waited:.0f} s"
        plain = ask(client)
        assert first["usage"]["completion_tokens"] == 1 and plain["usage"]["completion_tokens"] == TOKENS
        for nodes in (2, 16, "auto"):
            assert ask(client, speculation=nodes)["text"] == plain["text"]
        times: dict[object, list[float]] = {"off": [], 2: [], 4: [], 16: []}
        for _ in range(ROUNDS):  # in turns, so that a busy moment meets all of them
            for nodes, its in times.items():
                its += gaps(client, nodes)
        for nodes, its in times.items():
            low, median, high = (round(seconds * 1e3) for seconds in statistics.quantiles(its, n=4))
            label = "plain" if nodes == "off" else f"{nodes} nodes"
            figures[f"step of one sequence, {label}"] = f"{median} [{low}, {high}] ms"
        with ThreadPoolExecutor(6) as pool:  # more than rows, and more than the memory has place for
            answers = list(pool.map(lambda _: ask(client), range(6)))
        assert [answer["text"] for answer in answers] == [plain["text"]] * 6
        figures["server's memory"] = f"{resident(server.pid) / 1e9:.1f} GB"
    shutil.rmtree(artifact.resolve())
    artifact.unlink()
    check_limits(seconds / 60, memory / 1e9, waited)  # last, when all figures are known
    document[precision] = figures


def check_limits(*taken: float) -> None:
    """`taken` in the order of LIMITS."""
    over = [f"{found:.1f} {what}, allowed {LIMITS[what]:g}" for what, found in zip(LIMITS, taken, strict=True)
            if found > LIMITS[what]]  # fmt: skip
    assert not over, "; ".join(over)


def _refused(artifact: Path) -> None:
    """More than the machine has is refused at once, with the arithmetic."""
    options = ["--artifact", str(artifact), "--port", "0", "--rows", "4096", "--kv-memory", "4096G"]
    done = subprocess.run([sys.executable, "-m", "service", *options], capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "for weights" in last and "take --kv-memory" in last


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "speculation": "off"} | fields
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def gaps(client: httpx.Client, speculation: object) -> list[float]:
    """Seconds between a stream's events: one a step."""
    body = {"prompt": PROMPT, "max_tokens": 2 * TOKENS, "ignore_eos": True, "speculation": speculation, "stream": True}
    times = []
    with client.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if line and not json.loads(line.removeprefix("data: ")).get("usage"):
                times.append(time.perf_counter())
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
