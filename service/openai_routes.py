"""OpenAI's interface: /v1/chat/completions, /v1/completions and /v1/models; vLLM's /tokenize and /detokenize."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from runtime.errors import GorgonError, ParameterError, UnknownModelError
from runtime.prompts import Prompts
from service.answer import Answer, Piece, begun
from service.connection import Connection
from service.direct import DirectRoute
from service.doorkeeper import Asked
from service.encoding import encoded
from service.engine_thread import EngineThread
from service.news import News
from service.openai_answer import ChatShape, Choice, Envelope, TextShape, error_of, event
from service.openai_document import ChatCompletion, Detokenized, Model, Models, OpenAIError, TextCompletion, Tokenized
from service.openai_schema import ChatMessage, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from service.openai_schema import Request as Body
from service.stream import Stream

STARTED = int(time.time())

REFUSALS = (400, 401, 404, 408, 413, 429, 500, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": OpenAIError} for status in REFUSALS}
ANSWERS: dict[int | str, dict[str, Any]] = {**ERRORS, 200: {"content": {"text/event-stream": {}}}}
router = APIRouter(route_class=DirectRoute)


def speaks_openai(http: Request) -> bool:
    """Whether a request's errors have OpenAI's form."""
    return http.url.path.startswith("/v1/") or http.url.path in ("/tokenize", "/detokenize")


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=ANSWERS)
async def chat_completions(body: ChatRequest, http: Request) -> Response:
    """The answer to messages, as OpenAI's."""
    engine, prompts = _engine(http, body.model)
    _check_room(engine, 1, body)
    prompt = await encoded(partial(_chat, prompts, body.messages), sum(map(_size, body.messages)))
    limit = body.limit or engine.longest - len(prompt)
    choices, news = await _submit(engine, [("", prompt)], body, max(1, limit))
    shape = ChatShape(prompts, body.top is not None)
    return await _respond(http, body, Envelope(shape, "chatcmpl", body.model, choices, body.choices), choices, news)


@router.post("/v1/completions", response_model=TextCompletion, responses=ANSWERS)
async def completions(body: CompletionRequest, http: Request) -> Response:
    """How texts go on, as OpenAI's: no chat template."""
    engine, prompts = _engine(http, body.model)
    _check_room(engine, len(body.prompts), body)
    asked = await encoded(partial(_asked, prompts, body), sum(map(len, body.prompts)))
    choices, news = await _submit(engine, asked, body, body.limit)
    shape = TextShape(prompts, body.top is not None)
    return await _respond(http, body, Envelope(shape, "cmpl", body.model, choices, body.choices), choices, news)


@router.get("/v1/models", response_model=Models, responses={s: ERRORS[s] for s in (401, 429, 503)})
async def models(http: Request) -> JSONResponse:
    """The names of the one model that this process serves."""
    return JSONResponse({"object": "list", "data": [_model(http, name) for name in _names(http)]})


@router.get("/v1/models/{name:path}", response_model=Model, responses={s: ERRORS[s] for s in (401, 404, 429, 503)})
async def model(name: str, http: Request) -> JSONResponse:
    _engine(http, name)
    return JSONResponse(_model(http, name))


@router.post("/tokenize", response_model=Tokenized, responses=ERRORS)
async def tokenize(body: TokenizeRequest, http: Request) -> JSONResponse:
    """The tokens of a text, or of messages with the chat template around them."""
    engine, prompts = _engine(http, body.model)
    if body.messages is not None:
        tokens = await asyncio.to_thread(_chat, prompts, body.messages)
    else:
        encode = prompts.raw if body.add_special_tokens else prompts.plain
        tokens = await asyncio.to_thread(encode, body.prompt or "")
    return JSONResponse({"count": len(tokens), "max_model_len": engine.context, "tokens": tokens})


@router.post("/detokenize", response_model=Detokenized, responses=ERRORS)
async def detokenize(body: DetokenizeRequest, http: Request) -> JSONResponse:
    """The text of tokens, special ones by their names."""
    _, prompts = _engine(http, body.model)
    return JSONResponse({"prompt": await asyncio.to_thread(prompts.text, body.tokens)})


class ChunkStream(Stream):
    """Answers that have begun, as server-sent chunks."""

    def __init__(
        self, envelope: Envelope, choices: Sequence[Choice], news: News, body: Body, connection: Connection
    ) -> None:
        super().__init__(news, connection)
        self._envelope, self._shape, self._choices = envelope, envelope.shape, choices
        self._with_usage, self._all_along = body.usage_at_the_end, body.usage_all_along
        self._running = list(choices)
        self._begun = False

    def take(self) -> tuple[list[bytes], bool]:
        events = []
        if not self._begun:
            self._begun = True
            events = [self._chunk(choice, part) for choice in self._choices for part in self._shape.begin(choice)]
        for choice in list(self._running):
            pieces, ended = choice.answer.take()
            events += [self._chunk(choice, self._shape.piece(choice, piece)) for piece in pieces]
            if not ended:
                continue
            self._running.remove(choice)
            try:
                choice.answer.check()
            except GorgonError as error:
                events.append(event(error_of(error)))
                self._running = []
                break
            events.append(self._chunk(choice, self._shape.end(choice)))
            if not self._running and self._with_usage:
                events.append(self._envelope.chunk([], self._envelope.usage(), True))
        if not self._running:
            events.append(b"data: [DONE]\n\n")
        return events, bool(self._running)

    def cancel(self) -> None:
        _cancel(self._choices)

    def _chunk(self, choice: Choice, part: dict[str, Any]) -> bytes:
        usage = self._envelope.usage(choice) if self._all_along else None
        return self._envelope.chunk([part], usage, self._with_usage)


def _names(http: Request) -> tuple[str, ...]:
    """Raises NotReadyError."""
    engine: EngineThread = http.app.state.engine
    engine.ready()
    return http.app.state.names or (str(engine.stats["model"]),)


def _engine(http: Request, name: str | None) -> tuple[EngineThread, Prompts]:
    """Raises NotReadyError or UnknownModelError."""
    names = _names(http)
    if name is not None and name not in names:
        raise UnknownModelError(f"the model {name!r} does not exist: this server has {', '.join(names)}")
    engine: EngineThread = http.app.state.engine
    return engine, engine.ready()


def _model(http: Request, name: str) -> dict[str, Any]:
    context = http.app.state.engine.context
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "gorgon", "max_model_len": context}


def _chat(prompts: Prompts, messages: Sequence[ChatMessage]) -> list[int]:
    return prompts.chat([message.turn for message in messages])


def _size(message: ChatMessage) -> int:
    """Characters, also of what a template writes around it."""
    return len(message.turn["content"]) + 20


def _asked(prompts: Prompts, body: CompletionRequest) -> list[tuple[str, list[int]]]:
    """What each prompt's answers say first, and its tokens. Raises PromptError."""
    tokens = [prompts.raw(prompt) if isinstance(prompt, str) else list(prompt) for prompt in body.prompts]
    if not body.echo:
        return [("", each) for each in tokens]
    echoes = [prompt if isinstance(prompt, str) else prompts.text(prompt) for prompt in body.prompts]
    return list(zip(echoes, tokens, strict=True))


def _check_room(engine: EngineThread, prompts: int, body: Body) -> None:
    """Before anything is encoded for nothing: raises ParameterError, NotReadyError or QueueFullError."""
    if prompts * body.choices > engine.limit:
        raise ParameterError(f"n is {body.choices}, of {prompts} prompts: this server takes {engine.limit} in all")
    engine.check_room(prompts * body.choices)


async def _submit(
    engine: EngineThread, asked: Sequence[tuple[str, list[int]]], body: Body, limit: int
) -> tuple[list[Choice], News]:
    """All choices of all prompts, or none of them; what they say first is beside each prompt."""
    params = [body.sampling(limit, i) for i in range(body.choices)]
    await engine.prepare(params[0])
    engine.check_room(len(asked) * len(params))
    news = News()
    submit = partial(engine.submit, news=news, streamed=bool(body.stream), traced=body.traced)
    answers = [(first, submit(prompt, each)) for first, prompt in asked for each in params]
    return [Choice(i, first, answer) for i, (first, answer) in enumerate(answers)], news


async def _respond(http: Request, body: Body, envelope: Envelope, choices: Sequence[Choice], news: News) -> Response:
    http.state.asked = Asked([choice.answer for choice in choices], body.choices)
    connection: Connection = http.state.connection
    connection.when_lost(partial(_leave, choices))
    try:
        await begun([choice.answer for choice in choices], news)
        if body.stream:
            return ChunkStream(envelope, choices, news, body, connection)
        whole = await _whole([choice.answer for choice in choices], news)
    except BaseException:
        _cancel(choices)
        connection.when_lost(None)
        raise
    connection.when_lost(None)
    return JSONResponse(envelope.whole(whole))


async def _whole(answers: Sequence[Answer], news: News) -> list[Piece]:
    """Every answer from first to last; raises what ended one of them early."""
    said: list[list[Piece]] = [[] for _ in answers]
    running = set(range(len(answers)))
    while True:
        for i in sorted(running):
            pieces, ended = answers[i].take()
            said[i] += pieces
            if ended:
                answers[i].check()
                running.discard(i)
        if not running:
            return [Piece.of(pieces) for pieces in said]
        await news.wait()


def _cancel(choices: Sequence[Choice]) -> None:
    for choice in choices:
        choice.answer.cancel()


def _leave(choices: Sequence[Choice]) -> None:
    for choice in choices:
        choice.answer.leave()
