"""Good bodies do not take FastAPI's general way; what is wrong with others is still FastAPI's to say."""

import pytest

from runtime.prompts import Prompts
from tests.service.serving import Serving

CHAT = {"messages": [{"role": "user", "content": "abc"}], "model": "fake", "max_tokens": 3}


def test_a_good_body_goes_the_short_way(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unwanted(**_: object) -> None:
        raise AssertionError("the general way")

    monkeypatch.setattr("fastapi.routing.solve_dependencies", unwanted)
    assert server.generate(prompt="abc", max_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert server.client.post("/v1/chat/completions", json=CHAT).status_code == 200
    text = b'{"prompt": "abc", "max_tokens": 3}'
    for kind in ("application/json; charset=utf-8", "application/json"):
        assert server.client.post("/generate", content=text, headers={"content-type": kind}).status_code == 200


def test_a_good_body_passes_no_layer_of_fastapi(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unwanted(*_: object) -> None:
        raise AssertionError("a layer of FastAPI")

    monkeypatch.setattr("fastapi.FastAPI.__call__", unwanted)
    assert server.events(prompt="abc", max_tokens=3)[-1]["usage"]["completion_tokens"] == 3
    assert server.client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_what_fails_on_the_short_way_is_answered_as_on_the_long(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once: a body is not read again, and nothing is asked for twice."""
    encoded, raw = [], Prompts.raw
    monkeypatch.setattr(Prompts, "raw", lambda self, text: encoded.append(text) or raw(self, text))
    for path, status in (("/generate", 400), ("/v1/chat/completions", 404)):
        body = {"prompt": "a" * 1000, "raw": True} if path == "/generate" else CHAT | {"model": "other"}
        response = server.client.post(path, json=body)
        assert response.status_code == status and response.json()["error"]
    assert len(encoded) == 1
    counts = [line for line in server.client.get("/metrics").text.splitlines() if "http_responses_total{" in line]
    assert sum('path="/generate",status="400"} 1.0' in line for line in counts) == 1, counts
    assert sum('path="/v1/chat/completions",status="404"} 1.0' in line for line in counts) == 1, counts


def test_all_that_is_out_of_range_is_named(server: Serving) -> None:
    response = server.generate(prompt="abc", top_p=2.0, max_tokens=0)
    assert response.status_code == 422
    assert sorted(item["loc"][-1] for item in response.json()["detail"]) == ["max_tokens", "top_p"]
