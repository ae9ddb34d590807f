"""What to draft each step.

For whom the heads run is decided before they do (`runtime/asking.py`); how many nodes are drafted is decided after, of
all rows' candidates together (`runtime/budget.py`), at what steps take here (`runtime/pace.py`). Zero is a valid
answer. A request that asks for a fixed tree gets it; the others share what pays beside it.

Dimension words: [rows] sequences that may draft, [nodes] candidates, best first over all rows.
"""

import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np

from runtime.acceptance import Acceptance
from runtime.asking import Asking
from runtime.budget import Nodes, Prices, best, with_trees
from runtime.continuations import Continuation, Continuations
from runtime.forest import NEVER, Candidates, Forest
from runtime.habit import Habit
from runtime.load import Load
from runtime.pace import Pace
from runtime.pruning import prune, refused_first
from runtime.scheduler import Plan
from runtime.sequence import Sequence
from runtime.session import Draft
from runtime.stats import Decisions
from runtime.tree import DEPTH_COST, Tree, Universe, lone

NO_NODE = -DEPTH_COST / 2  # above the value of every node but roots
LEARN_EVERY = 3  # steps, one of whose trees is learnt from once most sequences are known
OUTDATED = 0.1  # seconds in the session after which a budget says nothing of steps like its own
STEADY = 4  # times as long as the first one that budgets last which say the same as those before them
LEAST_CHANCE = 0.01  # of a node to be accepted; nodes below it are left out of what pays
LEAST_VALUE = math.log(LEAST_CHANCE)

Kind = tuple[int, int, int, bool]  # of a step: rows, rows that may draft, those asked, whether most drafts disappoint
Heads = Callable[[list[int], int], Draft]  # rows, and how many heads run, to what these propose for them


@dataclass(frozen=True, slots=True)
class Budget:
    """What steps take, until there is another one, that are like the step for which it was made."""

    least: float  # value of a node
    most: int  # nodes of a row that is alone, its root included, ...
    beyond: float  # but for those of such a value: one more could cost much more
    rate: float  # tokens that a second is worth
    outdated: float  # seconds in the session by then
    clear: bool  # that drafts pay
    lasts: int = 1  # times as long as usual

    def after(self, last: "Budget | None") -> "Budget":
        """It lasts twice as long as the last one of its kind if that said about the same, and drafts clearly pay."""
        if last is None or not self.clear or abs(self.most - last.most) > 1 + last.most // 8:
            return self
        return replace(self, lasts=min(2 * last.lasts, STEADY))


class Speculator:
    """Plans the trees of each step and learns from what becomes of them."""

    def __init__(
        self, accuracy: Items[Items[float]], top_k: int, eos: Items[int], pace: Pace, heads: Heads, decisions: Decisions
    ) -> None:
        """`accuracy` [heads][...] and `top_k` as in Universe, `eos` end answers; `decisions` hears what is drafted."""
        self._eos, self._pace, self._run_heads, self._decisions = frozenset(eos), pace, heads, decisions
        self._universe = Universe(accuracy, top_k)
        self._acceptance = Acceptance(len(accuracy))
        self._continuations = Continuations(eos)
        self._candidates = Candidates(self._universe, self._acceptance)
        self._asking = Asking(len(accuracy), self._universe, self._acceptance, pace)
        self._depth = len(accuracy)  # heads that this step runs, if any
        self._common = Habit(nodes=1, fixed=False, looks=False)  # of all sequences, as if they were one
        self._steps = 0
        self._rows: list[int] = []  # of this step's plan: those that may draft
        self._found: list[Continuation] = []  # for them
        self._trust: np.ndarray | None = None  # [rows], None where all are 1
        self._forest: Forest | None = None
        self._budgets: dict[Kind, Budget] = {}  # the last ones
        self._rate = 0.0  # tokens that a second is worth, by the last of them

    @property
    def drafted(self) -> bool:
        """Whether this step's trees have nodes beside their roots."""
        return self._forest is not None and len(self._forest.places) > len(self._rows)

    def draft(self, plan: Plan) -> list[Tree | None]:
        """This step's tree of each row that decodes, None for one that prefills; runs the heads for who gains by it."""
        trees = [None if n else lone(s.root) for s, n in zip(plan.sequences, plan.prefill, strict=True)]
        self._rows = [  # with one token left there is nothing to gain
            row
            for row, s in enumerate(plan.sequences)
            if trees[row] is not None and s.habit.nodes > 1 and s.limit - len(s.tokens) > 1
        ]
        self._forest = None
        if self._rows:
            self._forest = self._grow([plan.sequences[row] for row in self._rows], plan)
            if self._forest is not None:
                for row, tree in zip(self._rows, self._forest.trees, strict=True):
                    trees[row] = tree
        return trees

    def verified(self, paths: list[list[int] | None], plan: Plan) -> None:
        """Learns from the nodes that verification accepted of each row's tree; None where it failed."""
        forest, rows = self._forest if self.drafted else None, self._rows
        walked = [path for row in rows if (path := paths[row]) is not None]
        self._steps += 1
        if not rows or len(walked) < len(rows):
            return
        sequences = [plan.sequences[row] for row in rows]
        habits = [s.habit for s in sequences]
        self._decisions.count(len(rows), len(rows) if forest is None else len(forest.places))
        accepted = np.zeros(0, bool) if forest is None else _accepted(forest, walked)
        by_lookup, brought = (None, 0) if forest is None else self._count_continued(forest, accepted)
        self._continuations.learn(brought, self._rate)
        if self._steps % LEARN_EVERY and not _most(h.young and (h.poor or not h.expected) for h in habits):
            return
        if any(matched for matched, _ in self._found):
            drafted = (
                None if forest is None or by_lookup is None else np.logical_or.reduceat(by_lookup, forest.start[:-1])
            )
            self._learn_undrafted(sequences, walked, drafted)
        if forest is None:
            self._decisions.compare(len(rows), len(rows), len(rows))
            return
        known = self._candidates.known(forest)
        self._decisions.compare(len(rows), float(known.value.sum()), sum(map(len, walked)))
        start = forest.start[:-1]
        tried: np.ndarray = accepted.take(forest.parent)
        tried[start] = False
        claimed = known.chance * tried
        if self._trust is not None:  # which is in what the heads say alone
            trust = self._trust.repeat(np.diff(forest.start))
            claimed /= trust if by_lookup is None else np.where(by_lookup, 1.0, trust)
        self._acceptance.observe(known.cells[tried], claimed[tried], accepted[tried])
        for habit, should, path in zip(habits, np.add.reduceat(claimed, start).tolist(), walked, strict=True):
            habit.learn(should, len(path) - 1)
            self._common.learn(should, len(path) - 1)

    def _count_continued(self, forest: Forest, accepted: np.ndarray) -> tuple[np.ndarray | None, int]:
        """Which nodes are there by what was found without the heads, bool [chosen], None if nothing was found.

        And how many that lookup found were accepted.
        """
        if not forest.continued:
            return None, 0
        cells = self._candidates.cells(forest)
        by_lookup = self._acceptance.is_lookup(cells)
        right = by_lookup & accepted
        self._decisions.lookup_drafted += int(by_lookup.sum())
        self._decisions.lookup_accepted += int(right.sum())
        return by_lookup, int((right & ~self._acceptance.is_forced(cells)).sum())

    def _learn_undrafted(self, sequences: list[Sequence], walked: list[list[int]], drafted: np.ndarray | None) -> None:
        """Whether what was found and not drafted was right: else it would never be drafted again, once it was not.

        `drafted` bool [rows]; None: nowhere.
        """
        known, right = [], []
        for i, (s, path, (matched, tokens)) in enumerate(zip(sequences, walked, self._found, strict=True)):
            if matched and s.finish_reason is None and (drafted is None or not drafted[i]):
                known.append(self._acceptance.lookup(matched, 1))
                right.append(s.tokens[-len(path)] == tokens[0])
        if known:
            chance, cells = (np.concatenate(parts) for parts in zip(*known, strict=True))
            self._acceptance.observe(cells, np.exp(chance), np.array(right))

    def _proven(self, habits: list[Habit]) -> bool:
        """Whether drafts come true, those of all sequences and of each of these, as far as that was seen."""
        return not (self._common.young or self._common.poor or any(habit.poor for habit in habits))

    def _grow(self, sequences: list[Sequence], plan: Plan) -> Forest | None:
        """Trees for these sequences, None where there is nothing to draft from."""
        habits = [s.habit for s in sequences]
        found = self._found = self._continuations.find(sequences)
        fixed = [habit.fixed for habit in habits]
        if all(fixed):
            asked = list(range(len(habits))) if self._asking.heads else []
        else:
            if not self._asking.carry_on(habits):
                matched = [matched for matched, _ in found]
                self._asking.decide(habits, matched, _lengths(sequences), _load(plan), self._proven(habits))
            asked = [i for i, habit in enumerate(habits) if habit.heads]
        if not asked and not any(matched for matched, _ in found):
            return None
        kind = len(plan.sequences), len(habits), len(asked), _most(h.poor for h in habits)
        good = None if all(fixed) else self._good(kind, habits)
        if good is not None and not asked and good.least == NO_NODE and not any(fixed):
            return None  # what was found did not pay lately
        candidates, most = self._candidates, [habit.nodes for habit in habits]
        draft = self._begin(sequences, asked, found, LEAST_VALUE if good is None else good.least)
        if draft is not None:
            for k, i in enumerate(asked):
                if (matcher := sequences[i].matcher) is not None:
                    least = NEVER if fixed[i] else LEAST_VALUE
                    prune(candidates, i, self._universe, draft.tokens[k], most[i], least, matcher.valid)
        if all(fixed):
            return candidates.build(candidates.best(most, NEVER))
        if good is not None:
            if len(most) == 1:
                most = [min(most[0], max(good.most, candidates.count(good.beyond)))]
            return candidates.build(candidates.best(most, _least(fixed, good.least)))
        row, slot, value = candidates.ranked(candidates.best(most, _least(fixed, LEAST_VALUE)))
        nodes = Nodes(row, np.exp(value), candidates.by_heads(row, slot))
        hurried = _disappoint(habits) and not self._pace.budget_is_due(len(habits))
        self._asking.remember(habits, asked, nodes, hurried)
        load = _load(plan)
        prices = self._pace.prices(load, self._depth / max(self._asking.heads, 1))
        keep, budget = self._budget(np.array(fixed), nodes, _lengths(sequences), load, prices, len(asked))
        self._rate = budget.rate
        self._budgets[kind] = budget.after(self._budgets.get(kind)) if self._proven(habits) else budget
        if asked and not any(fixed):
            depth = self._universe.depth.take(slot, mode="clip")  # of a continuation nothing is asked
            self._asking.chosen(len(asked), self._depth, nodes, keep, depth, budget.rate)
        return candidates.build(candidates.places(row[keep], slot[keep]))

    def _good(self, kind: Kind, habits: list[Habit]) -> Budget | None:
        """The last budget of such steps, unless this one should have its own."""
        last = self._budgets.get(kind)
        if last is None or self._pace.seconds >= last.outdated or any(h.tried for h in habits):
            return None
        disappoint = _disappoint(habits)
        return None if self._pace.budget_is_due(len(habits), disappoint, 1 if disappoint else last.lasts) else last

    def _begin(
        self, sequences: list[Sequence], asked: list[int], found: list[Continuation], least: float
    ) -> Draft | None:
        """Sets up this step's candidates: of the heads, run for those `asked`, and of what was found without them.

        Nobody takes nodes of a value below `least` but who has a fixed tree. Returns what the heads proposed.
        """
        trust = [s.habit.trust for s in sequences]
        self._trust = np.array(trust, np.float32) if any(factor != 1.0 for factor in trust) else None
        draft = None
        if asked:
            self._depth = self._asking.depth([sequences[i].habit for i in asked])
            draft = self._run_heads([place for i in asked if (place := sequences[i].row) is not None], self._depth)
            self._decisions.heads_runs += 1
            self._decisions.heads_rows += len(asked)
        of_asked = None if self._trust is None else self._trust[asked]
        refused = useless = None
        if draft is not None:
            drafted = [sequences[i] for i in asked]
            refused, useless = _refused(drafted, draft), _useless(drafted, draft, self._eos)
        self._candidates.begin([s.root for s in sequences], asked, draft, of_asked, refused, useless)
        for i, (matched, tokens) in enumerate(found):
            if matched:
                ranks = draft.tokens[asked.index(i)] if draft is not None and i in asked else None
                worth = NEVER if sequences[i].habit.fixed else least
                self._candidates.add_continuation(i, matched, tokens, ranks, worth)
        return draft

    def _budget(
        self, fixed: np.ndarray, nodes: Nodes, lengths: np.ndarray, load: Load, prices: Prices, asked: int
    ) -> tuple[np.ndarray, Budget]:
        """Which of the candidates are drafted, bool [nodes]: of `fixed` rows [rows] all, of the others the best."""
        keep: np.ndarray = fixed[nodes.row]
        free, others, gained = np.arange(len(keep)), nodes, 0.0
        if keep.any():
            load, gained = with_trees(load, nodes.row[keep], lengths), float(nodes.chance[keep].sum())
            free = np.flatnonzero(~keep)
            others = Nodes(nodes.row[free], nodes.chance[free], nodes.by_heads[free])
        choice = best(others, lengths, load, prices, asked, gained)
        keep[free[: choice.nodes]] = True
        self._pace.planned()
        least, beyond = NO_NODE, math.log(max(choice.next_price, LEAST_CHANCE))
        if choice.nodes:
            last = float(others.chance[choice.nodes - 1])
            next_one = float(others.chance[choice.nodes]) if choice.nodes < len(free) else 0.0
            price = choice.last_price if len(lengths) == 1 else (last + next_one) / 2
            least = math.log(max(price, LEAST_CHANCE))
        return keep, Budget(least, choice.nodes + 1, beyond, choice.rate, self._pace.seconds + OUTDATED, choice.clear)


def _accepted(forest: Forest, walked: list[list[int]]) -> np.ndarray:
    """bool [chosen]: the nodes, roots among them, of each row's path."""
    accepted = np.zeros(len(forest.places), bool)
    start = forest.start[:-1].tolist()
    accepted[[at + node for path, at in zip(walked, start, strict=True) for node in path]] = True
    return accepted


def _most(are: Iterable[bool]) -> bool:
    """Whether more of them are than are not."""
    return sum(1 if one else -1 for one in are) > 0


def _disappoint(habits: list[Habit]) -> bool:
    """Whether the drafts of most do, as far as is known so early."""
    return _most(habit.young and habit.poor for habit in habits)


def _least(fixed: list[bool], value: float) -> np.ndarray | float:
    """From which value on a row's nodes are taken, where it is the same for all rows but those fixed."""
    return np.where(fixed, NEVER, value) if any(fixed) else value


def _useless(sequences: list[Sequence], draft: Draft, eos: frozenset[int]) -> np.ndarray | None:
    """Tokens of the heads that gain nothing, bool [drafted, heads, top_k]; None: there are none.

    The model adds a token of its own to each path, an answer's last one too: drafts of it, and what follows, are in
    vain.
    """
    useless, depth = np.zeros_like(draft.tokens, bool), draft.tokens.shape[1]
    for token in eos:
        useless |= draft.tokens == token
    for k, s in enumerate(sequences):
        if s.params.ignore_eos:
            useless[k] = False
        if (useful := s.useful) < depth:
            useless[k, useful:] = True
    return useless if useless.any() else None


def _refused(sequences: list[Sequence], draft: Draft) -> np.ndarray | None:
    """Tokens of the first head that grammars refuse, bool [drafted, top_k]; None: there are no grammars."""
    if all(s.matcher is None for s in sequences):
        return None
    refused = np.zeros((len(sequences), draft.tokens.shape[2]), bool)
    for k, s in enumerate(sequences):
        if (matcher := s.matcher) is not None:
            refused[k] = refused_first(draft.tokens[k, 0], matcher.valid)
    return refused


def _lengths(sequences: list[Sequence]) -> np.ndarray:
    return np.array([s.length for s in sequences])


def _load(plan: Plan) -> Load:
    return Load.planned([s.length for s in plan.sequences], plan.prefill)
