"""Packs the rows of a step into one batch: chains of prompt tokens and draft trees side by side."""

from collections.abc import Sequence

import numpy as np

from runtime.session import Batch
from runtime.tree import Tree


class Packer:
    """Packs steps for one session.

    With native operators results are bit-equal whatever these say, and a wider `ancestors` costs nothing. With stock
    ones `exact` keeps a row's result bit-equal whatever shares the step with it: attention takes another kernel for a
    single query, so `ancestors` has place for two nodes in any case. `even` rounds the step up to an even number of
    tokens: the one that is added comes last in the last row, no other node sees it, and it is neither verified nor
    committed.
    """

    def __init__(self, exact: bool, even: bool, widest: int) -> None:
        self._narrowest = 2 if exact else 1
        self._even = exact and even
        self._chain = np.tri(widest, dtype=bool)  # [nodes, nodes]
        self._steps = np.arange(widest)

    def pack(self, rows: Sequence[tuple[int, list[int] | Tree]]) -> tuple[Batch, list[int]]:
        """`rows` holds each row's committed length and its work: a tree, or a chunk of prompt.

        Returns the batch and, for each row, where its logits begin in `wanted`: all nodes of a tree; of a chunk the
        last one (the caller ignores it until the prompt is complete).
        """
        counts = [len(work.tokens if isinstance(work, Tree) else work) for _, work in rows]
        counts[-1] += self._even and sum(counts) % 2
        width = max(self._narrowest, *counts)
        length, only = rows[0]
        if len(rows) == 1 and isinstance(only, Tree) and len(only.tokens) == width:  # its arrays are the step's
            arrays = np.array(only.tokens), only.depth, np.array([length]), np.array(counts), only.ancestors[None]
            return Batch(*arrays, self._steps[:width]), [0]
        tokens: list[int] = []
        depth = np.empty(sum(counts), np.int64)
        ancestors = np.zeros((len(rows), width, width), bool)
        wanted: list[int] = []
        first: list[int] = []
        for row, ((_, work), count) in enumerate(zip(rows, counts, strict=True)):
            start = len(tokens)
            first.append(len(wanted))
            if isinstance(work, Tree):
                real = len(work.tokens)
                tokens += work.tokens
                depth[start : start + real] = work.depth
                ancestors[row, :real, :real] = work.ancestors
                wanted.extend(range(start, start + real))
            else:
                real = len(work)
                tokens += work
                depth[start : start + real] = self._steps[:real]
                ancestors[row, :real, :real] = self._chain[:real, :real]
                wanted.append(start + real - 1)
            for extra in range(real, count):
                tokens.append(tokens[start])
                depth[start + extra] = extra
                ancestors[row, extra, : extra + 1] = self._chain[extra, : extra + 1]
        batch = Batch(
            np.array(tokens),
            depth,
            np.array([length for length, _ in rows]),
            np.array(counts),
            ancestors,
            np.array(wanted),
        )
        return batch, first
