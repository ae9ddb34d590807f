"""A session that replays traces of drafts on a clock that a cost model drives: decisions without a machine's noise.

A sequence's text is fixed, and so is what its heads propose at each place, how sure they say they are, and where the
right token stands among their ranks. Its prompt is one token, which names the trace.
"""

from dataclasses import dataclass

import numpy as np

from runtime.cost import CostModel
from runtime.load import Load
from runtime.session import Batch, Draft, HostResult, Result
from tests.fake import fake_manifest

VOCAB, HEADS, TOP_K, LONG = 6000, 5, 10, 400
TEXT = 3000  # tokens of the texts are from here on, wrong drafts below


@dataclass(frozen=True, slots=True)
class Trace:
    """One text [LONG], and for each place the heads' log-probabilities [LONG, heads, top_k] and the right token's rank
    [LONG, heads], top_k where it is none of them."""

    text: np.ndarray
    logprobs: np.ndarray
    rank: np.ndarray


def trace(seed: int, sure: float, honest: bool = True, period: int = LONG) -> Trace:
    """Heads that are about as `sure` of their first rank, further ones less; what they say is true, or else never.

    The text repeats itself after `period` tokens.
    """
    rng = np.random.default_rng(seed)
    text = TEXT + rng.integers(0, VOCAB - TEXT, LONG)
    text = text[np.arange(LONG) % period]
    mean = sure ** (1 + 0.6 * np.arange(HEADS))  # [heads]
    first = rng.beta(2 * mean / (1 - mean), 2, (LONG, HEADS)).clip(0.01, 0.995)
    share = np.concatenate([first[..., None], (1 - first[..., None]) * 0.5 ** np.arange(1, TOP_K)], axis=-1)
    share = -np.sort(-share, axis=-1)
    rank = (rng.random((LONG, HEADS, 1)) >= share.cumsum(axis=-1)).sum(axis=-1)
    if not honest:
        rank[:] = TOP_K
    return Trace(text, np.log(share).astype(np.float32), rank)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ReplaySession:
    provider = "replay"
    ordered = False

    def __init__(self, traces: list[Trace], cost: CostModel, clock: Clock, rows: int, host: float = 0.0) -> None:
        """`host` seconds pass outside the session for each row of a step."""
        self.manifest = fake_manifest(vocab=VOCAB, medusa_heads=HEADS, draft_top_k=TOP_K, context=LONG)
        self._traces, self._cost, self._clock, self._host = traces, cost, clock, host
        self._trace = np.zeros(rows, np.int64)
        self._committed = np.zeros(rows, np.int64)
        self._texts = np.stack([t.text for t in traces])
        self._blank = np.zeros((1, VOCAB), np.float32)

    def run(self, batch: Batch) -> Result:
        load = Load.of(batch, 0)
        what = load.rows, load.tokens, load.widest, load.attended, load.silent, load.keys
        self._clock.now += self._cost.decoder(*what)
        row = np.repeat(np.arange(len(batch.count)), batch.count)
        start = np.cumsum(batch.count) - batch.count
        fresh = batch.length == 0
        self._trace[: len(fresh)][fresh] = batch.tokens[start[fresh]]
        place = batch.length[row] + batch.depth  # of the next token in the text, which begins after the prompt
        said = self._texts[self._trace[row], np.minimum(place, LONG - 1)]
        return HostResult(said[batch.wanted], np.broadcast_to(self._blank, (len(batch.wanted), VOCAB)))

    def heads(self, rows: list[int], depth: int) -> Draft:
        self._clock.now += self._cost.heads(len(rows), depth / HEADS)
        tokens = np.empty((len(rows), HEADS, TOP_K), np.int64)
        tokens[:] = 3 + np.arange(HEADS * TOP_K).reshape(HEADS, TOP_K)
        logprobs = np.empty(tokens.shape, np.float32)
        for i, row in enumerate(rows):
            t, place = self._traces[self._trace[row]], self._committed[row]
            logprobs[i] = t.logprobs[place]
            for head in range(HEADS):
                if place + head < LONG and t.rank[place, head] < TOP_K:
                    tokens[i, head, t.rank[place, head]] = t.text[place + head]
        return Draft(tokens[:, :depth], logprobs[:, :depth])

    def commit(self, row: int, length: int, path: list[int], last: int | None) -> None:
        self._committed[row] = length + len(path)
        self._clock.now += self._host

    def copy(self, source: int, target: int, length: int) -> None:
        self._trace[target], self._committed[target] = self._trace[source], self._committed[source]

    def release(self, row: int) -> None:
        self._committed[row] = 0
