"""A client that goes gives its row back within a step, whatever it was waiting for, and disturbs nobody."""

import asyncio
import json
import random
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from runtime.params import SamplingParams
from runtime.prompts import Prompts
from service import encoding
from tests.fake import fake_tokenizer
from tests.service.serving import SECONDS, HeldSession, Serving, await_cancelled, engine_on, eventually, serving

LONG = {"prompt": "abc", "raw": True, "max_tokens": 100, "ignore_eos": True, "speculation": "off"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_running_sequence_ends_with_the_step_that_runs(stream: bool) -> None:
    session = HeldSession(rows=2, allowed=3)
    with serving(lambda: engine_on(session)) as server:
        with send(server, LONG | {"stream": stream}) as connection:
            session.await_begun(4)
            if stream:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        await_cancelled(server, 1)
        session.let(4)
        await_free(server)
        assert session.runs == 4
        session.let(float("inf"))
        assert server.generate(**LONG).json()["usage"]["completion_tokens"] == 100


def test_a_client_whose_large_body_came_late() -> None:
    """uvicorn reads no more while that much waits to be taken, and who does not read hears of no end."""
    session = HeldSession(rows=2, allowed=1)
    chat = {"model": "fake", "messages": [{"role": "user", "content": "abc"}], "user": "x" * 100_000}
    content = json.dumps(chat | {"ignore_eos": True}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    with serving(lambda: engine_on(session)) as server:
        with socket.create_connection(server.address, SECONDS) as connection:
            connection.sendall(head % len(content) + content[:10])
            eventually(lambda: len(server.server.server_state.tasks) == 1)
            time.sleep(0.05)  # until the body is waited for
            server.thread._loop.call_soon_threadsafe(time.sleep, 0.2)
            connection.sendall(content[10:])  # all of it is there when the server reads again
            session.await_begun(2)
        await_cancelled(server, 1)
        session.let(float("inf"))
        await_free(server)


def test_a_waiting_request_leaves_the_queue() -> None:
    session = HeldSession(rows=1, allowed=1)
    with serving(lambda: engine_on(session)) as server:
        first = server.later(**LONG)
        session.await_begun(2)
        with send(server, LONG), send(server, LONG):
            eventually(lambda: server.thread.live == 3)
            session.let(2)
            session.await_begun(3)
            assert server.health()[1]["waiting"] == 2
        await_cancelled(server, 2)
        session.let(3)
        session.await_begun(4)
        assert server.health()[1]["waiting"] == 0
        session.let(float("inf"))
        assert first.result().json()["usage"]["completion_tokens"] == 100


def test_a_request_that_the_engine_has_not_seen_yet() -> None:
    session = HeldSession(rows=2, allowed=1)
    with serving(lambda: engine_on(session)) as server:
        first = server.later(**LONG)
        session.await_begun(2)
        with send(server, LONG | {"stream": True}):
            eventually(lambda: server.thread.live == 2)
        await_cancelled(server, 1)
        session.let(2)
        session.await_begun(3)
        assert (server.health()[1]["rows_in_use"], server.thread.live) == (1, 1)
        session.let(float("inf"))
        assert first.result().status_code == 200


def test_a_client_that_goes_while_its_prompt_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to cancel yet; its answer ends as it begins."""
    begun, may_end, raw = threading.Event(), threading.Event(), Prompts.raw

    def slow(self: Prompts, text: str) -> list[int]:
        begun.set()
        assert may_end.wait(SECONDS)
        return raw(self, text)

    monkeypatch.setattr(Prompts, "raw", slow)
    monkeypatch.setattr(encoding, "AT_ONCE", 0)
    session = HeldSession(rows=2)
    with serving(lambda: engine_on(session)) as server:
        with send(server, LONG):
            assert begun.wait(SECONDS)
        eventually(lambda: not server.server.server_state.connections)
        monkeypatch.setattr(Prompts, "raw", raw)
        may_end.set()
        assert server.generate(**LONG).json()["usage"]["completion_tokens"] == 100
        await_free(server)
        finished = server.health()[1]["finished"]
        assert finished["length"] == 1 and session.runs < 110, "nobody waited for the other answer"


def test_fifty_clients_of_whom_many_go() -> None:
    """Every request ends, every row is free, and whoever stays gets the answer of an engine of his own."""
    session = HeldSession(rows=4)
    engine = engine_on(session, queue=100)
    with serving(lambda: engine) as server:
        stayed = asyncio.run(crowd(server, clients=50))
        await_free(server)
        assert server.thread.live == 0 and server.health()[1]["waiting"] == 0
        finished = engine.stats()["finished"]
    engine.check_integrity()
    alone = engine_on(HeldSession())
    for prompt, text in stayed:
        [expected] = alone.generate([fake_tokenizer().encode(prompt).ids], SamplingParams(max_tokens=40))
        assert text == expected.text
    assert len(stayed) >= 10 and finished["abort"] >= 5 and finished["error"] == 0
    assert finished["stop"] + finished["length"] >= len(stayed)


async def crowd(server: Serving, clients: int) -> list[tuple[str, str]]:
    """Prompts and texts of those that stayed to the end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.client.base_url, timeout=SECONDS, limits=limits, trust_env=False
    ) as http:
        answers = await asyncio.gather(*(visit(http, random.Random(i)) for i in range(clients)))
    return [answer for answer in answers if answer is not None]


async def visit(http: httpx.AsyncClient, rng: random.Random) -> tuple[str, str] | None:
    prompt = "".join(rng.choices("abcdefgh", k=rng.randint(1, 60)))
    body = {"prompt": prompt, "raw": True, "max_tokens": 40, "stream": rng.random() < 0.6}
    patience = rng.choice([0, 1, 3, 1000, 1000])  # events
    if not body["stream"]:
        try:
            response = await http.post("/generate", json=body, timeout=SECONDS if patience else rng.random() / 20)
        except httpx.TimeoutException:
            return None
        return prompt, response.json()["text"]
    text = ""
    async with http.stream("POST", "/generate", json=body) as response:
        async for line in response.aiter_lines():
            if patience == 0:
                return None
            if line:
                patience -= 1
                event = json.loads(line.removeprefix("data: "))
                text += event["text"]
                if "finish_reason" in event:
                    return prompt, text
    raise AssertionError("the stream broke off")


def send(server: Serving, body: dict[str, Any]) -> socket.socket:
    """A request on a connection of its own, its answer unread; closed by `with`."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(server.address, SECONDS)
    head = ("POST /generate HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}")
    connection.sendall("\r\n".join((*head, "", "")).encode() + content)
    return connection


def await_free(server: Serving) -> None:
    eventually(lambda: server.health()[1]["rows_in_use"] == 0)
