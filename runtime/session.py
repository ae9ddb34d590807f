"""What the engine needs of a model: the interface, and the arrays that cross it.

Nothing outside a session knows which graph form runs. The engine keeps the rows in use at 0 .. n-1 and knows how many
tokens each has committed; a session keeps keys and values, and each row's hidden state after its last commit.

Dimension words: [tokens] all nodes of a step packed row after row, [rows] rows in use, [nodes] the widest row's nodes,
[wanted] the nodes whose logits are wanted, [heads] Medusa heads, [top_k] their best tokens.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input. A row brings at least one node, ancestors before those that see them; a row with nothing
    committed brings a chain.

    With stock operators, where `ancestors` has place for two nodes, a row of one attends with a stand-in beside it,
    which nobody sees.
    """

    tokens: np.ndarray  # int64 [tokens]
    depth: np.ndarray  # int64 [tokens], below the row's committed tokens
    length: np.ndarray  # int64 [rows], committed tokens
    count: np.ndarray  # int64 [rows], nodes
    ancestors: np.ndarray  # bool [rows, nodes, nodes]
    wanted: np.ndarray  # int64 [wanted], indices into tokens


@dataclass(frozen=True, slots=True)
class Result:
    """One step's output; the arrays are the session's own and valid until its next run."""

    argmax: np.ndarray  # int64 [wanted]
    logits: np.ndarray  # float32 [wanted, vocab]


@dataclass(frozen=True, slots=True)
class Draft:
    """What the heads propose for each row asked for, best first: its own arrays, valid until they run again."""

    tokens: np.ndarray  # int64 [rows, heads, top_k]
    logprobs: np.ndarray  # float32 [rows, heads, top_k]


class Session(Protocol):
    manifest: Manifest
    provider: str
    ordered: bool  # attention adds keys in logical order: a path with gaps leaves what the path in place would

    def run(self, batch: Batch) -> Result:
        """Runs the decoder; the nodes' keys and values land after each row's committed tokens, in slot order."""

    def heads(self, rows: list[int]) -> Draft:
        """Runs the Medusa heads on the hidden states of these rows' last commits."""

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        """Keeps a row's nodes `path` (slots, ascending) after its `length` committed tokens, in that order.

        `last` is the index into the run's `wanted` of the node whose hidden state the row's next draft starts from;
        None while a prompt is not complete.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies a row's first `length` tokens and its hidden state to another row: moves it, or forks a prefix."""

    def release(self, row: int) -> None:
        """Gives a row's memory back."""
