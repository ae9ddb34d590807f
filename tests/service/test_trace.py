"""`trace` in streamed chats: each step's tree, its tokens and what was accepted, agreeing with text and figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.page import HEADERS
from tests.fake import fake_manifest, fake_tokenizer
from tests.service.serving import ScriptSession, Serving, byte_tokenizer, engine_on, serving

STATIC = Path(__file__).parents[2] / "service" / "static"
CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "abcdef"}], "temperature": 0}


def choices(server: Serving, **body: Any) -> list[dict[str, Any]]:
    """What the chunks of a stream say, of one choice."""
    response = server.client.post("/v1/chat/completions", json=CHAT | {"stream": True} | body)
    assert response.status_code == 200, response.text
    chunks = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert chunks[-1] == "[DONE]"
    return [choice for chunk in chunks[:-1] for choice in json.loads(chunk)["choices"]]


def content(parts: list[dict[str, Any]]) -> str:
    return "".join(part["delta"].get("content", "") for part in parts)


@pytest.mark.parametrize("speculation", ["off", 2, 16, 64, "auto"])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_each_step_tells_what_it_drafted(server: Serving, speculation: int | str, temperature: float) -> None:
    before = server.health()[1]
    parts = choices(server, trace=True, speculation=speculation, temperature=temperature, seed=5, max_tokens=60,
                    ignore_eos=True)  # fmt: skip
    after = server.health()[1]
    steps = [part["trace"] for part in parts if "trace" in part]
    tokenizer = fake_tokenizer()
    emitted = [token for step in steps for token in step["tokens"]]
    assert "".join(token["text"] for token in emitted) == content(parts)
    assert tokenizer.decode([token["id"] for token in emitted]) == content(parts)
    assert steps[0]["nodes"] == [] and len(steps[0]["tokens"]) == 1, "the prompt's own"
    assert [s["seconds"] for s in steps] == sorted(s["seconds"] for s in steps)
    newest = steps[0]["tokens"][0]["id"]
    for step in steps[1:]:
        nodes = step["nodes"]
        assert nodes[0] == {"id": newest, "text": tokenizer.id_to_token(newest), "parent": -1}
        assert all(node["parent"] < i and node["text"] == tokenizer.id_to_token(node["id"])
                   for i, node in enumerate(nodes))  # fmt: skip
        path = [0, *step["accepted"]]
        assert [nodes[node]["parent"] for node in path[1:]] == path[:-1], "a path from the root"
        ids = [token["id"] for token in step["tokens"]]
        assert [nodes[node]["id"] for node in path[1:]] == ids[: len(path) - 1]
        if step is not steps[-1]:
            assert len(ids) == len(path), "one of the model's own"
            own = {node["id"] for node in nodes if node["parent"] == path[-1]}
            assert ids[-1] not in own, "what was drafted and right is accepted"
        newest = ids[-1]
    assert sum(len(step["nodes"]) - 1 for step in steps[1:]) == after["drafted"] - before["drafted"]
    assert sum(len(step["accepted"]) for step in steps) == after["accepted"] - before["accepted"]
    if speculation == "off":
        assert {len(step["nodes"]) for step in steps[1:]} == {1}
    elif speculation != "auto":  # which may find that nothing pays here
        assert any(step["accepted"] for step in steps) and after["accepted"] < after["drafted"]


def test_a_trace_changes_nothing_else(server: Serving) -> None:
    """And none comes unasked."""
    plain, traced = choices(server, max_tokens=40), choices(server, max_tokens=40, trace=True)
    assert content(plain) == content(traced) and plain[-1] == traced[-1]
    assert not any("trace" in part for part in plain + choices(server, max_tokens=9, trace=False))


def test_steps_that_say_nothing_are_told_as_well() -> None:
    """Half a character, and text that may begin a stop string, belong to the step that completes them."""
    manifest = fake_manifest(vocab=259, chat_template="{{ messages[0].content }}")
    script = [3 + byte for byte in "aé€b".encode()]
    with serving(lambda: engine_on(ScriptSession(manifest, script), byte_tokenizer())) as server:
        for tokens in range(8, 16):  # some end while text is held back: it belongs to the last token
            parts = choices(server, trace=True, max_tokens=tokens, stop=["b€"], speculation="off")
            steps = [part["trace"] for part in parts if "trace" in part]
            assert [len(step["tokens"]) for step in steps] == [1] * tokens
            texts = [step["tokens"][0]["text"] for step in steps]
            assert "".join(texts) == content(parts) and "" in texts and "€" in texts and "ba" in texts


def test_each_choice_has_its_own(server: Serving) -> None:
    parts = choices(server, trace=True, n=3, temperature=1, seed=1, max_tokens=12, logprobs=True)
    for index in range(3):
        own = [part for part in parts if part["index"] == index]
        texts = [token["text"] for part in own if "trace" in part for token in part["trace"]["tokens"]]
        assert "".join(texts) == content(own)
        for part in own:
            if "trace" in part:
                assert len(part["logprobs"]["content"]) == len(part["trace"]["tokens"])


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", CHAT | {"trace": True}, "trace goes with stream"),
        ("/v1/chat/completions", CHAT | {"trace": 1, "stream": True}, "trace"),
        ("/v1/completions", {"model": "fake", "prompt": "a", "stream": True, "trace": True}, "trace is not supported"),
    ],
)
def test_where_there_is_none(server: Serving, path: str, body: dict[str, Any], words: str) -> None:
    response = server.client.post(path, json=body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]
    assert response.json()["error"]["param"] in ("trace", None)


def test_generate_has_none(server: Serving) -> None:
    assert server.generate(prompt="a", stream=True, trace=True).status_code == 422


def test_the_page_is_held_to_this_server(server: Serving) -> None:
    """Its files are there, with headers that forbid what they do not need, and are not sent twice."""
    page = server.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.content == (STATIC / "page.html").read_bytes()
    for file in STATIC.iterdir():
        response = server.client.get(f"/static/{file.name}")
        assert response.content == file.read_bytes()
        for name, value in HEADERS.items():
            assert response.headers[name] == page.headers[name] == value
        again = server.client.get(f"/static/{file.name}", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", "no-cache")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy and policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")


@pytest.mark.parametrize("path", ["/static/", "/static/no.js", "/static/../page.py", "/static/%2e%2e/app.py"])
def test_nothing_else_is_a_file_of_the_page(server: Serving, path: str) -> None:
    assert server.client.get(path).status_code == 404
