"""The bodies of OpenAI's interface: what is taken, with nothing unknown, and what becomes of it.

Names and defaults are OpenAI's, and vLLM's for what OpenAI does not have. `null` stands for the default everywhere.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from runtime.params import MAX_LOGPROBS, SamplingParams, StructuredOutputs
from service.schema import Bias, Structured, Text, Texts, TokenIds

MAX_CHOICES = 128
COMPLETION_TOKENS = 16  # OpenAI's default for max_tokens of completions


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool | None = Field(None, description="A last chunk with the usage of all choices.")
    continuous_usage_stats: bool | None = Field(
        None, description="As vLLM's: in every other chunk the usage of its choice so far. Goes with include_usage."
    )

    @model_validator(mode="after")
    def _with_the_last(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise PydanticCustomError("stream_options", "continuous_usage_stats goes with include_usage: true")
        return self


class Request(Body):
    """What chat and text completions have in common."""

    model: str = Field(description="A name of /v1/models.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Choice i has the seed seed + i.")
    stop: Text | Texts | None = Field(
        None, description="A text or a list of texts, before any of which the answer ends."
    )
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Bias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Whoever asks; taken for compatibility.")
    top_k: int | None = Field(None, ge=-1, description="0 or -1: no limit.")
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    structured_outputs: Structured | None = Field(None, description="As vLLM's: json, regex, choice or grammar.")
    speculation: Literal["off", "auto"] | int | None = Field(
        None, description='"off", "auto" or the number of nodes in the draft tree.'
    )
    typical_acceptance: bool | None = None
    priority: int | None = Field(None, description="Of those that wait, the lowest number goes first; 0 if not given.")

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise PydanticCustomError("stream_options", "only where stream is true")
        return options

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def traced(self) -> bool:
        """Whether each step's draft tree is wanted beside its text."""
        return False

    @property
    def usage_at_the_end(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_all_along(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    def sampling(self, max_tokens: int, choice: int) -> SamplingParams:
        """How choice number `choice` is sampled. Raises ParameterError."""
        same = ("top_p", "min_p", "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop",
                "stop_token_ids", "logit_bias", "include_stop_str_in_output", "ignore_eos", "speculation",
                "typical_acceptance", "priority")  # fmt: skip
        given: dict[str, Any] = {name: value for name in same if (value := getattr(self, name)) is not None}
        if isinstance(self.stop, str):
            given["stop"] = (self.stop,)
        if self.seed is not None:
            given["seed"] = (self.seed + choice) % 2**64  # OpenAI's seeds may be negative
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(0, self.top_k or 0),
            logprobs=self.top,
            structured_outputs=self.outputs,
            **given,
        )

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are wanted beside each token; None: no log-probabilities at all."""
        raise NotImplementedError

    @property
    def outputs(self) -> StructuredOutputs | None:
        return None if self.structured_outputs is None else self.structured_outputs.outputs


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One turn; an answer's message may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer is taken as system.")
    content: Text | list[TextPart]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def turn(self) -> dict[str, str]:
        """For the chat template."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class JsonSchema(Body):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="The schema is kept to in any case.")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise PydanticCustomError("json_schema", "json_schema goes with type json_schema, and with no other")
        return self


class ChatRequest(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "demo-int8", "messages": [{"role": "user", "content": "What does os.path.join do?"}]}
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    trace: bool | None = Field(
        None, description="With stream: what each step drafted and accepted, beside its text. Gorgon's own."
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs goes with logprobs: true")
        if self.max_tokens != self.max_completion_tokens and None not in (self.max_tokens, self.max_completion_tokens):
            raise PydanticCustomError("max_tokens", "max_tokens and max_completion_tokens differ: give one")
        if self.structured_outputs is not None and self.response_format is not None:
            raise PydanticCustomError("response_format", "give response_format or structured_outputs, not both")
        if self.trace and not self.stream:
            raise PydanticCustomError("trace", "trace goes with stream: true: it tells of each step as it comes")
        return self

    @property
    def traced(self) -> bool:
        return bool(self.trace)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def outputs(self) -> StructuredOutputs | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return super().outputs
        if wanted.json_schema is None:
            return StructuredOutputs(json_object=True)
        schema = wanted.json_schema.schema_
        return StructuredOutputs(json=json.dumps({} if schema is None else schema))


class CompletionRequest(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "demo-int8", "prompt": "What does"}]})

    prompt: Text | TokenIds | Annotated[list[Text | TokenIds], Field(min_length=1)] = Field(
        description="A text, a list of texts, token ids, or a list of lists of token ids."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = Field(None, description="The prompt before the answer.")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError("echo", "echo goes without logprobs: those of a prompt are not computed")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(token, int) for token in self.prompt):
            return [tuple(token for token in self.prompt if isinstance(token, int))]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @property
    def limit(self) -> int:
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def top(self) -> int | None:
        return self.logprobs


class TokenizeRequest(Body):
    model: str | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, description="Instead of prompt.")
    add_special_tokens: bool = Field(True, description="Those that the tokenizer itself puts around a prompt.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt_or_messages", "give either prompt or messages")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: TokenIds
