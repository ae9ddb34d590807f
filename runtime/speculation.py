"""What to draft each step, and for whom.

Whether the heads pay is decided before they run, from what they proposed for a sequence lately; how many nodes are
drafted is decided after, of all rows' candidates together (`runtime/budget.py`). Zero is a valid answer, and a row
without a node skips the heads; they are tried again, ever more rarely. A request that asks for a fixed tree gets it;
the others share what pays beside it.

Dimension words: [rows] sequences that may draft, [nodes] candidates, best first over all rows.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import cache

import numpy as np

from runtime.acceptance import FORCED, Acceptance
from runtime.budget import Nodes, Prices, best, with_trees
from runtime.cost import CostModel
from runtime.depths import Depths
from runtime.forest import LOOKUP, NEVER, Candidates, Forest
from runtime.grammar import Matcher
from runtime.habit import REMEMBERED, Habit
from runtime.load import Load
from runtime.pruning import prune, refused_first
from runtime.scheduler import Plan, Scheduler
from runtime.sequence import Sequence
from runtime.session import Batch, Draft
from runtime.stats import Decisions
from runtime.tree import DEPTH_COST, Tree, Universe, lone

DECIDE_EVERY = 8  # steps between decisions on the heads, while as many rows may draft
BUDGET_AFTER = 0.004  # seconds in the session until the next budget; steps before it take nodes of like value
NO_NODE = -DEPTH_COST / 2  # above the value of every node but roots
LEARN_EVERY = 3  # steps, one of whose trees is learnt from once a sequence is known
TIME_AFTER = 0.008  # seconds in the session, after which a step's time is learnt from
OVERDUE = 0.003  # of it, below which they are tried however short the sequences are
TRIALS = 0.02  # of the time that trials of the heads may take while they pay for nobody
LEAST_VALUE = math.log(0.01)  # of a node's chance to be accepted; nodes below it are left out of what pays
RECENT = 0.05  # weight of the newest step in what is known of the last ones
NOTHING_FOUND: tuple[int, list[int]] = (0, [])

Heads = Callable[[list[int], int], Draft]  # rows, and how many heads run, to what these propose for them


class Speculator:
    """Plans the trees of each step and learns from what becomes of them."""

    def __init__(self, accuracy: Items[Items[float]], top_k: int, cost: CostModel, heads: Heads) -> None:
        """`accuracy` [heads][...] and `top_k` as in Universe."""
        self.cost = cost
        self.decisions = Decisions()
        self._run_heads = heads
        self._universe = Universe(accuracy, top_k)
        self._acceptance = Acceptance(len(accuracy))
        self._candidates = Candidates(self._universe, self._acceptance)
        self._heads = len(accuracy)
        self._depths = Depths(len(accuracy))
        self._depth = len(accuracy)  # heads that this step runs, if any
        self._host = [0.0, 0.0]  # seconds of a step outside the session over (rows + 2): plain, drafting
        # expected tokens and seconds, at the machine's usual speed, of the last steps, by rows that decode
        self._pace: dict[int, tuple[float, float]] = {}
        self._usual: Load | None = None  # the last step in which every row decoded
        self._age = DECIDE_EVERY  # steps since it was decided who runs the heads
        self._decided = 0, 0.0  # by then: rows, seconds in the session
        self._seconds = 0.0  # in the session, in all
        self._runs = 0
        self._untimed = 0.0  # seconds in the session since a step's time was learnt from
        self._unplanned = 0.0  # and since a budget
        self._pays = True  # for anyone, by that decision
        self._tried = 0.0  # seconds in the session when the heads last ran
        self._rows: list[int] = []  # of this step's plan: those that may draft
        self._trust: np.ndarray | None = None  # [rows], None where all are 1
        self._forest: Forest | None = None
        # of the last budget: rows, rows that may draft and those asked; the value from which on nodes were taken
        self._least_value: tuple[tuple[int, int, int], float] = ((0, 0, 0), 0.0)
        # chances of a draft that nobody has seen: what the heads' accuracies say, later what others' drafts said
        self._typical = np.zeros(REMEMBERED)
        a_priori = np.sort(self._universe.chance[1:])[::-1][:REMEMBERED]
        self._typical[: len(a_priori)] = a_priori

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

    def chunk(self, scheduler: Scheduler, most: int, slowdown: float) -> int:
        """Prompt tokens of the next step, at most `most`: few enough that it takes `slowdown` times a usual one.

        Usual is a step of all that run or could run beside this prompt: where many wait, nobody can count on a step
        of the few that decode already.
        """
        prompt, usual = scheduler.prefilling, self._usual
        decoding = sum(not s.prefilling for s in scheduler.running)
        if prompt is None or usual is None or not decoding:
            return most
        rows = len(scheduler.running) + min(scheduler.free_rows, len(scheduler.waiting)) - 1
        tokens, attended, keys = (total / usual.rows for total in (usual.tokens, usual.attended, usual.keys))
        full = max(decoding, rows)
        alone = self.cost.decoder(full, tokens * full, usual.widest, attended * full, 0, keys * full)
        choices = _chunks(most)
        beside = self.cost.decoder(
            decoding + 1, tokens * decoding + choices, np.maximum(choices, usual.widest),
            attended * decoding + choices * (prompt.length + choices), choices - 1, keys * decoding + prompt.length,
        )  # fmt: skip
        fitting = int(np.count_nonzero(beside <= slowdown * alone))
        return int(choices[max(0, fitting - 1)])

    def ran(self, batch: Batch, decoding: int, seconds: float) -> None:
        """Learns from a decoder run, in which so many rows decoded, that took so long."""
        self._runs += 1
        self._unplanned += seconds
        self._seconds += seconds
        self._untimed += seconds
        if self._untimed < TIME_AFTER:
            return
        self._untimed = 0.0
        load = Load.of(batch, decoding)
        if load.decoding == load.rows:
            self._usual = load
        what = load.rows, load.tokens, load.widest, load.attended, load.silent
        error = abs(seconds / self.cost.observe_decoder(*what, seconds, load.keys) - 1.0)
        self.decisions.cost_error += RECENT * (error - self.decisions.cost_error)

    def asked(self, rows: int, depth: int, seconds: float) -> None:
        """Learns from a run of so many heads for so many rows, that took so long."""
        self._tried = self._seconds
        self.decisions.heads_runs += 1
        self.decisions.heads_rows += rows
        self._untimed += seconds
        if self._untimed >= TIME_AFTER:
            self.cost.observe_heads(rows, seconds, depth / self._heads)

    def verified(self, paths: list[list[int] | None], plan: Plan) -> None:
        """Learns from the nodes that verification accepted of each row's tree; None where it failed."""
        forest, rows = self._forest, self._rows
        walked = [path for row in rows if (path := paths[row]) is not None]
        if len(walked) < len(rows):
            return
        self.decisions.count(len(rows), len(rows) if forest is None else len(forest.places))
        habits = [plan.sequences[row].habit for row in rows]
        if self._runs % LEARN_EVERY and not any(habit.young for habit in habits):
            return
        if forest is None:
            self.decisions.compare(len(rows), len(rows), len(rows))
            return
        known = self._candidates.known(forest)
        self.decisions.compare(len(rows), float(known.value.sum()), sum(map(len, walked)))
        if len(forest.places) == len(rows):
            return
        start = forest.start[:-1]
        accepted = np.zeros(len(forest.places), bool)
        accepted[[at + node for path, at in zip(walked, start.tolist(), strict=True) for node in path]] = True
        if forest.continued:
            by_lookup = self._acceptance.is_lookup(known.cells)
            self.decisions.lookup_drafted += int(by_lookup.sum())
            self.decisions.lookup_accepted += int((by_lookup & accepted).sum())
        tried: np.ndarray = accepted.take(forest.parent)
        tried[start] = False
        claimed = known.chance * tried
        if self._trust is not None:
            claimed /= self._trust.repeat(np.diff(forest.start))
        self._acceptance.observe(known.cells[tried], claimed[tried], accepted[tried])
        for habit, should, path in zip(habits, np.add.reduceat(claimed, start).tolist(), walked, strict=True):
            habit.learn(should, len(path) - 1)

    def took(self, rows: int, seconds: float) -> None:
        """Learns from the time that a step of decoding rows took outside the session."""
        drafted = self._forest is not None and len(self._forest.places) > len(self._rows)
        share, known = seconds / (rows + 2), self._host[drafted]
        self._host[drafted] = share if known == 0.0 else known + RECENT * (min(share, 4 * known) - known)

    def _grow(self, sequences: list[Sequence], plan: Plan) -> Forest | None:
        """Trees for these sequences, None where there is nothing to draft from."""
        habits = [s.habit for s in sequences]
        found = [_continuation(s) for s in sequences]
        fixed = [habit.fixed for habit in habits]
        if all(fixed):
            asked = list(range(len(habits))) if self._heads else []
        else:
            self._decide(habits, [matched for matched, _ in found], sequences, plan)
            asked = [i for i, habit in enumerate(habits) if habit.heads]
        if not asked and not any(matched for matched, _ in found):
            if self._unplanned >= BUDGET_AFTER and not any(plan.prefill):
                load, self._unplanned = _load(plan), 0.0
                plain = self.cost.decoder(load.rows, load.tokens, load.widest, load.attended, load.silent, load.keys)
                self._keep_pace(load.decoding, load.decoding, float(plain) + self._host[0] * (load.rows + 2))
            return None
        candidates, most = self._candidates, [habit.nodes for habit in habits]
        draft = self._begin(sequences, asked, found)
        if draft is not None:
            for k, i in enumerate(asked):
                if (matcher := _matcher(sequences[i])) is not None:
                    least = NEVER if fixed[i] else LEAST_VALUE
                    prune(candidates, i, self._universe, draft.tokens[k], most[i], least, matcher.valid)
        if all(fixed):
            return candidates.build(candidates.best(most, NEVER))
        kind = len(plan.sequences), len(habits), len(asked)
        unknown = any(habit.tried for habit in habits) or 2 * sum(habit.doubtful for habit in habits) > len(habits)
        known = kind == self._least_value[0] and not any(plan.prefill) and not unknown
        if known and self._unplanned < BUDGET_AFTER:
            return candidates.build(candidates.best(most, _least(fixed, self._least_value[1])))
        row, slot, value = candidates.ranked(candidates.best(most, _least(fixed, LEAST_VALUE)))
        nodes = Nodes(row, np.exp(value), slot < len(self._universe.paths))
        self._remember(habits, asked, nodes)
        load = _load(plan)
        keep, least = self._budget(np.array(fixed), nodes, _lengths(sequences), load, len(asked))
        self._least_value, self._unplanned = (kind, least), 0.0
        if asked and not any(fixed):
            taken = keep & nodes.by_heads
            left = nodes.chance[~keep]
            surplus = nodes.chance[taken] - (float(left[0]) if len(left) else 0.0)
            rate = self._prices(load.decoding).rate
            depth = self._universe.depth[slot[taken]]
            self._depths.observe(len(asked), self._depth, depth, surplus, rate, self.cost, self._seconds)
        return candidates.build(candidates.places(row[keep], slot[keep]))

    def _begin(self, sequences: list[Sequence], asked: list[int], found: list[tuple[int, list[int]]]) -> Draft | None:
        """Sets up this step's candidates: of the heads, run for those `asked`, and of what was found without them.

        Returns what the heads proposed.
        """
        trust = [s.habit.trust for s in sequences]
        self._trust = np.array(trust, np.float32) if any(factor != 1.0 for factor in trust) else None
        draft = None
        if asked:
            self._depth = self._how_deep([sequences[i].habit for i in asked])
            draft = self._run_heads([place for i in asked if (place := sequences[i].row) is not None], self._depth)
        of_asked = None if self._trust is None else self._trust[asked]
        refused = None if draft is None else _refused([sequences[i] for i in asked], draft)
        self._candidates.begin([s.root for s in sequences], asked, draft, of_asked, refused)
        for i, (matched, tokens) in enumerate(found):
            if matched:
                ranks = draft.tokens[asked.index(i)] if draft is not None and i in asked else None
                self._candidates.add_continuation(i, matched, tokens, ranks)
        return draft

    def _how_deep(self, habits: list[Habit]) -> int:
        """How many heads run for these: all where they are tried, and as many as a fixed tree could have levels."""
        if any(habit.tried for habit in habits):
            return self._heads
        levels = max((min(habit.nodes - 1, self._heads) for habit in habits if habit.fixed), default=1)
        if all(habit.fixed for habit in habits):
            return levels
        return max(levels, self._depths.choose(len(habits), self._seconds))

    def _decide(self, habits: list[Habit], matched: list[int], sequences: list[Sequence], plan: Plan) -> None:
        """Sets for whom the heads run."""
        if not self._heads:
            return
        self._age += 1
        rows, seconds = self._decided
        changed = not rows <= 1.5 * len(habits) <= 2.25 * rows and self._seconds - seconds >= BUDGET_AFTER
        if self._age < DECIDE_EVERY and not changed:
            for habit in habits:
                if habit.values is None:
                    habit.heads = self._pays
                habit.end_trial()
            return
        steps = self._age
        nodes = self._outlook(habits, matched)
        load = _load(plan)
        share = self._depths.share(len(habits))
        chosen = best(nodes, _lengths(sequences), load, self._prices(load.decoding, share)).nodes
        drafts = set(nodes.row[:chosen][nodes.by_heads[:chosen]].tolist())
        self._age, self._pays, self._decided = 0, bool(drafts), (len(habits), self._seconds)
        runs = drafts or any(habit.fixed for habit in habits)  # in any case, and for one row more it costs little
        share = float(self.cost.heads(len(habits))) / max(self._seconds - self._tried, 1e-9)
        may_try, overdue = bool(runs) or share <= TRIALS, not runs and share <= OVERDUE
        for i, habit in enumerate(habits):
            habit.decide(habit.fixed or i in drafts, steps, may_try, overdue)

    def _outlook(self, habits: list[Habit], matched: list[int]) -> Nodes:
        """What drafting can be expected to bring."""
        rows, chances, by_heads = [], [], []
        for i, (habit, match) in enumerate(zip(habits, matched, strict=True)):
            most = habit.nodes - 1
            parts = [((self._typical if habit.values is None else habit.values)[:most], True)]
            if match:
                continuation, _ = self._acceptance.lookup(match, min(LOOKUP, most))
                parts.append((np.exp(np.cumsum(continuation)), False))
            for chance, takes_heads in parts:
                rows.append(np.full(len(chance), i))
                chances.append(chance)
                by_heads.append(np.full(len(chance), takes_heads))
        chance = np.concatenate(chances)
        order = np.argsort(-chance, kind="stable")
        return Nodes(np.concatenate(rows)[order], chance[order], np.concatenate(by_heads)[order])

    def _remember(self, habits: list[Habit], asked: list[int], nodes: Nodes) -> None:
        """Each asked sequence's best chances by its heads."""
        row, chance = nodes.row[nodes.by_heads], nodes.chance[nodes.by_heads]
        for i in asked:
            newest = np.zeros(REMEMBERED)
            own = chance[row == i][:REMEMBERED]
            newest[: len(own)] = own
            habits[i].remember(newest)
            self._typical = self._typical + RECENT * (newest - self._typical)

    def _budget(
        self, fixed: np.ndarray, nodes: Nodes, lengths: np.ndarray, load: Load, asked: int
    ) -> tuple[np.ndarray, float]:
        """Which of the candidates are drafted, bool [nodes]: of `fixed` rows [rows] all, of the others the best.

        And the value that parts those drafted from those not.
        """
        keep: np.ndarray = fixed[nodes.row]
        if keep.any():
            load = with_trees(load, nodes.row[keep], lengths)
        free = np.flatnonzero(~keep)
        gained = float(nodes.chance[keep].sum())
        others = Nodes(nodes.row[free], nodes.chance[free], np.zeros(len(free), bool))  # the heads have run
        prices = self._prices(load.decoding, self._depth / max(self._heads, 1))
        choice = best(others, lengths, load, prices, asked, gained)
        keep[free[: choice.nodes]] = True
        last = float(others.chance[choice.nodes - 1]) if choice.nodes else 1.0
        next_one = float(others.chance[choice.nodes]) if choice.nodes < len(free) else 0.0
        least = max(math.log((last + next_one) / 2), LEAST_VALUE) if choice.nodes else NO_NODE
        self._keep_pace(load.decoding, choice.tokens, choice.seconds)
        return keep, least

    def _keep_pace(self, decoding: int, tokens: float, seconds: float) -> None:
        """One step's expected tokens and seconds, of so many rows."""
        known, usual = self._pace.get(decoding, (0.0, 0.0)), seconds / self.cost.factor
        self._pace[decoding] = known[0] * (1 - RECENT) + tokens, known[1] * (1 - RECENT) + usual

    def _prices(self, decoding: int, share: float = 1.0) -> Prices:
        """Of a step of so many rows, which runs a `share` of the heads."""
        plain, drafting = self._host
        tokens, seconds = self._pace.get(decoding, (0.0, 0.0))
        rate = tokens / (seconds * self.cost.factor) if seconds else 0.0  # of a machine that is slow just now as well
        return Prices(self.cost, plain, drafting or plain, rate, share)


def _least(fixed: list[bool], value: float) -> np.ndarray | float:
    """From which value on a row's nodes are taken, where it is the same for all rows but those fixed."""
    return np.where(fixed, NEVER, value) if any(fixed) else value


def _matcher(s: Sequence) -> Matcher | None:
    return None if s.choice is None else s.choice.matcher


def _continuation(s: Sequence) -> tuple[int, list[int]]:
    """How many tokens matched, and what followed them, as far as a grammar can go on with it; or what it forces."""
    matcher = _matcher(s)
    if matcher is not None and (forced := matcher.forced()):
        return FORCED, forced[:LOOKUP]
    if s.habit.lookup is None:
        return NOTHING_FOUND
    matched, tokens = s.habit.lookup.continuation(LOOKUP)
    if matched and matcher is not None:
        tokens = tokens[: matcher.valid(tokens)]
    return (matched, tokens) if tokens else NOTHING_FOUND


def _refused(sequences: list[Sequence], draft: Draft) -> np.ndarray | None:
    """Tokens of the first head that grammars refuse, bool [drafted, top_k]; None: there are no grammars."""
    if all(_matcher(s) is None for s in sequences):
        return None
    refused = np.zeros((len(sequences), draft.tokens.shape[2]), bool)
    for k, s in enumerate(sequences):
        if (matcher := _matcher(s)) is not None:
            refused[k] = refused_first(draft.tokens[k, 0], matcher.valid)
    return refused


def _lengths(sequences: list[Sequence]) -> np.ndarray:
    return np.array([s.length for s in sequences])


def _load(plan: Plan) -> Load:
    return Load.planned([s.length for s in plan.sequences], plan.prefill)


@cache
def _chunks(most: int) -> np.ndarray:
    """Prompt tokens to choose from: powers of 2 up to `most`, and that."""
    return np.unique(np.minimum(2 ** np.arange(1, most.bit_length() + 1), most))
