"""For whom the heads run, and how many of them: decided before they run, from what they proposed lately.

They run where what they would propose is expected to pay. Where it is not they are tried again, ever more rarely, as
long as trials take little of the time.

Dimension words: [nodes] candidates, best first over all rows.
"""

from collections.abc import Sequence as Items

import numpy as np

from runtime.acceptance import Acceptance
from runtime.budget import Nodes, best
from runtime.depths import Depths
from runtime.forest import LOOKUP
from runtime.habit import REMEMBERED, Habit
from runtime.load import Load
from runtime.pace import Pace
from runtime.tree import Universe

DECIDE_EVERY = 8, 32  # steps between decisions on the heads, while as many rows may draft: at first; while it is clear
CHANGED_AFTER = 0.004  # seconds in the session between them, where not as many may
OVERDUE = 0.02, 0.003  # of the time in the session, below which they are tried however short the sequences are
SEEN = 16  # sequences' drafts until that is the latter: before, little is known of what is typical
TYPICAL = 0.07, 0.035  # weight of a draft in what is typical; of one that is looked at because it disappoints
LIKELY = float(np.log(0.5))  # log-probability of what was found, from which on a text goes on as it did before
TRIALS = 0.015  # of it that trials of the heads may take while they pay for nobody


class Asking:
    def __init__(self, heads: int, universe: Universe, acceptance: Acceptance, pace: Pace) -> None:
        self.heads = heads
        self._acceptance, self._pace = acceptance, pace
        self._depths = Depths(heads)
        self._age = self._wait = DECIDE_EVERY[0]  # steps since it was decided, and between decisions
        self._decided = 0, 0.0  # by then: rows, seconds in the session
        self._pays = True  # for anyone, by that decision
        self._tried = 0.0  # seconds in the session when the heads last ran
        self._seen = 0  # sequences' drafts that were remembered
        # chances of a draft that nobody has seen: what the heads' accuracies say, later what others' drafts said
        self._typical = np.zeros(REMEMBERED)
        a_priori = np.sort(universe.chance[1:])[::-1][:REMEMBERED]
        self._typical[: len(a_priori)] = a_priori

    def carry_on(self, habits: list[Habit]) -> bool:
        """One step more: False if it is to be decided anew, else the heads run for whom they ran, trials ended."""
        if not self.heads:
            return True
        self._age += 1
        rows, seconds = self._decided
        changed = not rows <= 1.5 * len(habits) <= 2.25 * rows and self._pace.seconds - seconds >= CHANGED_AFTER
        if self._age >= self._wait or changed:
            return False
        for habit in habits:
            if habit.values is None:
                habit.heads = self._pays
            habit.end_trial()
        return True

    def decide(self, habits: list[Habit], matched: list[int], lengths: np.ndarray, load: Load, proven: bool) -> None:
        """Sets for whom of these the heads run; `matched` tokens of each continuation that was found without them.

        Where drafts are `proven` to come true and clearly pay for all, it is decided more rarely.
        """
        steps, now = self._age, self._pace.seconds
        nodes = self._outlook(habits, matched)
        prices = self._pace.prices(load, self._depths.share(len(habits)))
        choice = best(nodes, lengths, load, prices)
        drafts = set(nodes.row[: choice.nodes][nodes.by_heads[: choice.nodes]].tolist())
        if not drafts and self._pays and choice.rate <= prices.rate:
            # Lately it was faster than plain decoding would be: chances on the average promise less than those of each
            # step, of which the best are taken. But not where it was faster as the text goes on as it did before.
            drafts = {
                i
                for i, (habit, match) in enumerate(zip(habits, matched, strict=True))
                if (habit.heads or habit.values is None) and not habit.poor and not self._goes_on(match)
            }
        first, most = DECIDE_EVERY
        clear = proven and choice.clear and len(drafts) == len(habits)
        self._wait = min(2 * self._wait, most) if clear else first
        self._age, self._pays, self._decided = 0, bool(drafts), (len(habits), now)
        runs = drafts or any(habit.fixed for habit in habits)  # in any case, and for one row more it costs little
        share = float(self._pace.cost.heads(len(habits))) / max(now - self._tried, 1e-9)
        may_try, overdue = bool(runs) or share <= TRIALS, not runs and share <= OVERDUE[self._seen >= SEEN]
        for i, habit in enumerate(habits):
            habit.decide(habit.fixed or i in drafts, steps, may_try, overdue)

    def depth(self, habits: list[Habit]) -> int:
        """How many heads run for these: all where they are tried, and as many as a fixed tree could have levels."""
        self._tried = self._pace.seconds
        if any(habit.tried for habit in habits):
            return self.heads
        levels = max((min(habit.nodes - 1, self.heads) for habit in habits if habit.fixed), default=1)
        if all(habit.fixed for habit in habits):
            return levels
        return max(levels, self._depths.choose(len(habits), self._pace.seconds))

    def remember(self, habits: list[Habit], asked: list[int], nodes: Nodes, hurried: bool) -> None:
        """Each asked sequence's best chances by its heads.

        What is `hurried` is looked at because it disappoints, and says less of what is typical.
        """
        row, chance = nodes.row[nodes.by_heads], nodes.chance[nodes.by_heads]
        weight, certain = TYPICAL[hurried], self._seen >= SEEN
        for i in asked:
            newest = np.zeros(REMEMBERED)
            own = chance[row == i][:REMEMBERED]
            newest[: len(own)] = own
            habits[i].remember(newest, self._typical, certain)
            self._seen += 1
            self._typical = self._typical + weight * (newest - self._typical)

    def chosen(self, rows: int, ran: int, nodes: Nodes, keep: np.ndarray, depth: np.ndarray, rate: float) -> None:
        """Learns how many heads pay from a budget, bool `keep` [nodes], of nodes of `depth` [nodes].

        `ran` heads ran for `rows` rows; `rate` is in tokens a second.
        """
        left, taken = nodes.chance[~keep], keep & nodes.by_heads
        surplus = nodes.chance[taken] - (float(left[0]) if len(left) else 0.0)
        self._depths.observe(rows, ran, depth[taken], surplus, rate, self._pace.cost, self._pace.seconds)

    def _goes_on(self, match: int) -> bool:
        """Whether a text does as it did before, by how many tokens match."""
        return match > 0 and float(self._acceptance.lookup(match, 1)[0][0]) > LIKELY

    def _outlook(self, habits: list[Habit], matched: Items[int]) -> Nodes:
        """What drafting can be expected to bring."""
        own = np.array([self._typical if habit.values is None else habit.values for habit in habits])
        rows, chances, most = [], [], [habit.nodes - 1 for habit in habits]
        for i, match in enumerate(matched):
            if match:
                continuation = np.exp(np.cumsum(self._acceptance.lookup(match, min(LOOKUP, most[i]))[0]))
                # Where it goes on as it did before, right heads say the same: what counts is where it does not.
                own[i] *= 1.0 - continuation[0]
                rows.append(np.full(len(continuation), i))
                chances.append(continuation)
        allowed = np.arange(REMEMBERED) < np.array(most)[:, None]
        row = allowed.nonzero()[0]
        by_heads = np.arange(len(row) + sum(map(len, rows))) < len(row)
        row, chance = np.concatenate([row, *rows]), np.concatenate([own[allowed], *chances])
        order = np.argsort(-chance, kind="stable")
        return Nodes(row[order], chance[order], by_heads[order])
