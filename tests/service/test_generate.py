"""POST /generate, GET /health and GET /: what a client gets that asks for what it may."""

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.engine import Engine
from runtime.params import EngineConfig, SamplingParams
from service.answer import Answer, Piece
from service.app import EventStream
from service.news import News
from service.schema import GenerateResponse
from tests.fake import fake_cost, fake_manifest, fake_tokenizer
from tests.service.serving import (
    HeldSession,
    ScriptSession,
    Serving,
    byte_tokenizer,
    engine_on,
    eventually,
    serving,
)

MESSAGES = [
    {"role": "user", "content": "abc"},
    {"role": "assistant", "content": "de"},
    {"role": "user", "content": "f"},
]


def test_answers_whole_and_streamed_alike(server: Serving) -> None:
    whole = server.generate(prompt="abc", max_tokens=30).json()
    events = server.events(prompt="abc", max_tokens=30)
    assert len(events) > 1
    assert all(list(event) == ["text"] and event["text"] for event in events[:-1])
    assert "".join(event["text"] for event in events) == whole["text"] != ""
    for key in ("finish_reason", "usage"):
        assert events[-1][key] == whole[key]
    assert events[-1].keys() == whole.keys() == {"text", "finish_reason", "usage", "speculation"}
    assert GenerateResponse.model_validate(whole, strict=True).model_dump(exclude_none=True) == whole, "as documented"
    assert events[-1]["text"] == ""


def test_counts_tokens_and_speculation(server: Serving) -> None:
    answer = server.generate(prompt="abc", raw=True, max_tokens=24, ignore_eos=True, speculation=16).json()
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 24}
    speculation = answer["speculation"]
    assert 0 < speculation["accepted"] < speculation["drafted"] <= 15 * speculation["steps"]
    assert speculation["tokens_per_step"] == pytest.approx(23 / speculation["steps"])
    plain = server.generate(prompt="abc", raw=True, max_tokens=24, ignore_eos=True, speculation="off").json()
    assert plain["text"] == answer["text"]
    assert plain["speculation"] == {"steps": 23, "drafted": 0, "accepted": 0, "tokens_per_step": 1.0}


def test_one_token_takes_no_decode_step(server: Serving) -> None:
    answer = server.generate(prompt="abc", max_tokens=1, ignore_eos=True).json()
    assert answer["speculation"] == {"steps": 0, "drafted": 0, "accepted": 0, "tokens_per_step": None}


@pytest.mark.parametrize(
    ("body", "rendered"),
    [
        ({"prompt": "abc", "raw": True}, "abc"),
        ({"prompt": "abc"}, "<s>[user]abc>"),
        ({"messages": MESSAGES}, "<s>[user]abc[assistant]de[user]f>"),
    ],
)
def test_a_prompt_goes_through_the_template_unless_raw(server: Serving, body: dict[str, object], rendered: str) -> None:
    answer = server.generate(**body, max_tokens=20, temperature=0.7, seed=3, stop=["zz"], stop_token_ids=[96]).json()
    params = SamplingParams(max_tokens=20, temperature=0.7, seed=3, stop=("zz",), stop_token_ids=(96,))
    prompt = fake_tokenizer().encode(rendered).ids
    engine = Engine(HeldSession(), fake_tokenizer(), EngineConfig(), fake_cost())
    [expected] = engine.generate([prompt], params)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert (answer["text"], answer["finish_reason"]) == (expected.text, expected.finish_reason)


def test_every_default_is_the_engines(server: Serving) -> None:
    """The interface's document states the defaults of SamplingParams, and no others."""
    schema = server.client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"]
    defaults = SamplingParams()
    for name in SamplingParams.__dataclass_fields__:
        default = getattr(defaults, name)
        assert schema[name].get("default") == (list(default) if isinstance(default, tuple) else default), name
    assert schema.keys() - SamplingParams.__dataclass_fields__.keys() == {"prompt", "messages", "raw", "stream"}


@pytest.mark.parametrize("speculation", ["off", 16])
def test_log_probabilities_come_with_their_texts(server: Serving, speculation: object) -> None:
    body = {"prompt": "abc", "max_tokens": 12, "ignore_eos": True, "logprobs": 2, "speculation": speculation}
    whole = server.generate(**body).json()
    events = server.events(**body)
    assert [entry for event in events[:-1] for entry in event["logprobs"]] == whole["logprobs"]
    assert len(whole["logprobs"]) == 12 and "logprobs" not in events[-1]
    for entry in whole["logprobs"]:
        assert [top["logprob"] for top in entry["top"]] == sorted((t["logprob"] for t in entry["top"]), reverse=True)
        assert entry["top"][0] == {"token": entry["token"], "logprob": entry["logprob"]}, "greedy: the most probable"


def test_a_text_keeps_to_its_grammar(server: Serving) -> None:
    for outputs, texts in (({"choice": ["ab", "cd"]}, {"ab", "cd"}), ({"json": {"enum": [12, 34]}}, {"12", "34"})):
        answer = server.generate(prompt="abc", structured_outputs=outputs).json()
        assert answer["text"] in texts and answer["finish_reason"] == "stop"


def test_stop_strings_and_tokens(server: Serving) -> None:
    text = server.generate(prompt="abc", max_tokens=30, ignore_eos=True).json()["text"]
    answer = server.generate(prompt="abc", max_tokens=30, ignore_eos=True, stop=[text[10:13]]).json()
    assert (answer["text"], answer["finish_reason"]) == (text[: text.index(text[10:13])], "stop")
    events = server.events(prompt="abc", max_tokens=30, ignore_eos=True, stop=[text[10:13]])
    assert "".join(event["text"] for event in events) == answer["text"]


def test_what_is_there_at_once_goes_out_as_one_piece() -> None:
    """Texts that came while the client did not read, in one event, the last event, and the end of the response."""
    engine = Engine(HeldSession(), fake_tokenizer(), EngineConfig(), fake_cost())
    [sequence] = engine.generate([[5, 6, 7]], SamplingParams(max_tokens=3, ignore_eos=True))
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def stream() -> None:
        answer = Answer(lambda answer: None)
        for text in ("a", "b"):
            answer.push([Piece(text)])
        answer.end(None)
        silent: Any = asyncio.Event().wait
        connection: Any = SimpleNamespace(when_lost=lambda call: None)
        await EventStream(answer, sequence, connection)({"type": "http"}, silent, send)

    asyncio.run(stream())
    start, body = sent
    assert start["status"] == 200 and not body["more_body"]
    events = [json.loads(line.removeprefix("data: ")) for line in body["body"].decode().split("\n\n")[:-1]]
    assert events[0] == {"text": "ab"}
    assert events[1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3}


LONG: dict[str, Any] = {"prompt": "abc", "max_tokens": 9, "ignore_eos": True, "speculation": "off"}


@pytest.mark.parametrize("choices", [1, 2])
def test_texts_wait_for_each_other_but_the_first_and_the_last_do_not(choices: int) -> None:
    session = HeldSession(allowed=1)
    with serving(lambda: engine_on(session), stream_interval=3600) as server, server.stream(**LONG) as events:
        others = [server.later(**LONG) for _ in range(choices - 1)]
        first = next(events)
        assert first["text"] and "usage" not in first, "while the next step is held"
        session.let(float("inf"))
        *rest, end = list(events)
        assert len(rest) == 1 and end["usage"]["completion_tokens"] == 9
        whole = server.generate(**LONG).json()["text"]
        assert first["text"] + rest[0]["text"] == whole
        assert all(other.result().json()["text"] == whole for other in others)


def test_texts_do_not_wait_longer_than_they_have_to() -> None:
    session = HeldSession(allowed=1)
    with serving(lambda: engine_on(session), stream_interval=0.02) as server, server.stream(**LONG) as events:
        for step in range(1, 9):
            assert len(next(events)["text"]) > 0, f"of step {step} nothing came"
            time.sleep(0.03)  # and more: the next step ends later than it has to wait
            session.let(step + 1)
        *_, end = list(events)
        assert end["usage"]["completion_tokens"] == 9


def test_who_does_not_read_along_hears_the_first_text_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    push = Answer.push
    monkeypatch.setattr(Answer, "push", lambda self, pieces: [heard.append(len(pieces)), push(self, pieces)])
    with serving(lambda: engine_on(HeldSession())) as server:
        assert server.generate(**LONG).json()["usage"]["completion_tokens"] == 9
        first, rest = heard
        assert first == 1 and rest > 5
        heard.clear()
        assert server.events(**LONG)[-1]["usage"]["completion_tokens"] == 9
        assert heard == [1] * (1 + rest)


def test_news_wake_once() -> None:
    async def follow() -> list[str]:
        news, seen = News(), []

        async def listen() -> None:
            for _ in range(2):
                await news.wait()
                seen.append("woken")

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0)
        news.tell()
        news.tell()
        for _ in range(5):
            await asyncio.sleep(0)
        seen.append("silence")
        listener.cancel()
        await asyncio.wait([listener])
        news.tell()
        await asyncio.wait_for(news.wait(), 1)  # told before, and nobody waited
        return seen

    assert asyncio.run(follow()) == ["woken", "silence"]


@pytest.mark.parametrize("speculation", ["off", 16])
def test_no_event_holds_half_a_character(speculation: object) -> None:
    """Every token of this model is one byte."""
    text = "naïve café, 東京 🐍🙂 "
    manifest = fake_manifest(vocab=259)
    session = ScriptSession(manifest, [3 + byte for byte in text.encode()])
    size = len(text.encode())
    with serving(lambda: engine_on(session, byte_tokenizer())) as server:
        body = {"prompt": "x" * (size - 2), "raw": True, "max_tokens": size, "speculation": speculation}
        events = server.events(**body)
        whole = server.generate(**body).json()
    assert whole["usage"]["prompt_tokens"] == size - 1, "the tokenizer puts <s> before a raw prompt"
    assert "".join(event["text"] for event in events) == whole["text"]
    assert "\ufffd" not in whole["text"] and whole["text"].encode()[1:] == text.encode()[:-1]


def test_health_tells_the_model_and_how_busy_it_is() -> None:
    session = HeldSession(rows=1, allowed=1)
    with serving(lambda: engine_on(session, queue=5)) as server:
        status, health = server.health()
        assert status == 200
        known = {"status": "ready", "model": "fake", "precision": "fp32", "provider": "fake", "rows": 1, "queue": 5}
        assert health.items() >= (known | {"rows_in_use": 0, "waiting": 0}).items()
        answers = [server.later(prompt="abc", max_tokens=5, ignore_eos=True, speculation="off") for _ in range(2)]
        eventually(lambda: server.thread.live == 2)
        session.let(2)
        session.await_begun(3)
        _, health = server.health()
        assert (health["rows_in_use"], health["waiting"]) == (1, 1)
        session.let(float("inf"))
        assert [answer.result().json()["finish_reason"] for answer in answers] == ["length", "length"]


def test_the_page_leads_to_the_documents(server: Serving) -> None:
    page = server.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert 'href="/docs"' in page.text
    assert server.client.get("/docs").status_code == 200
