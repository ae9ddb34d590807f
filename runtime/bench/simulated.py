"""Simulated acceptance: real work, replayed luck, for artifacts whose weights are random.

Heads and decoder run as always, on trees of the asked size; only which drafts come true is drawn: the token of rank r
of head d follows its accepted parent with the probability published for vicuna-7b's heads (rank r's share of the
cumulative accuracies, FasterDecoding/Medusa, assets/medusa_acc.csv). Each depth is drawn on its own, as the usual
estimate of tokens per step does, and a rank past the published five never comes true. Real successes come together, so
real heads of these accuracies accept somewhat more.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import ConfigurationError
from runtime.manifest import Manifest
from runtime.sampling import Best
from runtime.session import Batch, Draft, Result, Session

PUBLISHED = Path(__file__).with_name("data") / "medusa_vicuna7b_head_accuracy.csv"
FIRST = 3  # the draft's token ids, after the special tokens that Llama's vocabularies begin with
NEVER = 1e-9  # a probability for the logarithm


def published_accuracy(path: Path = PUBLISHED) -> np.ndarray:
    """[heads, ranks]: cumulative accuracy of each head's first, first two, ... tokens."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return np.array([[float(value) for value in row[1:]] for row in rows])


@dataclass(frozen=True, slots=True)
class _Replayed:
    """A result whose argmax is another."""

    argmax: np.ndarray
    inner: Result

    @property
    def logits(self) -> np.ndarray:
        return self.inner.logits

    def row(self, node: int) -> np.ndarray:
        return self.inner.row(node)

    def peak(self, node: int) -> float:
        return self.inner.peak(node)

    def best(self, node: int) -> Best | None:
        return self.inner.best(node)


class SimulatedSession:
    """A session whose drafts come true by chance; wraps the real one, which does all of its work.

    Token ids of the draft are made up: head d's rank r is FIRST + d * top_k + r, and the id after all of these is what
    the model says where no draft comes true.
    """

    def __init__(self, inner: Session, seed: int) -> None:
        self.manifest: Manifest = inner.manifest
        self.provider, self.ordered = inner.provider, inner.ordered
        self._inner = inner
        self._rng = np.random.default_rng(seed)
        shape = (inner.manifest.medusa_heads, inner.manifest.draft_top_k)
        known = published_accuracy()[: shape[0], : shape[1]]
        # [heads, top_k]: ranks and heads that nobody published add nothing
        self._cumulative = np.zeros(shape)
        self._cumulative[: len(known)] = known[:, -1:]
        self._cumulative[: len(known), : known.shape[1]] = known
        chance = np.diff(self._cumulative, axis=1, prepend=0.0)
        self._logprobs = np.log(np.maximum(chance, NEVER)).astype(np.float32)
        self._tokens = FIRST + np.arange(shape[0] * shape[1]).reshape(shape)
        self._miss = FIRST + shape[0] * shape[1]
        if self._miss >= self.manifest.vocab:
            raise ConfigurationError(
                f"simulated acceptance needs {self._miss + 1} tokens, {self.manifest.name} has {self.manifest.vocab}"
            )

    def run(self, batch: Batch) -> Result:
        result = self._inner.run(batch)
        heads, top_k = self._cumulative.shape
        depth = batch.depth[batch.wanted]  # [wanted]; the heads speak for the first few depths
        head = np.minimum(depth, heads - 1)
        rank = (self._rng.random(len(depth))[:, None] >= self._cumulative[head]).sum(axis=1)
        true = (rank < top_k) & (depth < heads)
        argmax = np.where(true, self._tokens[head, np.minimum(rank, top_k - 1)], self._miss)
        return _Replayed(argmax, result)

    def heads(self, rows: list[int], depth: int) -> Draft:
        self._inner.heads(rows, depth)
        tokens, logprobs = self._tokens[:depth], self._logprobs[:depth]
        shape = (len(rows), *tokens.shape)
        return Draft(np.broadcast_to(tokens, shape), np.broadcast_to(logprobs, shape))

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        self._inner.commit(row, length, path, last)

    def copy(self, source: int, target: int, length: int) -> None:
        self._inner.copy(source, target, length)

    def release(self, row: int) -> None:
        self._inner.release(row)
