"""How long steps take here, learnt from those that were timed, and what follows from that.

The prices of the next step's nodes, the rate at which tokens come, and how much of a prompt a step can take in.
"""

from functools import cache

import numpy as np

from runtime.budget import Prices
from runtime.cost import CostModel
from runtime.load import Load
from runtime.scheduler import Scheduler
from runtime.session import Batch
from runtime.stats import Decisions

BUDGET_AFTER = 0.008, 0.002  # seconds in the session until the next budget: usually, and where drafts disappoint
BUDGET_ROW = 0.002  # and more for each further row
TIME_AFTER = 0.008  # seconds in the session, after which a step's time is learnt from
HOST = 2, 5  # rows that what a step of any size takes outside the session is worth: plain, drafting
RECENT = 0.05  # weight of the newest step in what is known of the last ones
RECENT_RATE = 0.02  # and in their rate, where luck weighs more


class Pace:
    def __init__(self, cost: CostModel, decisions: Decisions) -> None:
        """`decisions` hears how far off the cost model is."""
        self.cost = cost
        self.seconds = 0.0  # in the decoder, in all
        self._decisions = decisions
        self._host = [0.0, 0.0]  # seconds of a step outside the session over (rows + HOST): plain, drafting
        self._token = 0.0  # and more for each token that it gives
        self._beside = 0.0  # seconds of any step beside its decoder run over (rows + HOST for drafting)
        # of the last steps, and of those of them that drafted nothing, by rows that decode: tokens, seconds in the
        # session at the machine's usual speed, and outside it
        self._known: dict[int, tuple[float, float, float]] = {}
        self._plain: dict[int, tuple[float, float, float]] = {}
        self._usual: Load | None = None  # the last step in which every row decoded
        self._untimed = 0.0  # seconds in decoder and heads since a step's time was learnt from
        self._unplanned = 0.0  # and since a budget
        self._heads_timed = 0.0  # of `seconds`, when a run of the heads was learnt from

    def budget_is_due(self, rows: int, disappointing: bool = False, lasts: int = 1) -> bool:
        """Whether a step of so many rows should have a budget of its own; those before it take nodes of like value.

        The last one `lasts` so many times as long as usual.
        """
        return self._unplanned >= lasts * (BUDGET_AFTER[disappointing] + BUDGET_ROW * (rows - 1))

    def ran(self, batch: Batch, decoding: int, seconds: float) -> None:
        """Learns from a decoder run, in which so many rows decoded, that took so long."""
        self._unplanned += seconds
        self.seconds += seconds
        self._untimed += seconds
        if self._untimed < TIME_AFTER:
            return
        self._untimed = 0.0
        load = Load.of(batch, decoding)
        if load.decoding == load.rows:
            self._usual = load
        what = load.rows, load.tokens, load.widest, load.attended, load.silent
        error = abs(seconds / self.cost.observe_decoder(*what, seconds, load.keys) - 1.0)
        self._decisions.cost_error += RECENT * (error - self._decisions.cost_error)

    def heads_ran(self, rows: int, share: float, seconds: float) -> None:
        """Learns from a run of a `share` of the heads for so many rows, that took so long."""
        self._untimed += seconds
        if self.seconds - self._heads_timed >= TIME_AFTER:
            self._heads_timed = self.seconds
            self.cost.observe_heads(rows, seconds, share)

    def spent(self, rows: int, seconds: float) -> None:
        """Learns how long a step of so many rows, prompts among them, took beside its decoder run."""
        self._beside = _recent(self._beside, seconds / (rows + HOST[True]))

    def planned(self) -> None:
        """This step has a budget of its own."""
        self._unplanned = 0.0

    def took(self, rows: int, drafted: bool, inside: float, seconds: float, tokens: int, giving: float) -> None:
        """Learns from what a step of decoding rows brought, and how long it took `inside` the session and outside.

        Of the `seconds` outside it took `giving` to choose its `tokens` and to hand them out.
        """
        for known in (self._known,) if drafted else (self._known, self._plain):
            given, usual, outside = (value * (1 - RECENT_RATE) for value in known.get(rows, (0.0, 0.0, 0.0)))
            known[rows] = given + tokens, usual + inside / self.cost.factor, outside + seconds
        self._host[drafted] = _recent(self._host[drafted], (seconds - giving) / (rows + HOST[drafted]))
        if tokens:
            self._token = _recent(self._token, giving / tokens)

    def prices(self, load: Load, share: float = 1.0) -> Prices:
        """Of a planned step, which runs a `share` of the heads."""
        plain, drafting = (seconds * (load.rows + extra) for seconds, extra in zip(self._host, HOST, strict=True))
        # of steps in which all of these rows decode: prompts wait as long as the others do
        rate, floor = (self._rate(known.get(load.rows)) for known in (self._known, self._plain))
        return Prices(self.cost, plain, drafting or plain, self._token, rate, floor, share)

    def _rate(self, known: tuple[float, float, float] | None) -> float:
        """Tokens a second of such steps; 0 where there were none."""
        if known is None:
            return 0.0
        tokens, usual, host = known
        # a machine that is slow just now is so for the session of every step; the host's part is as it is
        seconds = usual * self.cost.factor + host
        return tokens / seconds if seconds else 0.0  # they took none by a clock that stands

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
        alone += self._beside * (full + HOST[True])
        beside += self._beside * (decoding + 1 + HOST[True])
        fitting = int(np.count_nonzero(beside <= slowdown * alone))
        return int(choices[max(0, fitting - 1)])


def _recent(known: float, newest: float) -> float:
    """The recent average, once there is another; what is far above is another matter."""
    return newest if known == 0.0 else known + RECENT * (min(newest, 4 * known) - known)


@cache
def _chunks(most: int) -> np.ndarray:
    """Prompt tokens to choose from: powers of 2 up to `most`, and that."""
    return np.unique(np.minimum(2 ** np.arange(1, most.bit_length() + 1), most))
