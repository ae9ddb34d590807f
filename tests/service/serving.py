"""A real server on a loopback socket, around a real engine whose session takes steps only when a test lets it."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import uvicorn.server
from tokenizers import Tokenizer, decoders, models, processors

from runtime.engine import Engine
from runtime.manifest import Manifest
from runtime.params import EngineConfig
from runtime.session import Batch, HostResult, Result
from service.config import WebConfig
from service.engine_thread import EngineThread
from service.server import Server, listen
from service.tracing import Tracing
from tests.fake import FakeSession, fake_cost, fake_manifest, fake_tokenizer

SECONDS = 20.0  # how long a test waits for what should come at once
TEMPLATE = "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}>"


class HeldSession(FakeSession):
    """Takes `allowed` steps in all, then waits for more; says when it has begun one."""

    def __init__(
        self, manifest: Manifest | None = None, rows: int = 8, allowed: float = float("inf"), eos_rate: float = 0.03
    ) -> None:
        super().__init__(
            manifest or fake_manifest(chat_template=TEMPLATE, special={"bos_token": "<s>"}), rows, eos_rate
        )
        self._allowed = allowed
        self._begun = 0
        self._changed = threading.Condition()

    def run(self, batch: Batch) -> Result:
        with self._changed:
            self._begun += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._begun <= self._allowed, SECONDS), "the test forgot this step"
        return super().run(batch)

    def let(self, steps: float) -> None:
        """Lets it take `steps` steps in all."""
        with self._changed:
            self._allowed = steps
            self._changed.notify_all()

    def await_begun(self, steps: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._begun >= steps, SECONDS), f"step {steps} never began"


class ScriptSession(FakeSession):
    """Whatever it is asked, token p of the text is `script[p % len(script)]`."""

    def __init__(self, manifest: Manifest, script: list[int]) -> None:
        super().__init__(manifest, eos_rate=0)
        self._script = script

    def run(self, batch: Batch) -> Result:
        result = super().run(batch)
        rows = batch.length.repeat(batch.count)
        for i, node in enumerate(batch.wanted):
            position = int(rows[node] + batch.depth[node]) + 1
            result.argmax[i] = self._script[position % len(self._script)]
        return HostResult(result.argmax, np.zeros((len(batch.wanted), self.manifest.vocab), np.float32))


def byte_tokenizer() -> Tokenizer:
    """Token 3 + b is the byte b; as Llama's byte fallback, without any other token. `<s>` comes first by itself."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def engine_on(session: FakeSession, tokenizer: Tokenizer | None = None, **config: Any) -> Engine:
    rows = len(session.last)
    return Engine(
        session, tokenizer or fake_tokenizer(), EngineConfig(**{"rows": rows, "chunk": 16, **config}), fake_cost()
    )


async def _soon(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.002))


# uvicorn sleeps for tenths of a second before it looks whether to stop, and again when it stops.
uvicorn.server.asyncio = SimpleNamespace(**{**vars(asyncio), "sleep": _soon})


class Serving:
    """What a test sees of the server: the socket, and behind it the thread and its engine."""

    def __init__(
        self, load: Callable[[], Engine], web: WebConfig, tracing: Tracing | None = None, port: int = 0
    ) -> None:
        self.thread = EngineThread(load, web.request_timeout, web.stream_interval)
        self.server = Server(self.thread, web, tracing)
        listener = listen("127.0.0.1", port)
        self.address: tuple[str, int] = listener.getsockname()
        base = f"http://127.0.0.1:{self.address[1]}"
        self.client = httpx.Client(
            base_url=base, timeout=SECONDS, trust_env=False, verify=False
        )  # reads no certificates
        self._pool = ThreadPoolExecutor()
        self._run = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self._run.start()

    def generate(self, **body: Any) -> httpx.Response:
        return self.client.post("/generate", json=body)

    def later(self, **body: Any) -> "Future[httpx.Response]":
        """A request of its own connection, without waiting for its answer."""
        return self._pool.submit(self.generate, **body)

    def events(self, **body: Any) -> list[dict[str, Any]]:
        with self.stream(**body) as events:
            return list(events)

    @contextmanager
    def stream(self, **body: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a stream, as they come; leaving early closes the connection."""
        with self.client.stream("POST", "/generate", json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line)

    def health(self) -> tuple[int, dict[str, Any]]:
        response = self.client.get("/health")
        return response.status_code, response.json()

    def await_ready(self) -> None:
        eventually(lambda: self.health()[0] == 200)

    def signal(self) -> None:
        """What SIGTERM and Ctrl-C do."""
        self.server.handle_exit(signal.SIGTERM, None)

    def await_end(self) -> None:
        self._run.join(SECONDS)
        assert not self._run.is_alive(), "the server did not stop"


@contextmanager
def serving(
    load: Callable[[], Engine], ready: bool = True, tracing: Tracing | None = None, port: int = 0, **web: Any
) -> Iterator[Serving]:
    server = Serving(load, WebConfig(**{"stream_interval": 0.0} | web), tracing, port)
    try:
        if ready:
            server.await_ready()
        yield server
    finally:
        server.client.close()
        server.signal()
        server.signal()  # does not drain
        server.await_end()


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what another thread is about to bring about."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.002)


def await_cancelled(server: Serving, requests: int) -> None:
    """Until the event loop knows that so many have gone; the engine, amid its step, does not yet."""
    eventually(lambda: sum(answer.cancelled for answer in list(server.thread._live)) == requests)
