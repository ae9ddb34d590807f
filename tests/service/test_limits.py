"""What a server refuses to anybody or to some: large bodies, long answers, strangers, and more than it can take."""

import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from runtime.errors import ConfigurationError
from service.config import WebConfig
from service.engine_thread import EngineThread
from service.keys import Keys
from tests.service.serving import SECONDS, HeldSession, engine_on, eventually, serving

LONG: dict[str, Any] = {"prompt": "abc", "max_tokens": 30, "ignore_eos": True, "speculation": "off"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "abc"}], "model": "fake"}


def chunked(size: int) -> Iterator[bytes]:
    body = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
    yield body
    rest = size - len(body)
    yield b" " * (rest // 2)
    yield b" " * (rest - rest // 2)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("length", [True, False])
def test_a_body_that_is_too_large(path: str, length: bool) -> None:
    with serving(lambda: engine_on(HeldSession()), max_body_bytes=1000) as server:
        large: Any = b" " * 1001 if length else chunked(1001)
        headers = {"content-type": "application/json"}
        response = server.client.post(path, content=large, headers=headers)
        assert response.status_code == 413 and "1000 bytes" in response.json()["error"]["message"]
        if path != "/generate":
            assert response.json()["error"]["code"] == "body_too_large"
        body: Any = b"".join(chunked(1000)) if length else chunked(1000)
        assert server.client.post("/generate", content=body, headers=headers).status_code == 200


def test_a_large_body_is_refused_before_it_is_there() -> None:
    with serving(lambda: engine_on(HeldSession()), max_body_bytes=1000) as server:
        for sent in (b"content-length: 9999999\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n3e9\r\n" + b" " * 1001):
            with socket.create_connection(server.address, timeout=SECONDS) as connection:
                connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + sent)
                assert connection.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(stream: bool) -> None:
    """Its row is free for the next one."""
    session = HeldSession(rows=1, allowed=2)
    with serving(lambda: engine_on(session), request_timeout=1.0) as server:
        if stream:
            last = server.events(**LONG)[-1]
            assert last["finish_reason"] == "error"
        else:
            response = server.generate(**LONG)
            assert response.status_code == 504
            last = response.json()
        assert last["error"]["type"] == "DeadlineError" and "1 s" in last["error"]["message"]
        session.let(3)
        eventually(lambda: server.thread.live == 0 and server.health()[1]["rows_in_use"] == 0)
        session.let(float("inf"))
        assert server.generate(**LONG).status_code == 200


def test_openais_answers_that_take_too_long() -> None:
    session = HeldSession(rows=2, allowed=0)
    with serving(lambda: engine_on(session), request_timeout=0.5) as server:
        text = server.client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert json.loads(events[-2])["error"]["code"] == "timeout" and events[-1] == "[DONE]"
        response = server.client.post("/v1/chat/completions", json={**CHAT, "n": 2})
        assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
        session.let(float("inf"))
        eventually(lambda: server.thread.live == 0)


def test_the_rate_of_ends_says_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten requests a second end: 40 that wait are 4 s; bounded, and by what runs where none has ended."""
    thread = EngineThread(lambda: engine_on(HeldSession()))
    assert thread.retry_after(5) == 1
    monkeypatch.setattr("service.engine_thread.time.monotonic", lambda: 102.0)
    thread._ends.append(100.0)
    assert thread.retry_after(3) == 6
    thread._ends.extend(100.1 + i / 10 for i in range(20))
    assert (thread.retry_after(40), thread.retry_after(0), thread.retry_after(10**6)) == (4, 1, 600)


def test_a_full_server_says_when_to_come_back() -> None:
    session = HeldSession(rows=1, allowed=1)
    with serving(lambda: engine_on(session, queue=2)) as server:
        running = [server.later(**LONG) for _ in range(3)]
        eventually(lambda: server.thread.live == 3)
        began = time.monotonic() - 10
        server.thread._ends[0] = began  # none has ended for so long
        for n, ends in ((1, 2), (3, 3)):
            response = server.client.post("/v1/chat/completions", json={**CHAT, "n": n})
            assert response.status_code == 429
            least, most = 10 * ends, math.ceil(ends * (time.monotonic() - began))
            assert least <= int(response.headers["retry-after"]) <= most, "two wait; three choices take all the room"
        session.let(float("inf"))
        assert {request.result().status_code for request in running} == {200}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# who may ask\nann:sk-ann\n\nsk-nobody\n")
    return file


def test_only_who_has_a_key_is_answered(keys: Path) -> None:
    with serving(lambda: engine_on(HeldSession()), api_key_file=keys, cors_origins=("*",)) as server:
        for header in (None, "Bearer", "Bearer sk-an", "Bearer sk-annn", "Basic sk-ann", "Bearer ann:sk-ann", "sk-ann",
                       "Bearer sk-ann\xe9", "Bearer # who may ask"):  # fmt: skip
            headers = {} if header is None else {"authorization": header.encode("latin-1")}
            for path in ("/generate", "/v1/chat/completions", "/tokenize"):
                response = server.client.post(path, json=CHAT, headers=headers)  # type: ignore[arg-type]
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/openapi.json", "/v1/models", "/nowhere"):
            assert server.client.get(path).status_code == 401
        for path in ("/", "/static/page.js", "/health", "/health/live", "/health/ready", "/metrics"):
            assert server.client.get(path).status_code == 200
        asks = {"Origin": "https://a.b", "Access-Control-Request-Method": "POST"}
        assert server.client.options("/generate", headers=asks).status_code == 200
        assert (
            "access-control-allow-origin" in server.client.get("/v1/models", headers={"Origin": "https://a.b"}).headers
        )
        for key in ("sk-ann", "sk-nobody"):
            with OpenAI(base_url=f"{server.client.base_url}/v1", api_key=key, max_retries=0) as client:
                assert client.chat.completions.create(**CHAT).choices
        with OpenAI(base_url=f"{server.client.base_url}/v1", api_key="other", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


def test_a_key_has_so_many_requests_at_a_time(keys: Path) -> None:
    session = HeldSession(rows=4, allowed=1)
    with serving(lambda: engine_on(session), api_key_file=keys, max_requests_per_key=1) as server:
        ann, nobody = {"authorization": "Bearer sk-ann"}, {"authorization": "Bearer sk-nobody"}
        first = server._pool.submit(server.client.post, "/generate", json=LONG, headers=ann)
        eventually(lambda: server.thread.live == 1)
        response = server.client.post("/generate", json=LONG, headers=ann)
        assert response.status_code == 429 and response.json()["error"]["code"] == "key_limit"
        assert 1 <= int(response.headers["retry-after"]) <= 600 and "sk-ann" not in response.text
        other = server._pool.submit(server.client.post, "/generate", json=LONG, headers=nobody)
        eventually(lambda: server.thread.live == 2)
        session.let(float("inf"))
        assert (first.result().status_code, other.result().status_code) == (200, 200)
        assert server.client.post("/generate", json=LONG, headers=ann).status_code == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key"),
        ("# only this", "has no key"),
        ("a:secret\na:other", "line 2: its name or key"),
        ("a:secret\nb:secret", "line 2: its name or key"),
        ("a:", "line 1 is no key"),
        (":secret", "line 1 is no key"),
        ("two words", "line 1 is no key"),
        ("\nschl\xfcssel", "line 2 is no key"),
    ],
)
def test_what_is_no_file_of_keys(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=words) as error:
        Keys.read(file)
    assert "secret" not in str(error.value)


def test_a_file_of_keys_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Keys.read(tmp_path / "none")


@pytest.mark.parametrize("options", [{"max_body_bytes": 0}, {"max_requests_per_key": 2}, {"max_requests_per_key": -1}])
def test_limits_that_cannot_work(options: dict[str, int]) -> None:
    [name] = options
    with pytest.raises(ConfigurationError, match=name):
        WebConfig(**options)  # type: ignore[arg-type]
