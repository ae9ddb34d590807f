"""One request's tokens and where it stands."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Literal

from runtime.choice import Choice
from runtime.errors import GorgonError
from runtime.grammar import Matcher
from runtime.habit import Habit
from runtime.params import SamplingParams
from runtime.sampling import Logprobs
from runtime.text import TextStream
from runtime.tree import Tree

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True, eq=False)
class Sequence:
    """Waiting (no row), then running in a row, then finished (a reason, no row).

    `length` tokens of prompt and answer are committed to the cache. While it decodes that is all but the newest one,
    the root of the next tree.
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    seed: int
    habit: Habit
    limit: int  # tokens it may emit: max_tokens or what the context leaves
    reserved: int  # bytes of keys and values set aside for it
    stream: TextStream
    choice: Choice | None = None  # None: the argmax, or a plain draw
    tokens: list[int] = field(default_factory=list)  # emitted
    text: str = ""
    finish_reason: FinishReason | None = None
    error: GorgonError | None = None  # why, if the reason is "error"
    row: int | None = None
    length: int = 0
    cached: int = 0  # tokens of the prompt whose keys and values another sequence had computed
    gap: int | None = None  # committed tokens before the first path that did not lie in its tree's first slots
    steps: int = 0  # decode steps
    drafted: int = 0  # nodes below the root, over those steps
    accepted: int = 0
    arrived: float = 0.0  # seconds by the engine's clock: when it was queued,
    started: float | None = None  # the step began that let it in,
    first: float | None = None  # its first token came,
    ended: float | None = None  # and it finished

    @property
    def prefilling(self) -> bool:
        return self.length < len(self.prompt)

    @property
    def exact(self) -> list[int]:
        """The first committed tokens, as far as their keys and values are bit-equal to a prefill's."""
        return (self.prompt + self.tokens)[: self.length if self.gap is None else self.gap]

    @property
    def root(self) -> int:
        return self.tokens[-1]

    @property
    def useful(self) -> int:
        """How deep a tree gains anything: what it may still emit, but for the token that the model adds itself."""
        return self.limit - len(self.tokens) - 1

    @property
    def matcher(self) -> Matcher | None:
        return None if self.choice is None else self.choice.matcher


@dataclass(frozen=True, slots=True)
class Output:
    """What one step gave a sequence; the last one has a `finish_reason`."""

    sequence: Sequence
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    logprobs: tuple[Logprobs, ...] = ()  # of `tokens`, if the request asks for them
    pieces: Items[str] = ()  # [tokens] what each added to the text
    tree: Tree | None = None  # that was verified; None: the tokens are a prompt's first, or there are none
    path: Items[int] = ()  # nodes of the tree that the model agreed with, the root first
