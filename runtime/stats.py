"""What an engine has done so far: counters, and nothing that is not counted."""

from dataclasses import dataclass, field

import numpy as np

from runtime.tree import Tree


@dataclass(slots=True)
class Stats:
    steps: int = 0
    failed_steps: int = 0
    tokens: int = 0  # emitted
    prefilled: int = 0  # prompt tokens committed
    decoded_rows: int = 0  # rows of decode steps: what tokens per step divides by
    decoded_tokens: int = 0  # emitted by them
    drafted: int = 0
    accepted: int = 0
    drafted_by_depth: list[int] = field(default_factory=list)  # [depth - 1]
    accepted_by_depth: list[int] = field(default_factory=list)
    session_seconds: float = 0.0  # in decoder and heads
    host_seconds: float = 0.0  # the rest of the steps
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})

    def count_tree(self, tree: Tree, accepted: int, emitted: int) -> None:
        """One row's decode step: `accepted` nodes below the root, `emitted` tokens kept of it."""
        self.decoded_rows += 1
        self.decoded_tokens += emitted
        self.drafted += len(tree.tokens) - 1
        self.accepted += accepted
        if len(tree.tokens) > 1:
            for depth, nodes in enumerate(np.bincount(tree.depth)[1:].tolist()):
                if depth == len(self.drafted_by_depth):
                    self.drafted_by_depth.append(0)
                    self.accepted_by_depth.append(0)
                self.drafted_by_depth[depth] += nodes
                self.accepted_by_depth[depth] += depth < accepted
