"""How one sequence chooses its tokens where neither the argmax nor a draw from the model's logits is all of it.

Verification asks for the model's own token at each node it visits and walks on only to the child that continues with
it. So what came before a node is what the sequence has emitted, and what this walk has chosen: one state that only goes
forward serves every node, and no tree can change what is chosen.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.grammar import Matcher
from runtime.params import SamplingParams
from runtime.sampling import Logprobs, draw, logprobs, typical

NOTHING = -1  # after a complete structured output; no child continues with it, so the walk ends


class Choice:
    """Penalties, biases, a grammar, least lengths and log-probabilities of one sequence: see SamplingParams."""

    def __init__(
        self, params: SamplingParams, seed: int, prompt: Sequence[int], vocab: int, eos: Sequence[int],
        matcher: Matcher | None,
    ) -> None:  # fmt: skip
        self.logprobs: list[Logprobs] = []  # of all tokens chosen, if they are asked for
        self.complete: int | None = None  # after so many tokens, end token included, the structured output was complete
        self._params = params
        self._seed = seed
        self.matcher = matcher
        self._eos = frozenset(eos)
        self._chosen = 0
        self._ends = np.array([*params.stop_token_ids, *(() if params.ignore_eos else eos)], np.int64)
        self._biased = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        counted = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts = np.zeros(vocab, np.float32) if counted else None  # of each token in the answer
        self._seen: NDArray[np.bool_] | None = None  # in prompt or answer
        if params.repetition_penalty != 1:
            self._seen = np.zeros(vocab, bool)
            self._seen[list(prompt)] = True

    @classmethod
    def needed(cls, params: SamplingParams) -> bool:
        """Whether the argmax or a plain draw would not do."""
        penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
        constraints = params.logit_bias or params.min_tokens or params.structured_outputs
        return bool(penalties or constraints or params.logprobs is not None or params.typical_acceptance)

    def choose(self, logits: NDArray[np.float32], drafted: Sequence[int]) -> int:
        """The next token, or NOTHING.

        `logits` [vocab] are the model's after all tokens chosen so far; `drafted` tokens have nodes that would follow.
        Raises StepError, or ParameterError where its grammar cannot go on.
        """
        if self.complete is not None:
            return NOTHING
        adjusted = self._adjust(logits)
        token = typical(adjusted, self._params, drafted) if self._params.typical_acceptance else None
        if token is None:
            token = draw(adjusted, self._params, self._seed, 0, self._chosen)
        if self._params.logprobs is not None:
            self.logprobs.append(logprobs(logits, token, self._params.logprobs))
        self._push(token)
        return token

    def _adjust(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the token is chosen by. In vLLM's order: bias, repetition, frequency, presence."""
        params, adjusted = self._params, logits.copy()
        adjusted[self._biased] += self._bias
        if self._seen is not None:
            seen = adjusted[self._seen]
            penalty = np.float32(params.repetition_penalty)
            adjusted[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts is not None:
            adjusted -= np.float32(params.frequency_penalty) * self._counts
            adjusted -= np.float32(params.presence_penalty) * (self._counts > 0)
        allowed = None if self.matcher is None else self.matcher.allowed()
        if self._chosen < params.min_tokens:
            early = np.ones(len(adjusted), bool) if allowed is None else allowed.copy()
            early[self._ends] = False
            if early.any():  # else the structured output is complete, or goes on with a stop token: no end as yet
                allowed = early
        if allowed is not None:
            adjusted[~allowed] = -np.inf
        return adjusted

    def _push(self, token: int) -> None:
        self._chosen += 1
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True
        if self.matcher is not None:
            if token not in self._eos:
                self.matcher.push(token)
            if token in self._eos or self.matcher.complete:
                self.complete = self._chosen
