"""The bodies of HTTP: what is taken, strictly and with nothing unknown, and what is answered."""

import json
import re
from dataclasses import fields
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from runtime.errors import ParameterError
from runtime.params import SamplingParams, StructuredOutputs

_DEFAULTS: Any = SamplingParams()
_SAMPLING = tuple(field.name for field in fields(SamplingParams))


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = "half of a surrogate pair at character {at}: not valid Unicode"
        raise PydanticCustomError("unicode", message, {"at": error.start}) from None
    return text


def _token_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    number = re.compile(r"[0-9]{1,9}", re.ASCII)
    return {int(key) if isinstance(key, str) and number.fullmatch(key) else key: item for key, item in value.items()}


Text = Annotated[str, AfterValidator(_unicode)]
# JSON has arrays, not tuples; what is in them stays strict.
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Bias = Annotated[dict[int, float], BeforeValidator(lambda value: _token_keys(value))]  # the keys of JSON are strings
TokenIds = Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(strict=False)]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Text


class Structured(BaseModel):
    """What the answer's text has to be: exactly one of these. See runtime/params.py, StructuredOutputs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_: dict[str, Any] | bool | Text | None = Field(None, alias="json", description="A JSON schema.")
    json_object: bool = Field(False, description="Any JSON object.")
    regex: Text | None = Field(None, description="A regular expression (Rust's syntax) of the whole text.")
    choice: Texts | None = Field(None, description="One of these texts.")
    grammar: Text | None = Field(None, description="A context-free grammar in llguidance's Lark syntax.")

    @property
    def outputs(self) -> StructuredOutputs:
        """Raises ParameterError."""
        schema = self.schema_ if self.schema_ is None or isinstance(self.schema_, str) else json.dumps(self.schema_)
        return StructuredOutputs(schema, self.json_object, self.regex, self.choice, self.grammar)


class GenerateRequest(BaseModel):
    """A prompt or messages, and how to sample. Ranges and defaults are those of `SamplingParams`."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": "What does os.path.join do?"}]}
    )

    prompt: Text | None = Field(None, description="One user message, or with raw the text to go on from.")
    messages: list[Message] | None = Field(None, min_length=1, validate_default=True, description="Instead of prompt.")
    raw: bool = Field(False, description="Take the prompt as it is, without the chat template.")
    stream: bool = Field(False, description="Answer with server-sent events, new text as it comes.")
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
    include_stop_str_in_output: bool = _DEFAULTS.include_stop_str_in_output
    min_tokens: int = Field(_DEFAULTS.min_tokens, description="No end, stop token or stop string before so many.")
    presence_penalty: float = _DEFAULTS.presence_penalty
    frequency_penalty: float = _DEFAULTS.frequency_penalty
    repetition_penalty: float = Field(_DEFAULTS.repetition_penalty, description="1: none.")
    logit_bias: Bias = Field(_DEFAULTS.logit_bias, description="Token ids to what is added to their logits.")
    logprobs: int | None = Field(
        _DEFAULTS.logprobs, description="Log-probabilities of each token and of so many most probable ones."
    )
    structured_outputs: Structured | None = Field(_DEFAULTS.structured_outputs, description="A grammar for the text.")
    typical_acceptance: bool = Field(
        _DEFAULTS.typical_acceptance,
        description="Take drafted tokens that are probable enough: changes the distribution.",
    )
    priority: int = Field(_DEFAULTS.priority, description="Of those that wait, the lowest number goes first.")

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

    @model_validator(mode="wrap")
    @classmethod
    def _in_range(cls, data: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Checks all ranges at once; each by itself only where one is wrong, to say which."""
        request = read(data)
        try:
            request.params  # noqa: B018  # is kept
        except ParameterError:
            raise ValidationError.from_exception_data(cls.__name__, request._wrong()) from None
        return request

    @cached_property
    def params(self) -> SamplingParams:
        return SamplingParams(**{name: self._sampling(name) for name in self.model_fields_set.intersection(_SAMPLING)})

    def _sampling(self, name: str) -> Any:
        """Raises ParameterError."""
        value = getattr(self, name)
        return value.outputs if isinstance(value, Structured) else value

    def _wrong(self) -> list[InitErrorDetails]:
        wrong = []
        for name in _SAMPLING:
            try:
                SamplingParams(**{name: self._sampling(name)})
            except ParameterError as error:
                kind = PydanticCustomError("parameter", "{message}", {"message": str(error)})
                wrong.append(InitErrorDetails(type=kind, loc=(name,), input=getattr(self, name)))
        return wrong


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


class TokenLogprob(BaseModel):
    token: int
    logprob: float


class Logprob(TokenLogprob):
    """An emitted token under the model's own distribution, and the most probable ones."""

    top: list[TokenLogprob]


class GenerateResponse(BaseModel):
    """A whole answer; the last event of a stream has the same fields, its text empty."""

    text: str
    finish_reason: Literal["stop", "length", "error"]
    usage: Usage
    speculation: Speculation
    logprobs: list[Logprob] | None = Field(
        None, description="Of each token, if asked for; in a stream they come with the texts."
    )
