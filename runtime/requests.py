"""Requests become sequences: what is asked, checked and made ready to run."""

import secrets
from collections.abc import Sequence as Items

from tokenizers import Tokenizer

from runtime.admission import admit
from runtime.choice import Choice
from runtime.grammar import Grammars
from runtime.habit import Habit
from runtime.manifest import Manifest
from runtime.params import EngineConfig, SamplingParams
from runtime.sequence import Sequence
from runtime.text import Pieces, TextStream


class Requests:
    """Numbers them, from 0."""

    def __init__(self, manifest: Manifest, config: EngineConfig, tokenizer: Tokenizer) -> None:
        self._manifest, self._config = manifest, config
        self._pieces = Pieces(tokenizer)
        self.grammars = Grammars(tokenizer, self._pieces, manifest.vocab, manifest.eos)
        self._next_id = 0

    def sequence(self, prompt: Items[int], params: SamplingParams, arrived: float) -> Sequence:
        """Raises PromptError, ContextError, MemoryBudgetError or ParameterError for what can never be served."""
        admission = admit(prompt, params, self._manifest, self._config)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        sequence = Sequence(
            id=self._next_id,
            prompt=list(prompt),
            params=params,
            seed=seed,
            habit=Habit(
                admission.nodes,
                fixed=params.speculation != "auto",
                looks=admission.nodes > 1 and self._config.lookup,
            ),
            limit=admission.limit,
            reserved=admission.reserved,
            stream=TextStream(
                self._pieces, params.stop, params.include_stop_str_in_output, params.min_tokens,
                bare=params.structured_outputs is None,
            ),
            choice=self._choice(prompt, params, seed) if Choice.needed(params) else None,
            arrived=arrived,
        )  # fmt: skip
        self._next_id += 1
        return sequence

    def _choice(self, prompt: Items[int], params: SamplingParams, seed: int) -> Choice:
        outputs = params.structured_outputs
        matcher = None if outputs is None else self.grammars.matcher(outputs)
        return Choice(params, seed, prompt, self._manifest.vocab, self._manifest.eos, matcher)
