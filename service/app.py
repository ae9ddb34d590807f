"""The HTTP interface: routes, errors as JSON, and what happens when a client goes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.telemetry import TelemetryConfig
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from runtime.errors import GorgonError, NotReadyError, QueueFullError
from service import openai_routes, page
from service.answer import Answer, Piece, begun
from service.body_limit import BodyLimit
from service.config import WebConfig
from service.connection import Connection
from service.direct import Direct, DirectRoute
from service.doorkeeper import Asked
from service.encoding import encoded
from service.engine_thread import EngineThread
from service.keys import KeyCheck, Keys
from service.metrics import Metrics
from service.openai_answer import error_body, error_of, event, invalid_body
from service.openai_document import OpenAIError
from service.schema import ErrorResponse, Failure, GenerateRequest, GenerateResponse
from service.stream import Stream

if TYPE_CHECKING:
    from runtime.sampling import Logprobs
    from runtime.sequence import Sequence

RETRY_AFTER = "1"  # seconds, while it loads or drains
# FastAPI's own would be on, with the messages of errors: service/tracing.py says what is told, and only if asked
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 408, 413, 429, 500, 503, 504)
}
RESPONSES[401] = {"model": OpenAIError}
RESPONSES[200] = {"content": {"text/event-stream": {}}}

router = APIRouter(route_class=DirectRoute)


def create_app(engine: EngineThread, metrics: Metrics, web: WebConfig) -> ASGIApp:
    """The application around one engine, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await engine.close()

    app = FastAPI(
        title="Gorgon",
        description="Batched, lossless tree speculation on ONNX Runtime.",
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
        redirect_slashes=False,  # to where, only a proxy before it would know
    )
    app.state.engine, app.state.metrics, app.state.names = engine, metrics, web.served_model_name
    # Before FastAPI's own, and each looked up once: include_router would have it twice.
    app.router.routes[:0] = [*router.routes, *openai_routes.router.routes, *page.router.routes]
    app.mount(page.STATIC, page.files)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(GorgonError, _gorgon_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
    layers: ASGIApp = BodyLimit(Direct(app), web.max_body_bytes, web.read_timeout)
    if web.api_key_file is not None:
        layers = KeyCheck(layers, Keys.read(web.api_key_file), web.max_requests_per_key, engine)
    if web.cors_origins:  # around all others: a browser asks without a key whether it may ask with one
        layers = CORSMiddleware(layers, allow_origins=web.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return layers


@router.post("/generate", response_model=GenerateResponse, responses=RESPONSES)
async def generate(body: GenerateRequest, http: Request) -> Response:
    """The answer to a prompt or to messages, whole or, with `stream`, as server-sent events.

    Each event is `data: {"text": …}` with new text; the last has the fields of the whole answer, its text
    empty, and `error` if the answer ended early.
    """
    engine: EngineThread = http.app.state.engine
    prompts = engine.ready()
    engine.check_room()  # before a long text is tokenized for nothing
    if body.messages is not None:
        size = sum(len(message.content) + 20 for message in body.messages)  # and what a template writes around it
        encode = partial(prompts.chat, [message.model_dump() for message in body.messages])
    else:
        text = body.prompt or ""
        size, encode = len(text), partial(prompts.raw if body.raw else prompts.question, text)
    params = body.params
    prompt = await encoded(encode, size)
    await engine.prepare(params)
    answer = engine.submit(prompt, params, streamed=body.stream)
    http.state.asked = Asked([answer])
    connection: Connection = http.state.connection
    connection.when_lost(answer.leave)
    try:
        await begun([answer], answer.news)
        assert (sequence := answer.sequence) is not None
        if body.stream:
            return EventStream(answer, sequence, connection)
        whole = await answer.whole()
    except BaseException:
        answer.cancel()
        connection.when_lost(None)
        raise
    connection.when_lost(None)
    return JSONResponse(_dump(whole.text, sequence.finish_reason, sequence, whole.logprobs))


@router.get("/health", responses={503: {"description": "loading, draining, or the engine has stopped"}})
async def health(http: Request) -> JSONResponse:
    """200 and the engine's figures when requests are taken, else 503 and why not."""
    engine: EngineThread = http.app.state.engine
    try:
        engine.ready()
    except NotReadyError as error:
        return JSONResponse({"status": engine.status, "error": Failure.of(error).model_dump()}, error.status)
    return JSONResponse({"status": engine.status, **engine.stats})


@router.get("/health/live")
async def live() -> dict[str, str]:
    """200 while the process answers, whatever the engine does: restart it if it does not."""
    return {"status": "alive"}


@router.get("/health/ready", responses={503: {"description": "loading, draining, or the engine has stopped"}})
async def ready(http: Request) -> JSONResponse:
    """200 when requests are taken, else 503 and why not."""
    response = await health(http)
    return response if response.status_code != 200 else JSONResponse({"status": http.app.state.engine.status})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(http: Request) -> Response:
    """All figures for Prometheus, in the text format that it asks for."""
    encode, media_type = choose_encoder(http.headers.get("accept", ""))
    return Response(encode(http.app.state.metrics.registry), media_type=media_type)


class EventStream(Stream):
    """An answer that has begun, as server-sent events."""

    def __init__(self, answer: Answer, sequence: "Sequence", connection: Connection) -> None:
        super().__init__(answer.news, connection)
        self._answer, self._sequence = answer, sequence

    def take(self) -> tuple[list[bytes], bool]:
        pieces, ended = self._answer.take()
        events = [event(_said(piece)) for piece in pieces]
        if ended:
            events.append(event(self._last()))
        return events, not ended

    def cancel(self) -> None:
        self._answer.cancel()

    def _last(self) -> dict[str, Any]:
        try:
            self._answer.check()
        except GorgonError as error:
            failure = {"error": Failure.of(error).model_dump()}
            return _dump("", "error", self._sequence) | failure
        return _dump("", self._sequence.finish_reason, self._sequence)


def _dump(
    text: str, finish_reason: str | None, sequence: "Sequence", logprobs: "tuple[Logprobs, ...]" = ()
) -> dict[str, Any]:
    """A GenerateResponse; without `logprobs` where there are none."""
    decoded = len(sequence.tokens) - 1  # tokens that decode steps emitted
    answer = {
        "text": text,
        "finish_reason": finish_reason,
        "usage": {"prompt_tokens": len(sequence.prompt), "completion_tokens": len(sequence.tokens)},
        "speculation": {
            "steps": sequence.steps,
            "drafted": sequence.drafted,
            "accepted": sequence.accepted,
            "tokens_per_step": decoded / sequence.steps if sequence.steps else None,
        },
    }
    return answer | _logprobs(logprobs)


def _said(piece: Piece) -> dict[str, Any]:
    return {"text": piece.text, **_logprobs(piece.logprobs)}


def _logprobs(entries: "tuple[Logprobs, ...]") -> dict[str, Any]:
    """As in a GenerateResponse, of tokens; nothing where there are none."""
    dumped = [
        {
            "token": entry.token,
            "logprob": entry.logprob,
            "top": [{"token": token, "logprob": logprob} for token, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"logprobs": dumped} if dumped else {}


async def _gorgon_error(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GorgonError)
    headers = None
    if error.status == 503:
        headers = {"Retry-After": RETRY_AFTER}
    elif isinstance(error, QueueFullError):
        engine: EngineThread = http.app.state.engine
        headers = {"Retry-After": str(engine.retry_after(max(error.ends, engine.waiting)))}
    if openai_routes.speaks_openai(http):
        return JSONResponse(error_of(error), error.status, headers)
    return JSONResponse({"error": Failure.of(error).model_dump()}, error.status, headers)


async def _invalid_body(http: Request, error: Exception) -> Response:
    """FastAPI's detail without the input, which may be long, private, or (NaN, half a surrogate pair) not be JSON."""
    assert isinstance(error, RequestValidationError)
    if openai_routes.speaks_openai(http):
        return JSONResponse(invalid_body(error), 400)
    detail = [{key: item[key] for key in ("type", "loc", "msg")} for item in error.errors()]
    if isinstance(error.body, bytes):  # not read as JSON, so nothing else has been looked at
        message = "the body is JSON and has to say so: content-type: application/json"
        detail = [{"type": "content_type", "loc": ("header", "content-type"), "msg": message}]
    return Response(json.dumps({"detail": detail}), 422, media_type="application/json")


async def _http_error(http: Request, error: Exception) -> Response:
    """What Starlette and FastAPI find wrong before a route is reached."""
    assert isinstance(error, HTTPException)
    if openai_routes.speaks_openai(http):
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, error.headers)
    if error.status_code in (400, 408, 413):  # a body that cannot even be decoded, is late, or too large
        failure = Failure(type="RequestError", message=str(error.detail))
        return JSONResponse({"error": failure.model_dump()}, error.status_code, error.headers)
    return await http_exception_handler(http, error)


async def _unexpected(http: Request, error: Exception) -> Response:
    """The server closes the connection after such an error, and the client has to know, or its next request is lost."""
    if openai_routes.speaks_openai(http):
        return JSONResponse(error_of(error), 500, {"Connection": "close"})
    failure = Failure(type=type(error).__name__, message="the server failed: its log has more")
    return JSONResponse({"error": failure.model_dump()}, 500, {"Connection": "close"})


async def _gone(http: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
