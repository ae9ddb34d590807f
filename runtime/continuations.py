"""What goes on without the heads: what a grammar forces, or what followed the newest tokens where they stood before.

Prompt lookup costs a little in every step that asks it. So who it knows nothing for asks it more rarely, and even more
rarely while nothing that is worth this time comes of it for anyone.
"""

from collections.abc import Sequence as Items

from runtime.acceptance import FORCED
from runtime.forest import LOOKUP
from runtime.lookup import Lookup
from runtime.sequence import Sequence

UNASKED = 3, 15  # steps in which a sequence that it knew nothing for does not ask: usually; while it does not pay
EXPLORE_EVERY = 8  # of so many sequences one asks as usual all the same
ASKING = 10e-6  # seconds that asking takes amid a step
INDEXED = 8  # tokens that take as long to index
MEMORY = 128  # asked, over which it is counted what that brings

Continuation = tuple[int, list[int]]  # how many tokens matched, and what followed them
NOT_FOUND: Continuation = (0, [])


class Continuations:
    def __init__(self, eos: Items[int]) -> None:
        """`eos` tokens end answers."""
        self._eos = frozenset(eos)
        self._asked = 0  # how often, in this step; indexing counts as well
        self._brings = 1.0  # accepted nodes for each time
        self._pays = True

    def find(self, sequences: Items[Sequence]) -> list[Continuation]:
        self._asked = 0
        return [self._of(s) for s in sequences]

    def learn(self, accepted: int, rate: float) -> None:
        """So many nodes that lookup found in this step were accepted, and a second is worth `rate` tokens."""
        self._brings += (accepted - self._asked * self._brings) / max(MEMORY, self._asked)
        self._pays = self._brings >= ASKING * rate

    def _of(self, s: Sequence) -> Continuation:
        """What a grammar forces, else what lookup finds: up to an end token, and to what a grammar refuses."""
        if s.matcher is not None and (forced := s.matcher.forced()):
            return FORCED, forced[: min(LOOKUP, s.useful)]
        habit = s.habit
        if not habit.looks:
            return NOT_FOUND
        if habit.unasked is None:
            habit.unasked = UNASKED[1] if self._rarely(s) else 0
        if habit.unasked:
            habit.unasked -= 1
            return NOT_FOUND
        self._asked += 1
        if habit.lookup is None:
            habit.lookup = Lookup(s.prompt + s.tokens)
            self._asked += len(habit.lookup) // INDEXED
        else:
            habit.lookup.extend(s.tokens[len(habit.lookup) - len(s.prompt) :])
        matched, tokens = habit.lookup.continuation(min(LOOKUP, s.useful))
        if not matched:
            habit.unasked = UNASKED[self._rarely(s)]
            return NOT_FOUND
        if not s.params.ignore_eos and not self._eos.isdisjoint(tokens):
            tokens = tokens[: next(i for i, token in enumerate(tokens) if token in self._eos)]
        if tokens and s.matcher is not None:
            tokens = tokens[: s.matcher.valid(tokens)]
        return (matched, tokens) if tokens else NOT_FOUND

    def _rarely(self, s: Sequence) -> bool:
        return not self._pays and s.id % EXPLORE_EVERY != 0
