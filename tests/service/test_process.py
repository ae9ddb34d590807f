"""`python -m service` as a process: its options, its signals, its exit codes, and what it prints."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from export.demo.dialogue import load_entries
from service.engine_thread import JOIN_SECONDS
from tests.service.serving import SECONDS, eventually

LONG = {"prompt": "What does os.path.join do?", "max_tokens": 300, "ignore_eos": True, "speculation": "off"}

# Steps are not measured: that takes longer than all of a signal's test.
UNMEASURED = """
import runpy, runtime.engine
from tests.fake import fake_cost
load = runtime.engine.Engine.from_artifact
runtime.engine.Engine.from_artifact = lambda path, config, **options: load(path, config, fake_cost(), **options)
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""
LOAD_FOREVER = """
import runpy, runtime.engine
load = runtime.engine.Engine.from_artifact
def load_forever(path, config, **options):
    while True:
        load(path, config, **options)
runtime.engine.Engine.from_artifact = load_forever
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""


def test_serving_loads_no_training_library() -> None:
    light = "import sys, service.__main__; assert not {'fastapi', 'onnxruntime', 'numpy'} & set(sys.modules)"
    lean = "import runtime.engine, service.server; assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{light}; {lean}"], check=True)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "--artifact"),
        (["--artifact", "a", "--rows", "0"], 2, "rows"),
        (["--artifact", "a", "--kv-memory", "4X"], 2, "--kv-memory"),
        (["--artifact", "a", "--port", "65536"], 2, "--port"),
        (["--artifact", "a", "--drain-seconds", "nan"], 2, "--drain-seconds"),
        (["--artifact", "/nowhere", "--port", "0"], 3, "/nowhere is not an artifact"),
        (["--artifact", "a", "--host", "192.0.2.1"], 2, "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_work_ends_with_its_code_and_a_line(options: list[str], code: int, words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "service", *options], capture_output=True, text=True)
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ["--artifact", "a", "--port", str(taken.getsockname()[1])]
        done = subprocess.run([sys.executable, "-m", "service", *options], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot listen" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_a_load(demo_artifact: Callable[[str], Path], stop: signal.Signals) -> None:
    """Nothing can interrupt a load, and ONNX Runtime aborts the process if the interpreter dies under it."""
    with process("--artifact", str(demo_artifact("int8")), command=LOAD_FOREVER, ready=False) as (server, client):
        assert client.get("/health").json()["status"] == "loading"
        began = time.monotonic()
        server.send_signal(stop)
        code, lines = ended(server)
        assert code == 0 and lines[-1] == "stopped" and not any("Traceback" in line for line in lines)
        assert time.monotonic() - began < JOIN_SECONDS


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_an_answer(demo_artifact: Callable[[str], Path], stop: signal.Signals) -> None:
    """It is finished, and the process ends well."""
    with process("--artifact", str(demo_artifact("int8")), command=UNMEASURED) as (server, client):
        events = stream(client)
        next(events)
        server.send_signal(stop)
        last = list(events)[-1]
        assert (last["finish_reason"], last["usage"]["completion_tokens"]) == ("length", 300)
        code, lines = ended(server)
        assert code == 0 and lines[-1] == "stopped" and lines[-2].startswith("finishing 1 request")


def test_a_signal_amid_an_answer_with_no_time_left(demo_artifact: Callable[[str], Path]) -> None:
    options = ["--artifact", str(demo_artifact("int8")), "--drain-seconds", "0"]
    with process(*options, command=UNMEASURED) as (server, client):
        events = stream(client)
        next(events)
        server.send_signal(signal.SIGTERM)
        assert list(events)[-1]["error"]["type"] == "NotReadyError"
        code, lines = ended(server)
        assert code == 0 and lines[-1] == "stopped"


def test_the_demo_model_answers(demo_artifact: Callable[[str], Path]) -> None:
    """Word for word what it was trained to say, speculating."""
    known = {entry.name: entry.answer for entry in load_entries() if not entry.heldout}
    drafting = {"max_tokens": 80, "speculation": 8}  # auto may find that it does not pay while others compute too
    body: dict[str, Any] = {"prompt": LONG["prompt"], **drafting}
    chat = {"messages": [{"role": "user", "content": LONG["prompt"]}], **drafting}
    with process("--artifact", str(demo_artifact("int8")), "--context", "256", "--rows", "2") as (_, client):
        whole = client.post("/generate", json=body).json()
        assert (whole["text"], whole["finish_reason"]) == (known["os.path.join"], "stop")
        assert whole["speculation"]["accepted"] > 0
        assert client.post("/generate", json=chat).json()["text"] == whole["text"]
        events = list(stream(client, **body))
        assert "".join(event["text"] for event in events) == whole["text"]
        assert events[-1]["usage"] == whole["usage"]
        response = client.post("/generate", json={"prompt": "abc " * 300, "raw": True})
        assert response.status_code == 400 and "the context 256" in response.json()["error"]["message"]
        assert client.get("/health").json()["provider"].startswith("CPUExecutionProvider")


@contextmanager
def process(
    *options: str, command: str | None = None, ready: bool = True
) -> Iterator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """The process on a free port, `python -m service` unless another command is given, and a client of it."""
    program = ["-m", "service"] if command is None else ["-c", command]
    arguments = [sys.executable, *program, "--port", "0", *options]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            url = re.match(r"listening on (http://\S+), loading", line)
            assert url, line
            with httpx.Client(base_url=url[1], timeout=SECONDS, trust_env=False) as client:
                if ready:
                    eventually(lambda: client.get("/health").status_code == 200)
                yield server, client
        finally:
            server.kill()


def stream(client: httpx.Client, **body: Any) -> Iterator[dict[str, Any]]:
    with client.stream("POST", "/generate", json=(body or LONG) | {"stream": True}) as response:
        for line in response.iter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


def ended(server: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    """The exit code, and the lines that came after the first."""
    _, text = server.communicate(timeout=SECONDS)
    return server.returncode, text.splitlines()
