"""What the engine needs of a model: the interface, and the arrays that cross it.

Nothing outside a session knows which graph form runs. The engine keeps the rows in use at 0 .. n-1 and knows how many
tokens each has committed; a session keeps keys and values, and each row's hidden state after its last commit.

Dimension words: [tokens] all nodes of a step packed row after row, [rows] rows in use, [nodes] the widest row's nodes,
[wanted] the nodes whose logits are wanted, [depth] the Medusa heads that run, [top_k] their best tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.manifest import Manifest
from runtime.sampling import Best


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
    # float64 [wanted]: what a token that is drawn there divides its logits by, 0 where none is; None: nowhere is one
    temperature: np.ndarray | None = None


class Result(Protocol):
    """One step's output, valid until the session's next run. It may lie on a device: what is asked for crosses over."""

    @property
    def argmax(self) -> np.ndarray:
        """int64 [wanted]"""

    @property
    def logits(self) -> np.ndarray:
        """float32 [wanted, vocab], all of them"""

    def row(self, node: int) -> np.ndarray:
        """float32 [vocab]: the logits of one of the wanted nodes."""

    def peak(self, node: int) -> float:
        """The logit of a wanted node's argmax."""

    def best(self, node: int) -> Best | None:
        """The largest logits of a wanted node, where that is all that crossed over; else None: take its row."""


@dataclass(frozen=True, slots=True)
class HostResult:
    """A result in this process's memory."""

    argmax: np.ndarray
    logits: np.ndarray

    def row(self, node: int) -> np.ndarray:
        row: np.ndarray = self.logits[node]
        return row

    def peak(self, node: int) -> float:
        return float(self.logits[node, self.argmax[node]])

    def best(self, node: int) -> Best | None:
        return None


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """A result whose logits are where the session computes, and are fetched from there."""

    argmax: np.ndarray
    peaks: np.ndarray  # float32 [wanted]
    bests: dict[int, Best]  # by node
    fetch: Callable[[list[int]], np.ndarray]  # slots to rows of logits
    slots: list[int]  # [wanted]: where each node's logits are

    @property
    def logits(self) -> np.ndarray:
        return self.fetch(self.slots)

    def row(self, node: int) -> np.ndarray:
        row: np.ndarray = self.fetch([self.slots[node]])[0]
        return row

    def peak(self, node: int) -> float:
        return float(self.peaks[node])

    def best(self, node: int) -> Best | None:
        return self.bests.get(node)


@dataclass(frozen=True, slots=True)
class Draft:
    """What the heads propose for each row asked for, best first: its own arrays, valid until they run again."""

    tokens: np.ndarray  # int64 [rows, depth, top_k]
    logprobs: np.ndarray  # float32 [rows, depth, top_k]


class Session(Protocol):
    manifest: Manifest
    provider: str
    ordered: bool  # attention adds keys in logical order: a path with gaps leaves what the path in place would

    def run(self, batch: Batch) -> Result:
        """Runs the decoder; the nodes' keys and values land after each row's committed tokens, in slot order."""

    def heads(self, rows: list[int], depth: int) -> Draft:
        """Runs the first `depth` Medusa heads, at least one, on the hidden states of these rows' last commits."""

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        """Keeps a row's nodes `path` (slots, ascending) after its `length` committed tokens, in that order.

        `last` is the index into the run's `wanted` of the node whose hidden state the row's next draft starts from;
        None while a prompt is not complete.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies a row's first `length` tokens and its hidden state to another row: moves it, or forks a prefix."""

    def release(self, row: int) -> None:
        """Nobody uses the row any more: its memory may go back to the system."""
