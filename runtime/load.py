"""What a step brings, as the cost model counts it."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.session import Batch


@dataclass(frozen=True, slots=True)
class Load:
    rows: int
    decoding: int  # rows of these that decode
    tokens: int  # packed
    widest: int  # nodes of the largest row
    attended: int  # sum over the rows of nodes * (committed length + nodes)
    silent: int  # tokens whose logits are not wanted
    keys: int  # sum of the rows' committed lengths
    alone: tuple[int, int]  # attended and keys without the rows that prefill

    @classmethod
    def of(cls, batch: Batch, decoding: int) -> "Load":
        """A packed step in which so many rows decode."""
        tokens = len(batch.tokens)
        lengths = batch.length.tolist()
        attended, keys = (
            sum(n * (length + n) for n, length in zip(batch.count.tolist(), lengths, strict=True)),
            sum(lengths),
        )
        silent = max(0, tokens - len(batch.wanted))
        return cls(len(lengths), decoding, tokens, batch.ancestors.shape[1], attended, silent, keys, (attended, keys))

    @classmethod
    def planned(cls, lengths: Sequence[int], prefill: Sequence[int]) -> "Load":
        """A step before its trees: each row's committed length and prompt tokens, 0 where it decodes its root alone."""
        counts = [max(1, tokens) for tokens in prefill]
        attended = [n * (length + n) for n, length in zip(counts, lengths, strict=True)]
        alone = (
            sum(a for a, tokens in zip(attended, prefill, strict=True) if not tokens),
            sum(length for length, tokens in zip(lengths, prefill, strict=True) if not tokens),
        )
        silent = sum(max(0, tokens - 1) for tokens in prefill)
        return cls(len(counts), prefill.count(0), sum(counts), max(counts), sum(attended), silent, sum(lengths), alone)

    def without_prompts(self) -> "Load":
        """Of a planned step: the rows that decode."""
        n = self.decoding
        attended, keys = self.alone
        return Load(n, n, n, 1, attended, 0, keys, self.alone)
