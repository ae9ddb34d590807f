"""Prompt lookup: a sequence's last tokens, found earlier in its own prompt or answer, and how they went on there."""

from collections.abc import Sequence

LONGEST = 8  # tokens of a match that are counted


class Lookup:
    """One sequence's tokens, indexed by the last two and the last three; each is a few hash-table operations."""

    def __init__(self, tokens: Sequence[int]) -> None:
        before = self._tokens = list(tokens[:-1])
        pairs = zip(before, before[1:], strict=False)
        # where these two or three tokens ended last
        self._last: dict[tuple[int, ...], int] = dict(zip(pairs, range(1, len(before)), strict=False))
        triples = zip(before, before[1:], before[2:], strict=False)
        self._last.update(zip(triples, range(2, len(before)), strict=False))
        self._found: int | None = None  # where the newest tokens ended before
        self.extend(tokens[-1:])

    def extend(self, newest: Sequence[int]) -> None:
        tokens, last, found = self._tokens, self._last, self._found
        for place, token in enumerate(newest, len(tokens)):
            found = None
            tokens.append(token)
            if place >= 1:
                pair = tokens[-2], token
                found, last[pair] = last.get(pair), place
            if place >= 2:
                triple = tokens[-3], tokens[-2], token
                found, last[triple] = last.get(triple, found), place  # the longer one, where both are known
        self._found = found

    def __len__(self) -> int:
        return len(self._tokens)

    def continuation(self, most: int) -> tuple[int, list[int]]:
        """How many tokens match (2 to 8) and what followed them, `most` tokens; (0, []) where nothing matches.

        A match that runs into the end is periodic, and goes on with its period.
        """
        if self._found is None:
            return 0, []
        tokens, found = self._tokens, self._found
        period, matched = len(tokens) - 1 - found, 2
        while matched < LONGEST and found >= matched and tokens[found - matched] == tokens[-1 - matched]:
            matched += 1
        known = tokens[found + 1 : found + 1 + most]
        while len(known) < most:
            known.append(known[len(known) - period])
        return matched, known
