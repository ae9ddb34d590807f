"""The bodies of HTTP: what is taken, strictly and with nothing unknown, and what is answered."""

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from runtime.errors import ParameterError
from runtime.params import SamplingParams

if TYPE_CHECKING:
    from runtime.sequence import Sequence

_DEFAULTS: Any = SamplingParams()
_SAMPLING = tuple(field.name for field in fields(SamplingParams))


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = "half of a surrogate pair at character {at}: not valid Unicode"
        raise PydanticCustomError("unicode", message, {"at": error.start}) from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
# JSON has arrays, not tuples; what is in them stays strict.
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
TokenIds = Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(strict=False)]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Text


class GenerateRequest(BaseModel):
    """A prompt or messages, and how to sample. Ranges and defaults are those of `SamplingParams`."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": "What does os.path.join do?"}]}
    )

    prompt: Text | None = Field(None, description="One user message, or with raw the text to go on from.")
    messages: list[Message] | None = Field(None, min_length=1, validate_default=True, description="Instead of prompt.")
    raw: bool = Field(False, description="Take the prompt as it is, without the chat template.")
    stream: bool = Field(False, description="Answer with server-sent events, new text at each step.")
    max_tokens: int = _DEFAULTS.max_tokens
    temperature: float = Field(_DEFAULTS.temperature, description="0: always the most probable token.")
    top_k: int = Field(_DEFAULTS.top_k, description="0: no limit.")
    top_p: float = _DEFAULTS.top_p
    min_p: float = _DEFAULTS.min_p
    seed: int | None = Field(_DEFAULTS.seed, description="Makes a sampled answer repeatable.")
    stop: Texts = Field(_DEFAULTS.stop, description="The answer ends before any of these.")
    stop_token_ids: TokenIds = _DEFAULTS.stop_token_ids
    ignore_eos: bool = _DEFAULTS.ignore_eos
    speculation: Literal["off", "auto"] | int = Field(
        _DEFAULTS.speculation, description='"off", "auto" or the number of nodes in the draft tree.'
    )

    @field_validator("messages")
    @classmethod
    def _one_of_two(cls, messages: list[Message] | None, info: ValidationInfo) -> list[Message] | None:
        if "prompt" in info.data and (messages is None) == (info.data["prompt"] is None):
            raise PydanticCustomError("prompt_or_messages", "give either prompt or messages")
        return messages

    @field_validator("raw")
    @classmethod
    def _raw_prompt(cls, raw: bool, info: ValidationInfo) -> bool:
        if raw and info.data.get("messages") is not None:
            raise PydanticCustomError("raw_messages", "raw goes with prompt: messages need the chat template")
        return raw

    @field_validator(*_SAMPLING)
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            SamplingParams(**{str(info.field_name): value})
        except ParameterError as error:
            raise PydanticCustomError("parameter", "{message}", {"message": str(error)}) from None
        return value

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(**{name: getattr(self, name) for name in _SAMPLING})


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Speculation(BaseModel):
    """What drafting did. `tokens_per_step` counts decode steps: the first token is the prompt's; null if it was all."""

    steps: int
    drafted: int
    accepted: int
    tokens_per_step: float | None


class Failure(BaseModel):
    """An error: the class of runtime/errors.py, and what was wrong, where, and what would be right."""

    type: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        return cls(type=type(error).__name__, message=str(error))


class ErrorResponse(BaseModel):
    error: Failure


class GenerateResponse(BaseModel):
    """A whole answer; the last event of a stream has the same fields, its text empty."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    usage: Usage
    speculation: Speculation

    @classmethod
    def of(cls, text: str, finish_reason: str | None, sequence: "Sequence") -> Self:
        decoded = len(sequence.tokens) - 1  # tokens that decode steps emitted
        values = {
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
        return cls.model_validate(values)
