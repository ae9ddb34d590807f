"""The line of JSON that a request leaves, and its id."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.doorkeeper import logger
from tests.service.serving import HeldSession, Serving, engine_on, eventually, serving

SECRET = "xyzzyplugh"
LONG: dict[str, Any] = {"prompt": SECRET, "max_tokens": 30, "ignore_eos": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "model": "fake", "max_tokens": 9}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of requests, as it comes."""
    caplog.set_level("INFO", logger.name)
    found: list[str] = []
    emit = caplog.handler.emit

    def emitting(record: Any) -> None:
        if record.name == logger.name:
            found.append(record.getMessage())
        emit(record)

    caplog.handler.emit = emitting  # type: ignore[method-assign]
    return found


def logged(lines: list[str], count: int) -> list[dict[str, Any]]:
    """A line is there once the response is, or soon after."""
    eventually(lambda: len(lines) >= count)
    assert len(lines) == count
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_leaves_a_line(lines: list[str], stream: bool) -> None:
    with serving(lambda: engine_on(HeldSession()), log_requests=True) as server:
        answer = server.events(**LONG)[-1] if stream else server.generate(**LONG).json()
        server.client.get("/metrics")
        server.client.get("/health/ready")
        [line] = logged(lines, 1)
    assert list(line) == ["id", "key", "method", "path", "status", "prompt_tokens", "completion_tokens",
                          "tokens_per_step", "ttft_ms", "reason", "total_ms"]  # fmt: skip
    assert (line["key"], line["method"], line["path"], line["status"]) == (None, "POST", "/generate", 200)
    assert line["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert (line["completion_tokens"], line["reason"]) == (30, "length")
    assert line["tokens_per_step"] == round(answer["speculation"]["tokens_per_step"], 3)
    assert 0 < line["ttft_ms"] <= line["total_ms"]


def test_choices_count_as_in_the_usage(lines: list[str]) -> None:
    with serving(lambda: engine_on(HeldSession()), log_requests=True) as server:
        usage = server.client.post("/v1/chat/completions", json=CHAT | {"n": 3, "ignore_eos": True}).json()["usage"]
        both = {"prompt": ["ab", "cdef"], "n": 2, "max_tokens": 5, "model": "fake"}
        more = server.client.post("/v1/completions", json=both).json()["usage"]
        for line, expected in zip(logged(lines, 2), (usage, more), strict=True):
            assert {name: line[name] for name in ("prompt_tokens", "completion_tokens")}.items() <= expected.items()


def test_what_did_not_go_well(lines: list[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:sk-secret\n")
    session = HeldSession(rows=1, allowed=0)
    options: dict[str, Any] = {"api_key_file": keys, "request_timeout": 0.5, "log_requests": True}
    with serving(lambda: engine_on(session), **options) as server:
        assert server.generate(**LONG).status_code == 401
        server.client.headers["authorization"] = "Bearer sk-secret"
        assert server.generate(prompt="a", max_tokens=0).status_code == 422
        assert server.generate(**LONG).status_code == 504
        session.let(float("inf"))
        eventually(lambda: server.thread.live == 0)
        found = logged(lines, 3)
    assert [(line["status"], line["key"], line.get("reason")) for line in found] == [
        (401, None, None), (422, "ann", None), (504, "ann", "DeadlineError"),
    ]  # fmt: skip
    assert not any(SECRET in line or "sk-secret" in line for line in lines)


def test_who_leaves_is_logged_too(lines: list[str]) -> None:
    session = HeldSession(rows=1, allowed=2)
    with serving(lambda: engine_on(session), log_requests=True) as server:
        with server.stream(**LONG, speculation="off") as events:
            next(events)
        [line] = logged(lines, 1)
        session.let(float("inf"))
        eventually(lambda: server.thread.live == 0)
    assert (line["reason"], line["status"]) == ("abort", 200) and 0 < line["completion_tokens"] < 30


def test_nothing_is_logged_unless_asked_for(lines: list[str]) -> None:
    with serving(lambda: engine_on(HeldSession())) as server:
        server.generate(**LONG)
        assert server.thread.live == 0
    assert lines == []


def ask(server: Serving, path: str, name: str | None) -> str:
    headers = {} if name is None else {"x-request-id": name}
    [found] = server.client.get(path, headers=headers).headers.get_list("x-request-id")
    return found


def test_an_id_is_taken_over_or_made(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("/health", "/nowhere", "/v1/models"):
        assert ask(server, path, "mine-1") == "mine-1"
        made = {ask(server, path, name) for name in (None, "", "two words", "x" * 129)}
        assert len(made) == 4 and all(len(name) == 32 for name in made)
    monkeypatch.setattr(server.thread, "ready", lambda: 1 / 0)
    assert server.client.get("/v1/models", headers={"x-request-id": "mine-2"}).headers["x-request-id"] == "mine-2"
