"""How one sequence drafts: what it may, and what is known of its drafts."""

import math
from dataclasses import dataclass

import numpy as np

from runtime.lookup import Lookup

REMEMBERED = 24  # of a draft's values
RECENT = 0.2, 0.4  # weight of the newest draft among those remembered, and while its trust is falling
SURPRISING = 0.7  # weight of its first draft, as long as little is known of what is typical
PATIENCE = (32, 256)  # steps without heads before they are tried again: at first, and at most
TRUST = (0.05, 1.5)  # what one sequence may be surer or less sure than its drafts say
TRUST_PRIOR, TRUST_MEMORY = 8.0, 60.0  # in expected successes


@dataclass(slots=True)
class Habit:
    nodes: int  # of its largest tree, the root included; 1 is plain decoding
    fixed: bool  # always that many, as far as there are candidates
    looks: bool  # whether prompt lookup may be asked
    lookup: Lookup | None = None  # once it was
    unasked: int | None = None  # steps in which it is not asked now; None: it never could
    values: np.ndarray | None = None  # [REMEMBERED] chances of its best nodes to be accepted, lately
    heads: bool = False  # run for it in this step
    tried: bool = False  # run once, to see what they propose now
    idle: int = 0  # steps without them
    patience: int = PATIENCE[0]
    expected: float = 0.0  # successes that its drafts claimed
    right: float = 0.0  # and had

    @property
    def trust(self) -> float:
        """Factor on the chances of its drafts; what may be luck counts for nothing. A fixed tree needs none."""
        if self.fixed:
            return 1.0
        luck = math.sqrt(self.expected)
        surprise = self.right - self.expected
        surprise -= min(max(surprise, -luck), luck)
        ratio = (self.expected + surprise + TRUST_PRIOR) / (self.expected + TRUST_PRIOR)
        return min(max(ratio, TRUST[0]), TRUST[1])

    def learn(self, expected: float, right: float) -> None:
        """Of the nodes tried in a step `right` came true, `expected` should have."""
        self.expected += expected
        self.right += right
        if self.expected > TRUST_MEMORY:
            self.expected /= 2
            self.right /= 2

    @property
    def young(self) -> bool:
        """Whether too little is known for its trust."""
        return not self.fixed and self.expected < TRUST_PRIOR

    @property
    def poor(self) -> bool:
        """Whether less than half of what its drafts claimed came true."""
        return self.right < self.expected / 2

    def remember(self, values: np.ndarray, typical: np.ndarray, certain: bool) -> None:
        """The chances [REMEMBERED] of its newest draft's best nodes, best first, beside what is `typical`.

        It is `certain` once enough drafts were seen.
        """
        if self.values is None:
            known, weight = typical, RECENT[0] if certain else SURPRISING
        else:
            known, weight = self.values, RECENT[self.young and self.poor]
        self.values = known + weight * (values - known)

    def decide(self, pays: bool, steps: int, may_try: bool, overdue: bool = False) -> None:
        """Whether the heads run, `steps` after the last decision: if they pay, or have not been tried for long.

        For nobody, if it is `overdue`.
        """
        self.tried = False
        if pays:
            self.heads, self.idle, self.patience = True, 0, PATIENCE[0]
            return
        self.idle += steps
        self.heads = self.tried = overdue or (may_try and self.idle >= self.patience)
        if self.heads:
            self.idle, self.patience = 0, min(4 * self.patience, PATIENCE[1])

    def end_trial(self) -> None:
        """One step is enough to try the heads."""
        if self.tried:
            self.heads = self.tried = False
