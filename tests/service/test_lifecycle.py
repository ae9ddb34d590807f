"""Loading, failing, draining, stopping: what clients see meanwhile, and that the server does end."""

import asyncio
import socket
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from runtime.engine import Engine
from runtime.errors import ArtifactError
from runtime.sequence import Output
from service.config import WebConfig
from service.engine_thread import EngineThread
from service.server import listen, serve
from tests.fake import fake_manifest
from tests.service.serving import SECONDS, HeldSession, Serving, engine_on, eventually, serving

LONG = {"prompt": "abc", "max_tokens": 30, "ignore_eos": True, "speculation": "off"}


def test_the_port_is_open_while_the_model_loads() -> None:
    loaded = threading.Event()

    def load() -> Engine:
        assert loaded.wait(SECONDS)
        return engine_on(HeldSession())

    with serving(load, ready=False) as server:
        status, health = server.health()
        assert (status, health["status"]) == (503, "loading")
        refused(server, "loading")
        assert server.generate(prompt=5).status_code == 422
        loaded.set()
        server.await_ready()
        assert server.generate(**LONG).status_code == 200


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "no such artifact"),
        (fake_manifest(chat_template="{% if %}"), "chat template of fake does not compile, line 1"),
    ],
)
def test_what_cannot_be_loaded_ends_the_server(manifest: Any, message: str) -> None:
    def load() -> Engine:
        if manifest is None:
            raise ArtifactError("no such artifact")
        return engine_on(HeldSession(manifest))

    with pytest.raises(ArtifactError, match=message):
        serve(load, listen("127.0.0.1", 0), WebConfig())


def test_a_failed_step_ends_its_requests_and_nothing_else() -> None:
    session = HeldSession(rows=2, allowed=1)
    with serving(lambda: engine_on(session)) as server:
        with server.stream(**LONG) as events:
            first = next(events)
            whole = server.later(**LONG)
            eventually(lambda: server.thread.live == 2)
            session.let(2)
            session.await_begun(3)
            session.fail_next = "run"
            session.let(float("inf"))
            rest = list(events)
        assert first.keys() == {"text"} and first["text"]
        assert rest[-1]["finish_reason"] == "error" and rest[-1]["error"]["type"] == "StepError"
        assert "told to fail" in rest[-1]["error"]["message"]
        assert 0 < rest[-1]["usage"]["completion_tokens"] < 30
        assert whole.result().status_code == 500 and whole.result().json()["error"]["type"] == "StepError"
        assert server.generate(**LONG).json()["finish_reason"] == "length"
        status, health = server.health()
        assert (status, health["rows_in_use"], health["failed_steps"]) == (200, 0, 1)


def test_an_engine_that_breaks_ends_all_requests_and_then_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a session's step its books may contradict themselves: who supervises the process starts another."""
    session = HeldSession(rows=1, allowed=1)
    engine = engine_on(session)
    with serving(lambda: engine) as server:
        with server.stream(**LONG) as events:
            next(events)
            session.await_begun(2)
            waiting = server.later(**LONG)
            eventually(lambda: server.thread.live == 2)
            monkeypatch.setattr(engine, "step", broken)
            session.let(float("inf"))
            assert list(events)[-1]["error"]["type"] == "StepError"
        assert waiting.result().status_code == 500
        server.await_end()
        assert "out of order" in str(server.thread.error)


def test_a_request_that_breaks_the_engines_door_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on(HeldSession())
    with serving(lambda: engine) as server:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "add", broken)
            response = server.generate(**LONG)
            assert (response.status_code, response.json()["error"]["type"]) == (500, "RuntimeError")
            assert response.headers["connection"] == "close"
        assert server.generate(**LONG).status_code == 200


def test_a_stopping_server_finishes_what_runs() -> None:
    session = HeldSession(rows=2, allowed=1)
    with serving(lambda: engine_on(session)) as server:
        with server.stream(**LONG) as events:
            next(events)
            whole = server.later(**LONG)
            eventually(lambda: server.thread.live == 2)
            server.signal()
            eventually(lambda: server.health()[0] == 503)
            assert server.health()[1]["status"] == "draining"
            refused(server, "stopping")
            session.let(float("inf"))
            assert list(events)[-1]["usage"]["completion_tokens"] == 30
        assert whole.result().json()["usage"]["completion_tokens"] == 30
        server.await_end()
        with pytest.raises(httpx.ConnectError):
            server.health()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stopping_server_does_not_wait_for_ever(signals: int) -> None:
    """Past --drain-seconds, or at a second signal, what runs ends with an error that says so."""
    session = HeldSession(rows=2, allowed=1)
    with serving(lambda: engine_on(session), drain_seconds=0.0 if signals == 1 else 60.0) as server:
        with server.stream(**LONG) as events:
            next(events)
            whole = server.later(**LONG)
            eventually(lambda: server.thread.live == 2)
            for _ in range(signals):
                server.signal()
            last = list(events)[-1]
        assert (last["finish_reason"], last["error"]["type"]) == ("error", "NotReadyError")
        assert whole.result().status_code == 503
        session.let(float("inf"))  # the step that ran
        server.await_end()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_half_sent_request_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch, signals: int) -> None:
    monkeypatch.setattr("service.server.GRACE_SECONDS", 0.2)
    drain_seconds = 0.0 if signals == 1 else 60.0
    with serving(lambda: engine_on(HeldSession()), drain_seconds=drain_seconds) as server:
        with socket.create_connection(server.address) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            eventually(lambda: len(server.server.server_state.tasks) == 1)
            for _ in range(signals):
                server.signal()
            server.await_end()


def test_a_step_that_outlives_the_event_loop_wakes_nobody() -> None:
    """The engine's thread is not waited for without end, and goes on for a step, or a load, while the loop closes."""
    loaded = threading.Event()

    def load() -> Engine:
        assert loaded.wait(SECONDS)
        return engine_on(HeldSession())

    async def begin_and_end(thread: EngineThread) -> None:
        thread.start()
        await thread.close()

    thread, woken = EngineThread(load), list[Any]()
    asyncio.run(begin_and_end(thread))
    # as the thread sees a loop that is closed right after it was looked at
    thread._loop = SimpleNamespace(is_closed=lambda: False, call_soon_threadsafe=lambda *call: woken.append(call))  # type: ignore[assignment]
    loaded.set()
    thread._thread.join(SECONDS)
    assert not thread._thread.is_alive() and not woken


def test_no_token_waits_for_the_last_ones_acknowledgement() -> None:
    """Nagle's algorithm would hold it back, by 40 ms where the client delays acknowledgements."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def refused(server: Serving, reason: str) -> None:
    for stream in (False, True):
        response = server.generate(**LONG, stream=stream)
        assert (response.status_code, response.json()["error"]["type"]) == (503, "NotReadyError")
        assert reason in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) >= 1


def broken(*_: Any) -> list[Output]:
    raise RuntimeError("out of order")
