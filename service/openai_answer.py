"""Answers in OpenAI's shapes: whole ones, the chunks of streams, log-probabilities, usage and errors."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json

from runtime.errors import ContextError, GorgonError, UnknownModelError
from runtime.params import SamplingParams
from runtime.prompts import Prompts
from service.answer import Answer, Piece
from service.ids import new_id

if TYPE_CHECKING:
    from runtime.sampling import Logprobs

TYPES = {429: "rate_limit_error", **dict.fromkeys((400, 401, 404, 405, 408, 413, 422), "invalid_request_error")}
KNOWN: dict[type[Exception], str] = {ContextError: "context_length_exceeded", UnknownModelError: "model_not_found"}
PARAMS: dict[type[Exception], str] = {UnknownModelError: "model"}
CODES = {408: "body_too_late", 413: "body_too_large", 429: "queue_full", 503: "not_ready", 504: "timeout"}


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or CODES.get(status)}}


def error_of(error: Exception) -> dict[str, Any]:
    """Of an error of ours; the parameter is the name its message begins with."""
    if not isinstance(error, GorgonError):
        return error_body("the server failed: its log has more", 500)
    name = str(error).partition(" ")[0].partition(".")[0]
    param = name if name in SamplingParams.__dataclass_fields__ else PARAMS.get(type(error))
    return error_body(str(error), error.status, param, KNOWN.get(type(error)))


def invalid_body(error: RequestValidationError) -> dict[str, Any]:
    """The first of what is wrong with a body; none of the body itself, which may be long or private."""
    if isinstance(error.body, bytes):  # not read as JSON, so nothing else has been looked at
        return error_body("the body is JSON and has to say so: content-type: application/json", 400)
    item = error.errors()[0]
    place = [str(part) for part in item["loc"][1:]]
    if item["type"] == "json_invalid":
        return error_body(f"the body is no JSON: {item['ctx']['error']} at character {place[0]}", 400)
    inner = [i for i, part in enumerate(place) if i and not re.fullmatch(r"[0-9]+|[a-z_]{4,}", part)]
    param = ".".join(place[: min(inner, default=len(place))]) or None
    if item["type"] == "extra_forbidden":
        return error_body(f"{param} is not supported: what would not be honoured is refused", 400, param)
    return error_body(f"{param}: {item['msg']}" if param else item["msg"], 400, param)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a response's answers: its place, what it says first, and the engine's side of it."""

    index: int
    first: str  # the echo of its prompt
    answer: Answer

    @property
    def finish_reason(self) -> str | None:
        assert self.answer.sequence is not None
        return self.answer.sequence.finish_reason


class Shape(Protocol):
    """What differs between chat and text completions."""

    object: str
    chunk: str

    def whole(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """A choice of a whole answer."""

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        """The first chunks of a choice in a stream."""

    def piece(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """A choice in a chunk."""

    def end(self, choice: Choice) -> dict[str, Any]:
        """A choice in its last chunk."""


class Envelope:
    """What surrounds the choices of one response; says everything about it but the choices themselves."""

    def __init__(self, shape: Shape, prefix: str, model: str, choices: Sequence[Choice], per_prompt: int) -> None:
        self.shape = shape
        self._head = {"id": f"{prefix}-{new_id()}", "created": int(time.time()), "model": model}
        self._choices = choices
        self._per_prompt = per_prompt  # choices: a prompt counts once

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        choices = [self.shape.whole(choice, piece) for choice, piece in zip(self._choices, pieces, strict=True)]
        return {**self._head, "object": self.shape.object, "choices": choices, "usage": self.usage()}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None, with_usage: bool) -> bytes:
        """One event of a stream; `with_usage` says that the last chunk has the usage, and the others null."""
        body = {**self._head, "object": self.shape.chunk, "choices": choices}
        return event(body | {"usage": usage} if with_usage else body)

    def usage(self, only: Choice | None = None) -> dict[str, Any]:
        """Of all choices, or of one, as of now: of a choice that still runs, with tokens that are not text as yet."""
        sequences = [choice.answer.sequence for choice in (self._choices if only is None else (only,))]
        prompt = sum(len(s.prompt) for s in sequences[:: self._per_prompt] if s is not None)
        completion = sum(len(s.tokens) for s in sequences if s is not None)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(s.cached for s in sequences[:: self._per_prompt] if s is not None)
            },
        }


class ChatShape:
    object, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, prompts: Prompts, logprobs: bool) -> None:
        self._prompts = prompts
        self._wanted = logprobs

    def whole(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(choice, "message", message, piece.logprobs, choice.finish_reason)

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._choice(choice, "delta", {"role": "assistant", "content": ""}, None, None)]

    def piece(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        part = self._choice(choice, "delta", {"content": piece.text}, piece.logprobs, None)
        return part if piece.trace is None else part | {"trace": piece.trace.dump(self._prompts)}

    def end(self, choice: Choice) -> dict[str, Any]:
        return self._choice(choice, "delta", {}, None, choice.finish_reason)

    def _choice(
        self, choice: Choice, name: str, said: dict[str, Any], entries: "tuple[Logprobs, ...] | None", end: str | None
    ) -> dict[str, Any]:
        logprobs = {"content": [self._entry(e) for e in entries], "refusal": None} if self._wanted and entries else None
        return {"index": choice.index, name: said, "logprobs": logprobs, "finish_reason": end}

    def _entry(self, entry: "Logprobs") -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return self._token(entry.token, entry.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self._prompts.token(token)
        return {"token": text, "logprob": logprob, "bytes": None if data is None else list(data)}


class TextShape:
    object = chunk = "text_completion"

    def __init__(self, prompts: Prompts, logprobs: bool) -> None:
        self._prompts = prompts
        self._wanted = logprobs
        self._offset: dict[int, int] = {}  # of the next token, in characters of all tokens before it, by choice

    def whole(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        return self._choice(choice, choice.first + piece.text, piece.logprobs, choice.finish_reason)

    def begin(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._choice(choice, choice.first, (), None)] if choice.first else []

    def piece(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        return self._choice(choice, piece.text, piece.logprobs, None)

    def end(self, choice: Choice) -> dict[str, Any]:
        return self._choice(choice, "", (), choice.finish_reason)

    def _choice(self, choice: Choice, text: str, entries: "tuple[Logprobs, ...]", end: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(choice, entries) if self._wanted and entries else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": end}

    def _logprobs(self, choice: Choice, entries: "tuple[Logprobs, ...]") -> dict[str, Any]:
        tokens = [self._prompts.token(entry.token)[0] for entry in entries]
        offsets = [self._offset.get(choice.index, len(choice.first))]
        for token in tokens:
            offsets.append(offsets[-1] + len(token))
        self._offset[choice.index] = offsets[-1]
        # the emitted token is always there, also when it is none of the most probable
        tops = [(*entry.top, (entry.token, entry.logprob)) for entry in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{self._prompts.token(i)[0]: logprob for i, logprob in top} for top in tops],
            "text_offset": offsets[:-1],
        }


def event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % to_json(data)  # a third of the time that json.dumps takes
