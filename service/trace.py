"""What one step did to one answer: the tokens it emitted, and the draft tree they come from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.prompts import Prompts

if TYPE_CHECKING:
    from runtime.sequence import Output


@dataclass(frozen=True, slots=True)
class Trace:
    """The engine's thread takes references, the event loop makes texts of them.

    Of `tokens`, the first `len(accepted)` continue the tree as these nodes do, and the others are the model's own.
    """

    seconds: float  # since the request came
    tokens: Sequence[int]  # emitted
    pieces: Sequence[str]  # [tokens] what each added to the answer's text
    nodes: Sequence[int]  # [nodes] tokens of the draft tree, its root first; none where a prompt gave the first token
    parents: Sequence[int]  # [nodes]
    accepted: Sequence[int]  # nodes below the root whose tokens were emitted

    @classmethod
    def of(cls, output: "Output", began: float) -> "Trace":
        """`began` is when the request came, as `time.monotonic` told."""
        tree, kept = output.tree, output.path[1 : len(output.tokens) + 1]
        nodes, parents = ((), ()) if tree is None else (tree.tokens, tree.parents)
        return cls(time.monotonic() - began, output.tokens, output.pieces, nodes, parents, kept)

    def dump(self, prompts: Prompts) -> dict[str, Any]:
        """For JSON: token ids with what they say, a node's by itself, an emitted one's as it went into the text."""
        emitted = zip(self.tokens, self.pieces, strict=True)
        nodes = zip(self.nodes, self.parents, strict=True)
        return {
            "seconds": round(self.seconds, 6),
            "tokens": [{"id": token, "text": text} for token, text in emitted],
            "nodes": [{"id": token, "text": prompts.token(token)[0], "parent": parent} for token, parent in nodes],
            "accepted": list(self.accepted),
        }
