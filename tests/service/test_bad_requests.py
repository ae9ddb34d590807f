"""What a client gets that asks for what it may not: a status, the field's name, and never a 500."""

import json
from typing import Any

import pytest

from tests.fake import fake_manifest
from tests.service.serving import HeldSession, Serving, engine_on, eventually, serving

USER = {"role": "user", "content": "abc"}

INVALID: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    ({"prompt": "a", "messages": [USER]}, "messages"),
    ({"prompt": None}, "messages"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "a\ud800"}, "prompt"),
    ({"messages": []}, "messages"),
    ({"messages": USER}, "messages"),
    ({"messages": ["abc"]}, "messages.0"),
    ({"messages": [USER, {"role": "user"}]}, "messages.1.content"),
    ({"messages": [USER | {"role": "robot"}]}, "messages.0.role"),
    ({"messages": [USER | {"content": None}]}, "messages.0.content"),
    ({"messages": [USER | {"content": "\udfff"}]}, "messages.0.content"),
    ({"messages": [USER | {"name": "x"}]}, "messages.0.name"),
    ({"messages": [USER], "raw": True}, "raw"),
    ({"prompt": "a", "raw": 1}, "raw"),
    ({"prompt": "a", "stream": "true"}, "stream"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 8.0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "8"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": None}, "max_tokens"),
    ({"prompt": "a", "temperature": -0.1}, "temperature"),
    ({"prompt": "a", "temperature": 101}, "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "temperature": float("inf")}, "temperature"),
    ({"prompt": "a", "temperature": 10**400}, "temperature"),
    ({"prompt": "a", "temperature": False}, "temperature"),
    ({"prompt": "a", "top_k": -1}, "top_k"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "min_p": 1.5}, "min_p"),
    ({"prompt": "a", "seed": -1}, "seed"),
    ({"prompt": "a", "seed": 2**64}, "seed"),
    ({"prompt": "a", "seed": 10**4000}, "seed"),
    ({"prompt": "a", "stop": "b"}, "stop"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop": [1]}, "stop.0"),
    ({"prompt": "a", "stop": ["b"] * 17}, "stop"),
    ({"prompt": "a", "stop": ["\ud83d"]}, "stop.0"),
    ({"prompt": "a", "stop_token_ids": [True]}, "stop_token_ids.0"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids"),
    ({"prompt": "a", "stop_token_ids": {"1": 2}}, "stop_token_ids"),
    ({"prompt": "a", "ignore_eos": 0}, "ignore_eos"),
    ({"prompt": "a", "speculation": 1}, "speculation"),
    ({"prompt": "a", "speculation": 65}, "speculation"),
    ({"prompt": "a", "speculation": "on"}, "speculation"),
    ({"prompt": "a", "speculation": 4.0}, "speculation"),
    ({"prompt": "a", "speculation": True}, "speculation"),
    ({"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"one": 1}}, "logit_bias.one"),
    ({"prompt": "a", "logit_bias": {"1": "1"}}, "logit_bias.1"),
    ({"prompt": "a", "logit_bias": [1]}, "logit_bias"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "min_tokens": -1}, "min_tokens"),
    ({"prompt": "a", "structured_outputs": {}}, "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"prompt": "a", "structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
    ({"prompt": "a", "n": 2}, "n"),
    ({"prompt": "a", "max_new_tokens": 5}, "max_new_tokens"),
    ({"prompt": "a", "\ud800": 5}, ""),
]


@pytest.mark.parametrize(("body", "field"), INVALID, ids=[f"{i}-{field}" for i, (_, field) in enumerate(INVALID)])
def test_a_wrong_field_is_named(server: Serving, body: dict[str, Any], field: str) -> None:
    response = post(server, json.dumps(body).encode())
    assert response.status_code == 422, response.text
    place = ["body", *field.split(".")] if field else ["body"]
    for item in response.json()["detail"]:
        assert item.keys() == {"type", "loc", "msg"} and item["msg"]
        assert [str(part) for part in item["loc"]][: len(place)] == place


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b'{"prompt": "a",}', 422),
        (b'"a"', 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b'{"prompt": "\\ud800\\u0041"}', 422),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"prompt": ' + b"[" * 100_000, 400),
    ],
)
def test_what_is_no_json_object_is_refused(server: Serving, body: bytes, status: int) -> None:
    response = post(server, body)
    assert response.status_code == status, response.text
    assert response.json()["detail"] if status == 422 else response.json()["error"]["message"]


def test_other_content_types_paths_and_methods(server: Serving) -> None:
    response = server.client.post("/generate", data={"prompt": "a"})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["header", "content-type"])
    assert server.client.get("/generate").status_code == 405
    assert server.client.post("/v1/generate", json={"prompt": "a"}).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ({"prompt": "a" * 129, "raw": True}, "ContextError", ["129", "128"]),
        ({"prompt": "a" * 200_000}, "ContextError", ["200008", "128"]),
        ({"prompt": "", "raw": True}, "PromptError", ["empty"]),
        ({"prompt": "a", "stop_token_ids": [97]}, "ParameterError", ["stop_token_ids", "97", "96"]),
    ],
)
def test_what_can_never_be_served(
    server: Serving, stream: bool, body: dict[str, Any], error: str, words: list[str]
) -> None:
    response = server.generate(**body, stream=stream)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == error
    assert all(word in response.json()["error"]["message"] for word in words), response.text


def test_a_request_beyond_the_memory_budget() -> None:
    with serving(lambda: engine_on(HeldSession(), kv_memory=512 * 80)) as server:
        response = server.generate(prompt="a", max_tokens=100)
        assert (response.status_code, response.json()["error"]["type"]) == (400, "MemoryBudgetError")
        assert server.generate(prompt="a", max_tokens=5).status_code == 200


def test_an_artifact_without_a_template_takes_raw_prompts() -> None:
    with serving(lambda: engine_on(HeldSession(fake_manifest()))) as server:
        for body in ({"prompt": "a"}, {"messages": [USER]}, {"messages": [USER], "stream": True}):
            response = server.generate(**body)
            assert (response.status_code, response.json()["error"]["type"]) == (400, "PromptError")
            message = response.json()["error"]["message"]
            assert "fake has no chat template" in message and "raw: true" in message and "--chat-template" in message
        assert server.generate(prompt="a", raw=True).status_code == 200


def test_a_template_may_refuse_messages() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}a"
    with serving(lambda: engine_on(HeldSession(fake_manifest(chat_template=template)))) as server:
        response = server.generate(messages=[USER | {"role": "system"}, USER])
        assert (response.status_code, response.json()["error"]["type"]) == (400, "PromptError")
        assert "no system message" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens is 6"),
        ({"logit_bias": {"97": 1}}, "logit_bias has 97"),
        ({"structured_outputs": {"regex": "(a"}}, "unclosed group"),
        ({"structured_outputs": {"json": {"type": "strange"}}}, "strange"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_the_engine_refuses(server: Serving, body: dict[str, Any], words: str) -> None:
    response = server.generate(prompt="a", **body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "ParameterError")
    assert words in response.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_again() -> None:
    session = HeldSession(rows=1, allowed=1)
    with serving(lambda: engine_on(session, queue=1)) as server:
        body = {"prompt": "a", "max_tokens": 5, "ignore_eos": True}
        taken = [server.later(**body) for _ in range(2)]
        eventually(lambda: server.thread.live == 2)
        for stream in (False, True):
            response = server.generate(**body, stream=stream)
            assert response.status_code == 429
            assert response.json()["error"]["type"] == "QueueFullError"
            assert int(response.headers["retry-after"]) >= 1
        session.let(float("inf"))
        assert [answer.result().status_code for answer in taken] == [200, 200]
        assert server.generate(**body).status_code == 200


def post(server: Serving, body: bytes) -> Any:
    return server.client.post("/generate", content=body, headers={"content-type": "application/json"})
