"""What an engine has done so far: counters, and nothing that is not counted."""

from bisect import bisect_left
from dataclasses import dataclass, field, fields
from typing import Any

from runtime.tree import Tree


@dataclass(slots=True)
class Decisions:
    """What was drafted, of the rows x steps that may draft."""

    rows: int = 0
    nodes: int = 0  # roots left out
    compared: int = 0  # rows of which a look was taken at what became of their trees
    expected: float = 0.0  # tokens these were to emit
    realised: int = 0  # and would have emitted, were no answer cut off
    lookup_drafted: int = 0  # nodes by prompt lookup, or that a grammar forced
    lookup_accepted: int = 0
    heads_runs: int = 0
    heads_rows: int = 0  # rows they ran for
    cost_error: float = 0.0  # recent mean of |measured / predicted - 1| of the decoder's time

    def count(self, rows: int, nodes: int) -> None:
        """One step's trees; `nodes` with their roots."""
        self.rows += rows
        self.nodes += nodes - rows

    def compare(self, rows: int, expected: float, realised: int) -> None:
        """What one step's trees were to emit, and did."""
        self.compared += rows
        self.expected += expected
        self.realised += realised

    def figures(self) -> dict[str, Any]:
        """Counters, and of one row's step: nodes chosen, tokens expected and realised."""
        rows, compared = self.rows or None, self.compared or None
        return {
            **{name: getattr(self, name) for name in DECISIONS},
            "nodes_per_row": rows and self.nodes / rows,
            "expected_tokens_per_step": compared and self.expected / compared,
            "realised_tokens_per_step": compared and self.realised / compared,
        }


STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # vLLM's bounds, and 2 and 4
DECISIONS = tuple(entry.name for entry in fields(Decisions))


@dataclass(slots=True)
class Stats:
    steps: int = 0
    failed_steps: int = 0
    tokens: int = 0  # emitted
    prefilled: int = 0  # prompt tokens computed and committed
    reused: int = 0  # prompt tokens taken from rows that began alike
    decoded_rows: int = 0  # rows of decode steps: what tokens per step divides by
    decoded_tokens: int = 0  # emitted by them
    drafts: int = 0  # trees of more than a root
    drafted: int = 0
    accepted: int = 0
    steps_by_tokens: list[int] = field(default_factory=lambda: [0] * (len(STEP_TOKENS) + 1))  # the last: of more
    drafted_by_depth: list[int] = field(default_factory=list)  # [depth - 1]
    accepted_by_depth: list[int] = field(default_factory=list)
    session_seconds: float = 0.0  # in decoder and heads
    host_seconds: float = 0.0  # the rest of the steps
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})

    def count_step(self, tokens: int) -> None:
        """One step that computed so many tokens of prompts and emitted so many of answers, together."""
        self.steps += 1
        self.steps_by_tokens[bisect_left(STEP_TOKENS, tokens)] += 1

    def count_tree(self, tree: Tree, accepted: int, emitted: int) -> None:
        """One row's decode step: `accepted` nodes below the root, `emitted` tokens kept of it."""
        self.decoded_rows += 1
        self.decoded_tokens += emitted
        self.drafted += len(tree.tokens) - 1
        self.accepted += accepted
        if len(tree.tokens) > 1:
            self.drafts += 1
            depths = tree.depth.tolist()
            more = [0] * (max(depths) - len(self.drafted_by_depth))
            self.drafted_by_depth += more
            self.accepted_by_depth += more
            for depth in depths[1:]:
                self.drafted_by_depth[depth - 1] += 1
            for depth in range(accepted):
                self.accepted_by_depth[depth] += 1

    def figures(self) -> dict[str, Any]:
        """All counters as they are now, and the tokens of one row's step. Every step asks: asdict would take long."""
        rows = self.decoded_rows or None
        return {
            **{name: getattr(self, name) for name in STATS},
            "drafted_by_depth": self.drafted_by_depth.copy(),
            "accepted_by_depth": self.accepted_by_depth.copy(),
            "finished": self.finished.copy(),
            "tokens_per_step": rows and self.decoded_tokens / rows,
        }


STATS = tuple(entry.name for entry in fields(Stats))
