"""OpenAI's interface, asked by OpenAI's own client: what it expects is what a tool expects."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from runtime import grammar
from runtime.engine import Engine
from runtime.params import SamplingParams, StructuredOutputs
from runtime.sequence import Sequence
from service.openai_document import ChatCompletion, OpenAIError, TextCompletion
from tests.fake import fake_manifest, fake_tokenizer
from tests.random_params import json_tokenizer
from tests.service.serving import SECONDS, TEMPLATE, HeldSession, Serving, engine_on, eventually, serving

MODEL = "fake"
MESSAGES: Any = [{"role": "user", "content": "abc"}]
RENDERED = "<s>[user]abc>"
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


def client_of(server: Serving) -> OpenAI:
    return OpenAI(base_url=f"{server.client.base_url}/v1", api_key="any", max_retries=0, timeout=SECONDS)


def plainly(text: str, **params: Any) -> Sequence:
    """What an engine of one's own says."""
    [sequence] = engine_on(HeldSession()).generate([fake_tokenizer().encode(text).ids], SamplingParams(**params))
    return sequence


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=30, **GREEDY)
    expected = plainly(RENDERED, max_tokens=30)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (choice.finish_reason, choice.index, choice.logprobs) == (expected.finish_reason, 0, None)
    assert (answer.model, answer.object) == (MODEL, "chat.completion") and answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt)
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == len(expected.prompt) + len(expected.tokens)


def test_a_chat_streamed(client: OpenAI) -> None:
    options: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 30, "n": 3, "seed": 5, "model": MODEL}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert all(part.delta.role is None and part.delta.content for part in own[1:-1])
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.finish_reason for part in own[:-1]] == [None] * (len(own) - 1)
        assert (own[-1].finish_reason, own[-1].delta.content) == (choice.finish_reason, None)


def test_usage_all_along(client: OpenAI) -> None:
    """As load generators ask for it: each chunk counts its own choice, the last all of them."""
    options: dict[str, Any] = {"prompt": ["abc", "hijk"], "n": 2, "max_tokens": 30, "model": MODEL, "stream": True}
    asked: Any = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = client.completions.create(**options, stream_options=asked, extra_body={"ignore_eos": True})
    assert last.usage is not None and last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 120)
    for i in range(4):
        usages = [chunk.usage for chunk in chunks if chunk.choices[0].index == i]
        counts = [usage.completion_tokens for usage in usages if usage is not None]
        assert len(counts) == len(usages) > 1 and counts == sorted(counts) and 1 <= counts[0] and counts[-1] == 30
        assert {usage.prompt_tokens for usage in usages if usage is not None} == {3 if i < 2 else 4}
    with pytest.raises(openai.BadRequestError, match="goes with include_usage"):
        client.completions.create(**options, stream_options={"continuous_usage_stats": True})  # type: ignore[typeddict-unknown-key]


def test_the_bytes_of_a_stream(server: Serving) -> None:
    body = {"messages": MESSAGES, "max_tokens": 5, "stream": True, "ignore_eos": True, **GREEDY}
    lines = server.client.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert all("usage" not in chunk for chunk in chunks), "usage only where it is asked for"
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]


def test_choices_have_seeds_of_their_own(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20, n=4, seed=7)
    texts = [choice.message.content for choice in answer.choices]
    expected = [plainly(RENDERED, max_tokens=20, temperature=1.0, seed=7 + i) for i in range(4)]
    assert texts == [s.text for s in expected] and len(set(texts)) > 1
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected[0].prompt), "a prompt counts once"
    assert answer.usage.completion_tokens == sum(len(s.tokens) for s in expected)


def test_what_was_computed_before_is_told() -> None:
    with serving(lambda: engine_on(HeldSession())) as server, client_of(server) as client:
        cached = []
        for prompt, n in (("ab" * 20, 1), ("ab" * 20 + "cd", 2)):
            usage = client.completions.create(model=MODEL, prompt=prompt, n=n, max_tokens=2).usage
            assert usage is not None and usage.prompt_tokens_details is not None
            cached.append(usage.prompt_tokens_details.cached_tokens)
        assert cached == [0, 40], "of a prompt once, however many choices it has"


def test_every_parameter_reaches_the_engine(client: OpenAI) -> None:
    extra = {
        "top_k": 20, "min_p": 0.01, "min_tokens": 4, "repetition_penalty": 1.2, "include_stop_str_in_output": True,
        "stop_token_ids": [96], "ignore_eos": True, "speculation": 8, "priority": 3,
    }  # fmt: skip
    asked: dict[str, Any] = {
        "temperature": 0.8, "top_p": 0.9, "stop": ["z"], "seed": 3, "presence_penalty": 0.5, "frequency_penalty": 0.4,
        "logit_bias": {"40": 3, "41": -2.5},
    }  # fmt: skip
    said = {}
    for limit, shape in (("max_completion_tokens", "chat"), ("max_tokens", "chat"), ("max_tokens", "text")):
        call: Any = client.chat.completions.create if shape == "chat" else client.completions.create
        given: Any = {"messages": MESSAGES} if shape == "chat" else {"prompt": RENDERED}
        options = {"model": MODEL, limit: 40, "user": "me", "extra_body": extra, **given, **asked}
        [choice] = call(**options).choices
        parts = [chunk.choices[0] for chunk in call(stream=True, **options)]
        if shape == "chat":
            texts = choice.message.content, "".join(part.delta.content or "" for part in parts)
        else:
            texts = choice.text, "".join(part.text for part in parts)
        said[limit, shape] = texts
    same = plainly(RENDERED, max_tokens=40, **{**asked, "logit_bias": {40: 3, 41: -2.5}}, **extra).text
    assert set(said.values()) == {(same, same)}, "whole and streamed, by each name"


def test_the_most_urgent_of_those_that_wait_goes_first() -> None:
    session = HeldSession(rows=1, allowed=1)
    with serving(lambda: engine_on(session)) as server, client_of(server) as client, ThreadPoolExecutor() as pool:

        def ask(priority: int) -> None:
            body = {"ignore_eos": True, "priority": priority}
            client.completions.create(model=MODEL, prompt="abc", max_tokens=3, extra_body=body)

        waiting = []
        for n, priority in enumerate([0, 7, -1], 1):
            waiting.append(pool.submit(ask, priority))
            eventually(lambda n=n: server.thread.live == n)  # type: ignore[misc]
            session.await_begun(2)  # the first has the row
        answers = list(server.thread._live)
        session.let(float("inf"))
        for answer in waiting:
            answer.result(SECONDS)
        sequences = [answer.sequence for answer in answers if answer.sequence is not None]
        sequences.sort(key=lambda sequence: sequence.started or 0.0)
        assert [sequence.params.priority for sequence in sequences] == [0, -1, 7]
        with pytest.raises(openai.BadRequestError, match="priority") as refused:
            ask(1001)
        assert refused.value.param == "priority"


def test_without_a_limit_the_context_is_the_limit(client: OpenAI) -> None:
    body = {"ignore_eos": True, "top_k": -1}
    answer = client.chat.completions.create(messages=MESSAGES, extra_body=body, **GREEDY)
    assert answer.usage is not None and answer.usage.total_tokens == 128
    assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_the_memory_is_the_limit() -> None:
    memory = 100 * fake_manifest().kv_bytes  # for 96 tokens in whole pages, 64 of them tree nodes
    with serving(lambda: engine_on(HeldSession(), kv_memory=memory)) as server, client_of(server) as client:
        body = {"ignore_eos": True, "speculation": 64}
        usage = client.chat.completions.create(messages=MESSAGES, extra_body=body, **GREEDY).usage
        assert usage is not None and usage.total_tokens == 32


def test_a_dialogue_is_sent_back_as_it_came(client: OpenAI) -> None:
    first = client.chat.completions.create(messages=MESSAGES, max_tokens=3, extra_body={"ignore_eos": True}, **GREEDY)
    said = first.choices[0].message
    turns: Any = [*MESSAGES, said, {"role": "user", "content": [{"type": "text", "text": "d"}]}]
    answer = client.chat.completions.create(messages=turns, max_tokens=9, **GREEDY)
    rendered = f"<s>[user]abc[assistant]{said.content}[user]d>"
    assert answer.choices[0].message.content == plainly(rendered, max_tokens=9).text
    turns[1] = said.model_dump()
    assert client.chat.completions.create(messages=turns, max_tokens=9, **GREEDY).choices == answer.choices
    system: Any = [{"role": "developer", "content": "s"}, *MESSAGES]
    answer = client.chat.completions.create(messages=system, max_tokens=9, **GREEDY)
    assert answer.choices[0].message.content == plainly("<s>[system]s[user]abc>", max_tokens=9).text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat(client: OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 20, "logprobs": True, "top_logprobs": 3, **GREEDY}
    expected = plainly(RENDERED, max_tokens=20, logprobs=3)
    assert expected.choice is not None
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **options)]
        content = [entry for part in chunks if part.logprobs for entry in part.logprobs.content or []]
        for part in chunks:
            if part.logprobs and part.finish_reason is None and part.delta.content:
                said = "".join(entry.token for entry in part.logprobs.content or [] if entry.bytes is not None)
                assert part.delta.content == said
    else:
        [choice] = client.chat.completions.create(**options).choices
        assert choice.logprobs is not None and choice.logprobs.content is not None
        content = choice.logprobs.content
    assert len(content) == len(expected.tokens)
    for entry, want in zip(content, expected.choice.logprobs, strict=False):
        name = fake_tokenizer().id_to_token(want.token)
        assert (entry.token, entry.logprob) == (name, pytest.approx(want.logprob))
        assert entry.bytes == (list(name.encode()) if want.token > 2 else None)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx([p for _, p in want.top])


def test_completions_of_texts_and_of_tokens(client: OpenAI) -> None:
    tokens = [fake_tokenizer().encode(text).ids for text in ("abc", "hij")]
    expected = [plainly(text, max_tokens=16) for text in ("abc", "hij")]
    for prompt, count in (("abc", 1), (["abc", "hij"], 2), (tokens[0], 1), (tokens, 2)):
        answer = client.completions.create(prompt=prompt, **GREEDY)  # type: ignore[arg-type]
        assert [choice.text for choice in answer.choices] == [s.text for s in expected[:count]]
        assert [choice.finish_reason for choice in answer.choices] == [s.finish_reason for s in expected[:count]]
        assert answer.object == "text_completion" and answer.usage is not None
        assert answer.usage.prompt_tokens == sum(len(s.prompt) for s in expected[:count])
        chunks = list(client.completions.create(prompt=prompt, stream=True, **GREEDY))  # type: ignore[arg-type]
        for i in range(count):
            own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == i]
            assert "".join(part.text for part in own) == expected[i].text
            assert own[-1].finish_reason == expected[i].finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client: OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {
        "prompt": ["abc", "hij"],
        "echo": True,
        "n": 2,
        "seed": 1,
        "model": MODEL,
        "max_tokens": 9,
    }
    without = client.completions.create(**(options | {"echo": False}))
    texts = [""] * 4
    if stream:
        for chunk in client.completions.create(stream=True, **options):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        texts = [choice.text for choice in client.completions.create(**options).choices]
    said = [choice.text for choice in without.choices]
    assert texts == [prompt + text for prompt, text in zip(["abc", "abc", "hij", "hij"], said, strict=True)]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_completion(client: OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {"prompt": "abc", "max_tokens": 12, "logprobs": 2, "model": MODEL, "seed": 4}
    expected = plainly("abc", max_tokens=12, logprobs=2, temperature=1.0, seed=4)
    assert expected.choice is not None
    tokens: list[str] = []
    offsets: list[int] = []
    answers = client.completions.create(stream=True, **options) if stream else [client.completions.create(**options)]
    for answer in answers:
        if logprobs := answer.choices[0].logprobs:
            assert logprobs.tokens and logprobs.top_logprobs and logprobs.token_logprobs and logprobs.text_offset
            tokens += logprobs.tokens
            offsets += logprobs.text_offset
            for token, top, own in zip(logprobs.tokens, logprobs.top_logprobs, logprobs.token_logprobs, strict=True):
                assert top[token] == own and 2 <= len(top) <= 3
    assert tokens == [fake_tokenizer().id_to_token(token) for token in expected.tokens]
    assert offsets == list(range(len(tokens)))


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"enum": ["the", 12]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def json_client() -> Iterator[OpenAI]:
    manifest = fake_manifest(chat_template=TEMPLATE, special={"bos_token": "<s>"})
    with serving(lambda: engine_on(HeldSession(manifest), json_tokenizer())) as server, client_of(server) as client:
        yield client


@pytest.mark.parametrize("speculation", ["off", 16])
def test_response_formats(json_client: OpenAI, speculation: object) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    for seed in range(5):
        answer = json_client.chat.completions.create(
            model=MODEL, messages=MESSAGES, seed=seed, response_format=schema, extra_body={"speculation": speculation}
        )
        said = json.loads(answer.choices[0].message.content or "")
        assert said.keys() == {"a", "b"} and said["b"] in ("the", 12) and isinstance(said["a"], bool)
        assert answer.choices[0].finish_reason == "stop"
    options: Any = {"model": MODEL, "messages": MESSAGES, "seed": 4, "response_format": schema}
    chunks = json_client.chat.completions.create(stream=True, extra_body={"speculation": speculation}, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    for kind, begin in (("json_object", "{"), ("text", "")):
        answer = json_client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=20,
            response_format={"type": kind},  # type: ignore[misc,list-item]
        )
        assert (answer.choices[0].message.content or "").startswith(begin)


def test_structured_outputs_by_vllms_names(json_client: OpenAI) -> None:
    for outputs, texts in (
        ({"choice": ["the", "abc"]}, {"the", "abc"}),
        ({"regex": "(12){2}"}, {"1212"}),
        ({"grammar": 'start: "a" | "b" "c"'}, {"a", "bc"}),
        ({"json": {"const": [True]}}, {"[true]"}),
    ):
        body = {"structured_outputs": outputs}
        text = json_client.completions.create(model=MODEL, prompt="abc", seed=1, extra_body=body).choices[0].text
        assert "".join(text.split()) in texts


def test_no_grammar_is_compiled_by_the_engines_thread(json_client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """That would hold up everyone else's tokens."""
    threads: list[str] = []
    source = grammar._source

    def watched(outputs: StructuredOutputs) -> str:
        threads.append(threading.current_thread().name)
        return source(outputs)

    monkeypatch.setattr(grammar, "_source", watched)
    for regex in ("ab{3}", "ab{4}"):
        json_client.completions.create(
            model=MODEL, prompt="abc", n=2, extra_body={"structured_outputs": {"regex": regex}}
        )
    assert len(threads) == 2 and "engine" not in threads and "MainThread" not in threads


def test_models(client: OpenAI, server: Serving) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "gorgon")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("someone/else")
    assert error.value.code == "model_not_found" and error.value.param == "model"


def test_names_of_ones_own_and_pages_of_others() -> None:
    names, origins = ("mine", "org/mine"), ("https://example.org",)
    with (
        serving(lambda: engine_on(HeldSession()), served_model_name=names, cors_origins=origins) as server,
        client_of(server) as client,
    ):
        assert tuple(model.id for model in client.models.list().data) == names
        assert client.models.retrieve("org/mine").id == "org/mine"
        answer = client.completions.create(model="org/mine", prompt="abc", max_tokens=3)
        assert answer.model == "org/mine"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=MODEL, prompt="abc", max_tokens=3)
        headers = {"Origin": origins[0], "Access-Control-Request-Method": "POST"}
        allowed = server.client.options("/v1/completions", headers=headers).headers
        assert allowed["access-control-allow-origin"] == origins[0]
        other = server.client.get("/health", headers={"Origin": "https://example.com"}).headers
        assert "access-control-allow-origin" not in other


def test_no_page_may_call_unless_it_is_named(server: Serving) -> None:
    response = server.client.get("/health", headers={"Origin": "https://example.org"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_tokens_there_and_back(server: Serving) -> None:
    tokens = fake_tokenizer().encode("abc").ids
    answer = server.client.post("/tokenize", json={"model": MODEL, "prompt": "abc"}).json()
    assert answer == {"count": 3, "max_model_len": 128, "tokens": tokens}
    chat = server.client.post("/tokenize", json={"messages": MESSAGES}).json()
    assert chat["tokens"] == fake_tokenizer().encode(RENDERED).ids
    assert server.client.post("/detokenize", json={"tokens": [1, *tokens]}).json() == {"prompt": "<s>abc"}
    for path, body in (("tokenize", {}), ("detokenize", {"tokens": [97]}), ("detokenize", {"tokens": ["a"]})):
        response = server.client.post(f"/{path}", json=body)
        assert response.status_code == 400, response.text
        OpenAIError.model_validate(response.json(), strict=True)


CHAT: dict[str, Any] = {"model": MODEL, "messages": MESSAGES}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "abc"}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (CHAT | {"tools": []}, "tools", "not supported"),
        (CHAT | {"parallel_tool_calls": True}, "parallel_tool_calls", "not supported"),
        (CHAT | {"modalities": ["audio"]}, "modalities", "not supported"),
        (TEXT | {"suffix": "x"}, "suffix", "not supported"),
        (TEXT | {"best_of": 2}, "best_of", "not supported"),
        ({"model": MODEL}, None, ""),
        (CHAT | {"messages": []}, "messages", "at least 1"),
        (CHAT | {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "system"),
        (CHAT | {"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name", "not supported"),
        (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", ""),
        (CHAT | {"temperature": 101}, "temperature", "from 0 to 100"),
        (CHAT | {"temperature": "hot"}, "temperature", "number"),
        (CHAT | {"n": 0}, "n", "1"),
        (CHAT | {"top_k": -2}, "top_k", "-1"),
        (CHAT | {"stop": ["a"] * 17}, "stop", "at most 16"),
        (CHAT | {"logit_bias": {"97": 1}}, "logit_bias", "97"),
        (CHAT | {"logit_bias": {"x": 1}}, "logit_bias", "integer"),
        (CHAT | {"min_tokens": 9, "max_tokens": 8}, "min_tokens", "at most max_tokens"),
        (CHAT | {"max_tokens": 9, "max_completion_tokens": 8}, None, "max_completion_tokens"),
        (CHAT | {"top_logprobs": 2}, None, "logprobs"),
        (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        (CHAT | {"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        (CHAT | {"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        (CHAT | {"response_format": {"type": "xml"}}, "response_format.type", "json"),
        (
            CHAT
            | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}},
            "structured_outputs",
            "odd",
        ),
        (CHAT | {"structured_outputs": {"regex": "("}}, "structured_outputs", "regex"),
        (CHAT | {"structured_outputs": {}}, "structured_outputs", "exactly one"),
        (TEXT | {"prompt": []}, None, "empty"),
        (TEXT | {"prompt": ""}, None, "empty"),
        (TEXT | {"prompt": [[]]}, None, "empty"),
        (TEXT | {"prompt": [5, "a"]}, "prompt", ""),
        (TEXT | {"prompt": [500]}, None, "500"),
        (TEXT | {"prompt": [500], "echo": True}, None, "500"),
        (TEXT | {"prompt": "a" * 129}, None, "129 tokens"),
        (TEXT | {"echo": True, "logprobs": 1}, None, "echo"),
        (TEXT | {"prompt": ["a"] * 2000}, None, "2000"),
    ],
)
def test_errors_have_openais_form(server: Serving, body: dict[str, Any], param: str | None, words: str) -> None:
    path = "chat/completions" if "messages" in body else "completions"
    response = server.client.post(f"/v1/{path}", json=body)
    assert response.status_code == 400, response.text
    error = OpenAIError.model_validate(response.json(), strict=True).error
    assert error.type == "invalid_request_error" and words in error.message, error.message
    assert param is None or error.param == param, error


def test_other_errors_too(server: Serving) -> None:
    cases = [
        (server.client.post("/v1/completions", content=b"{"), 400, None),
        (server.client.post("/v1/completions", content=b'{"prompt": "\xff"}'), 400, None),
        (server.client.post("/v1/completions", json=TEXT | {"model": "other"}), 404, "model_not_found"),
        (server.client.post("/v1/embeddings", json={}), 404, None),
        (server.client.get("/v1/completions"), 405, None),
        (server.client.post("/v1/completions", json=TEXT | {"prompt": "a" * 129}), 400, "context_length_exceeded"),
    ]
    for response, status, code in cases:
        assert response.status_code == status, response.text
        error = OpenAIError.model_validate(response.json(), strict=True).error
        assert error.type == "invalid_request_error" and error.code == code
    assert server.client.get("/nothing").json() == {"detail": "Not Found"}


def test_a_server_that_takes_no_more_says_so() -> None:
    session = HeldSession(rows=1, allowed=0)
    with serving(lambda: engine_on(session, queue=1)) as server, client_of(server) as client:
        taken = server.later(prompt="abc", max_tokens=2)
        eventually(lambda: server.thread.live == 1)
        with pytest.raises(openai.RateLimitError) as error:
            client.completions.create(model=MODEL, prompt="abc", n=2)
        assert error.value.response.headers["retry-after"] == "1" and error.value.code == "queue_full"
        assert server.thread.live == 1, "all choices or none"
        session.let(float("inf"))
        assert taken.result().status_code == 200
        assert len(client.completions.create(model=MODEL, prompt="abc", n=2).choices) == 2


def test_a_server_that_still_loads_says_so() -> None:
    loaded = threading.Event()

    def load() -> Engine:
        assert loaded.wait(SECONDS)
        return engine_on(HeldSession())

    with serving(load, ready=False) as server, client_of(server) as client:
        for call in (client.models.list, lambda: client.completions.create(model=MODEL, prompt="abc")):
            with pytest.raises(openai.InternalServerError) as failure:
                call()  # type: ignore[operator]
            assert failure.value.status_code == 503 and failure.value.code == "not_ready"
            assert failure.value.response.headers["retry-after"] == "1"
        loaded.set()
        server.await_ready()
        assert len(client.models.list().data) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_gives_all_its_rows_back(stream: bool) -> None:
    session = HeldSession(rows=4, allowed=3)
    with serving(lambda: engine_on(session)) as server:
        with client_of(server).with_options(timeout=0.5) as client:
            options: dict[str, Any] = {"model": MODEL, "prompt": ["abc", "hij"], "n": 2, "max_tokens": 100}
            with pytest.raises(openai.APITimeoutError):
                answer = client.completions.create(**options, stream=stream, extra_body={"ignore_eos": True})
                list(answer) if stream else None
        eventually(lambda: sum(answer.cancelled for answer in list(server.thread._live)) == 4)
        session.let(4)
        eventually(lambda: server.thread.live == 0)
        assert server.health()[1]["finished"]["abort"] == 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails_is_an_error_of_its_own(stream: bool) -> None:
    session = HeldSession(rows=2, allowed=2)
    with serving(lambda: engine_on(session)) as server, client_of(server) as client:
        session.fail_next = "run"
        if stream:
            session.fail_next = None
            answer = client.completions.create(model=MODEL, prompt="abc", stream=True, extra_body={"ignore_eos": True})
            next(iter(answer))
            session.fail_next = "run"
            session.let(float("inf"))
            with pytest.raises(openai.APIError, match="told to fail"):
                list(answer)
        else:
            with pytest.raises(openai.InternalServerError, match="told to fail"):
                client.completions.create(model=MODEL, prompt="abc")
            session.let(float("inf"))
        assert client.completions.create(model=MODEL, prompt="abc").choices[0].text


def test_the_document_says_what_comes(server: Serving) -> None:
    """Whole answers are of the documented form, and every body field is described by a schema that refuses others."""
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest", "ChatMessage", "StreamOptions", "TokenizeRequest"):
        assert schemas[name]["additionalProperties"] is False
    chat = server.client.post(
        "/v1/chat/completions", json=CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    )
    ChatCompletion.model_validate(chat.json(), strict=True, extra="forbid")
    text = server.client.post("/v1/completions", json=TEXT | {"logprobs": 2, "n": 2})
    TextCompletion.model_validate(text.json(), strict=True, extra="forbid")
