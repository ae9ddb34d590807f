"""Requests that are allowed, or nearly, and that servers stumble over: no 500, and no time taken from others."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from llguidance import LLParserLimits

from runtime import grammar
from runtime.prompts import Prompts
from tests.random_params import json_tokenizer
from tests.service.serving import HeldSession, Serving, engine_on, serving

TEXT = {"model": "fake", "prompt": "abc", "max_tokens": 5}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 5}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(lambda: engine_on(HeldSession(), json_tokenizer(), queue=8)) as running:
        yield running


def asked(server: Serving, path: str, body: dict[str, Any]) -> httpx.Response:
    return server.client.post(f"/v1/{path}", json=body)


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 0.009])
def test_a_penalty_that_makes_logits_infinite_is_refused(server: Serving, penalty: float) -> None:
    response = asked(server, "completions", TEXT | {"repetition_penalty": penalty})
    assert response.status_code == 400 and response.json()["error"]["param"] == "repetition_penalty"
    assert asked(server, "completions", TEXT | {"repetition_penalty": 0.01}).status_code == 200


def test_thousands_of_choices_are_one_grammar(server: Serving) -> None:
    choices = ["".join("abc"[int(d) % 3] for d in f"{i:08}") + f"{i:05}" for i in range(5000)]
    body = TEXT | {"structured_outputs": {"choice": choices}, "max_tokens": 40}
    response = asked(server, "completions", body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"] in choices


def test_prompts_are_counted_before_they_are_encoded(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of tiny prompts fit into a body, and would take the event loop for minutes."""
    encoded = 0
    raw = Prompts.raw

    def counted(prompts: Prompts, text: str) -> list[int]:
        nonlocal encoded
        encoded += 1
        return raw(prompts, text)

    monkeypatch.setattr(Prompts, "raw", counted)
    response = asked(server, "completions", TEXT | {"prompt": ["a"] * 20_000})
    assert response.status_code == 400 and "this server takes 16 in all" in response.json()["error"]["message"]
    assert encoded == 0
    assert asked(server, "completions", TEXT | {"prompt": ["a"] * 16}).status_code == 200


def test_many_prompts_are_not_encoded_on_the_event_loop(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    raw = Prompts.raw

    def watched(prompts: Prompts, text: str) -> list[int]:
        threads.add(threading.current_thread().name)
        return raw(prompts, text)

    monkeypatch.setattr(Prompts, "raw", watched)
    asked(server, "completions", TEXT | {"prompt": ["a" * 100] * 16})
    assert len(threads) == 1 and not threads & {"engine", server._run.name}


def test_tokens_are_made_text_only_for_an_echo(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prompts, "text", lambda prompts, tokens: "said")
    assert not asked(server, "completions", TEXT | {"prompt": [5, 6]}).json()["choices"][0]["text"].startswith("said")
    echoed = asked(server, "completions", TEXT | {"prompt": [5, 6], "echo": True})
    assert echoed.json()["choices"][0]["text"].startswith("said")


@pytest.mark.parametrize("token", [-1, 97, 10**30])
def test_a_token_out_of_the_vocabulary_is_named(server: Serving, token: int) -> None:
    for extra in ({}, {"echo": True}):
        response = asked(server, "completions", TEXT | {"prompt": [5, token], **extra})
        assert response.status_code == 400 and str(token) in response.json()["error"]["message"]


def test_nothing_asked_for_is_nothing_refused(server: Serving) -> None:
    """No log-probabilities of no alternatives, as some clients write it."""
    for extra in ({"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}):
        response = asked(server, "chat/completions", CHAT | extra)
        assert response.status_code == 200 and response.json()["choices"][0]["logprobs"] is None
    assert asked(server, "chat/completions", CHAT | {"top_logprobs": 1}).status_code == 400


def test_more_tokens_than_a_float_can_count(server: Serving) -> None:
    """They are added to the figures like any others, and the next answers are heard of."""
    for _ in range(2):
        body = TEXT | {"max_tokens": 10**400, "stop": ["a", "b", "c", "e", "t", "1", "0", "{", "[", ",", " ", "n"]}
        assert asked(server, "completions", body).status_code == 200
    assert server.client.get("/metrics").status_code == 200


@pytest.mark.parametrize("options", [{"temperature": 5e-324}, {"top_p": 5e-324}, {"min_p": 1.0}, {"temperature": 100}])
def test_the_ends_of_ranges_answer(server: Serving, options: dict[str, float]) -> None:
    for extra in ({}, {"typical_acceptance": True}, {"presence_penalty": -2, "frequency_penalty": 2}):
        response = asked(server, "completions", TEXT | {"seed": 2**64 - 1, "n": 3, **options, **extra})
        assert response.status_code == 200, response.text


# Every text of n letters is read in ways beyond counting: the parser's row is full after some of them.
RULES = [f"r{i}" for i in range(4)]
AMBIGUOUS = f"start: {' | '.join(RULES)}\n" + "\n".join(f'{r}: {r} {r} | start {r} | {r} start | "a"' for r in RULES)


@pytest.mark.parametrize("speculation", ["off", 16])
def test_a_grammar_that_takes_too_much_amid_an_answer_is_its_authors(
    server: Serving, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, speculation: object
) -> None:
    """A 400 that says where, not a failure of the server: in a stream after the text that came before."""
    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(max_items_in_row=300, verbose_errors=False))  # soon reached
    options = {"max_tokens": 40, "min_tokens": 40, "speculation": speculation}
    options["structured_outputs"] = {"grammar": AMBIGUOUS}
    whole = asked(server, "completions", TEXT | options)
    error = whole.json()["error"]
    assert (whole.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "structured_outputs")
    assert "cannot be followed after 10 tokens: " in error["message"] and "Ask for" in error["message"]
    *events, last, done = asked(server, "chat/completions", CHAT | options | {"stream": True}).text.split("\n\n")[:-1]
    assert json.loads(last.removeprefix("data: ")) == whole.json() and done == "data: [DONE]"
    parts = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(part.get("content", "") for part in parts) == "a" * 10
    *texts, end = server.events(prompt="abc", **options)
    assert "".join(event["text"] for event in texts) == "a" * 10
    assert end["error"] == {"type": "ParameterError", "message": error["message"]} and end["finish_reason"] == "error"
    assert not caplog.records, "nothing of the server's has failed"
    assert asked(server, "completions", TEXT).status_code == 200 and server.health()[1]["failed_steps"] == 0
