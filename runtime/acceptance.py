"""How likely a drafted token is right, given that its parent is: calibrated online.

Heads are over- or underconfident, by an amount that depends on how sure they are. A *cell* holds one head's drafts of
about one probability and learns the ratio between how often they came true and how often they should have. Drafts by
prompt lookup have no probability of their own: their cells are the length of the match and the depth, and begin with a
guess. So do those that a grammar forces, whose match is FORCED.
A draft counts only when its parent was accepted; old counts fade.

Dimension words: [rows] sequences, [heads] Medusa heads, [depth] those that ran, [top_k] ranks of a head, [cells],
[tried] nodes with an accepted parent.
"""

import numpy as np

EDGES = np.log([0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995])
EDGES = EDGES.astype(np.float32)  # of a head's cells, in log-probability
FLOOR = -20.0  # a log-probability below it is as good as none
CERTAIN = float(np.log(0.999))  # nothing is surer than this
FORCED = 1 << 30  # instead of tokens that match: a grammar leaves nothing else
LOOKUP_MATCH = (3, 4, 6, 8, FORCED)  # tokens that match, from which on the next cell holds: 2, 3, 4-5, 6-7, 8 and more
LOOKUP_DEPTH = 4  # the first, second, third and all later tokens of a continuation
LOOKUP_GUESS = np.array([0.3, 0.5, 0.6, 0.7, 0.8, 0.9])  # of the first token, by match
EVERY = 4  # steps whose drafts are counted together
PRIOR = 3.0  # successes that the first guess is worth
MEMORY = 300.0  # expected successes of a cell, after which its counts are halved


class Acceptance:
    """Counts of every cell, and what they make of a draft's probabilities."""

    def __init__(self, heads: int) -> None:
        self._bins = len(EDGES) + 1
        self._first_lookup = heads * self._bins
        deeper = np.linspace(0, 1, LOOKUP_DEPTH)  # who continued a match once is likelier to go on
        guess = LOOKUP_GUESS[:, None] + (0.9 - LOOKUP_GUESS[:, None]) * deeper
        self._lookup_guess = guess.ravel()
        self._head_cell = np.arange(heads)[:, None] * self._bins
        self._first_forced = self._first_lookup + LOOKUP_DEPTH * len(LOOKUP_MATCH)
        cells = self._first_lookup + guess.size
        self.expected, self.right = np.zeros(cells), np.zeros(cells)
        self._log_ratio = np.zeros(cells, np.float32)
        self._new: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # observed, and not yet counted

    def heads(self, logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draft log-probabilities [rows, depth, top_k] -> calibrated ones and their cells, of the same shape."""
        bounded = np.fmax(logprobs, FLOOR)  # also where a head gives NaN
        cells = EDGES.searchsorted(bounded) + self._head_cell[: logprobs.shape[1]]
        calibrated = bounded + self._log_ratio.take(cells)
        return np.minimum(calibrated, CERTAIN, out=calibrated), cells

    def lookup(self, matched: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities [tokens] of a continuation after `matched` equal tokens, and their cells."""
        match = sum(matched >= least for least in LOOKUP_MATCH)
        cells = match * LOOKUP_DEPTH + np.minimum(np.arange(tokens), LOOKUP_DEPTH - 1)
        guess = np.log(self._lookup_guess[cells]) + self._log_ratio[self._first_lookup + cells]
        return np.minimum(guess, CERTAIN), self._first_lookup + cells

    def is_lookup(self, cells: np.ndarray) -> np.ndarray:
        """Which cells are prompt lookup's or of what a grammar forces, bool of the shape of `cells`."""
        return cells >= self._first_lookup

    def is_forced(self, cells: np.ndarray) -> np.ndarray:
        """Which cells are of what a grammar forces, bool of the shape of `cells`."""
        return cells >= self._first_forced

    def observe(self, cells: np.ndarray, chance: np.ndarray, right: np.ndarray) -> None:
        """What became of drafts: their cells [tried], the chances they were given, and whether they were right."""
        self._new.append((cells, chance, right))
        if len(self._new) < EVERY:
            return
        cells, chance, right = (np.concatenate(parts) for parts in zip(*self._new, strict=True))
        self._new.clear()
        size = len(self.expected)
        # undo the ratio: counts are of what the draft itself claimed
        claimed = chance * np.exp(-self._log_ratio.take(cells))
        self.expected += np.bincount(cells, claimed, size)
        self.right += np.bincount(cells, right, size)
        if self.expected.max() > MEMORY:
            fade = np.where(self.expected > MEMORY, 0.5, 1.0)
            self.expected *= fade
            self.right *= fade
        self._log_ratio = np.log((self.right + PRIOR) / (self.expected + PRIOR)).astype(np.float32)
