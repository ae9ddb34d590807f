"""What a step's result gives one sequence: the tokens that the model chose, and where they end its answer."""

import math
from collections.abc import Sequence as Items

from runtime.choice import NOTHING
from runtime.errors import ParameterError, StepError
from runtime.sampling import draw, draw_best
from runtime.sequence import FinishReason, Output, Sequence
from runtime.session import Result
from runtime.tree import Tree
from runtime.verify import children, verify


def walk(s: Sequence, tree: Tree, result: Result, at: int) -> tuple[list[int], list[int]]:
    """Verifies a tree whose nodes' logits begin `at` in the result: the path of its nodes, and the tokens chosen there.

    Raises StepError for logits that are no distribution, ParameterError for a grammar that cannot go on.
    """
    if s.params.temperature == 0 and s.choice is None:
        best = result.argmax[at : at + len(tree.tokens)].tolist()
        path, chosen = verify(tree, lambda node, t: best[node])
        _check_finite(result, at + path[-1], chosen[-1])  # the last node has seen all others of its path
        return path, chosen
    drafted, state = s.params.typical_acceptance, s.choice

    def choice(node: int, t: int) -> int:
        try:
            return choose(s, result, at + node, t, children(tree, node) if drafted else ())
        except ParameterError:
            if t == 0:
                raise
            return NOTHING

    path, chosen = verify(tree, choice)
    if chosen[-1] == NOTHING and state is not None and state.complete is None:
        # The grammar cannot go on: what was chosen before is emitted, as without a tree, and the next step says so.
        return path[:-1], chosen[:-1]
    return path, chosen


def choose(s: Sequence, result: Result, node: int, t: int, drafted: Items[int] = ()) -> int:
    """The model's own token after a node, the t-th of this step; `drafted` are what its children continue with.

    Raises StepError, or ParameterError for a grammar that cannot go on.
    """
    if s.choice is not None:
        return s.choice.choose(result.row(node), drafted)
    if s.params.temperature == 0:
        best = int(result.argmax[node])
        _check_finite(result, node, best)
        return best
    at = len(s.tokens) + t
    few = result.best(node)
    token = None if few is None else draw_best(few, s.params, s.seed, 0, at)
    return draw(result.row(node), s.params, s.seed, 0, at) if token is None else token


def emit(s: Sequence, tokens: list[int], eos: Items[int]) -> tuple[list[str], FinishReason | None]:
    """Appends tokens up to the first that ends the sequence: the text that each shows, and why it ends, if it does."""
    pieces: list[str] = []
    reason: FinishReason | None = None
    for token in tokens:
        s.tokens.append(token)
        if (token in eos and not s.params.ignore_eos) or (
            token in s.params.stop_token_ids and len(s.tokens) > s.params.min_tokens  # a grammar may force it early
        ):
            pieces.append("")
            reason = "stop"
            break
        piece, stopped = s.stream.push(token)
        pieces.append(piece)
        if stopped or (s.choice is not None and s.choice.complete == len(s.tokens)):
            reason = "stop"
            break
        if len(s.tokens) == s.limit:
            reason = "length"
            break
    s.text += "".join(pieces)
    return pieces, reason


def output_of(
    s: Sequence, before: int, pieces: Items[str] = (), tree: Tree | None = None, path: Items[int] = ()
) -> Output:
    """What a sequence has been given since it had `before` tokens."""
    logprobs = () if s.choice is None else tuple(s.choice.logprobs[before : len(s.tokens)])
    return Output(s, tuple(s.tokens[before:]), "".join(pieces), s.finish_reason, logprobs, pieces, tree, path)


def _check_finite(result: Result, node: int, token: int) -> None:
    value = result.peak(node)
    if not math.isfinite(value):
        raise StepError(f"the model's logits have the maximum {value} at token {token}: it has to be finite")
