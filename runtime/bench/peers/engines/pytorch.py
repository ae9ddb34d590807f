"""transformers on PyTorch, eager, its own `generate`; a batch is padded on the left."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[list[list[int]]], None]


class Engine:
    def prepare(self, checkpoint: str, out: str, precision: str) -> None:
        """Nothing: the checkpoint is what transformers reads."""

    def load(
        self, checkpoint: str, prepared: str, precision: str, threads: int, rows: int, length: int, simulated: bool
    ) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=DTYPES[precision]).eval()
        return {"versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")}}

    def run(self, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, speculation: str, step: Step) -> None:
        generate(self.model, prompts, new_tokens, ignore_eos, step)


def generate(model: Any, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, step: Step) -> None:
    """transformers' greedy `generate` of any model, told step by step."""
    own = model.generation_config.eos_token_id
    ends = frozenset() if ignore_eos or own is None else frozenset(own if isinstance(own, list) else [own])
    width = max(map(len, prompts))
    padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    with torch.inference_mode():
        model.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([Told(step, len(prompts), ends)]),
        )


class Told(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Stops nothing; hears of every step's tokens, and leaves out the padding after a row's end."""

    def __init__(self, step: Step, rows: int, ends: frozenset[int]) -> None:
        self._step, self._ends, self._live = step, ends, [True] * rows

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        last = input_ids[:, -1].tolist()
        self._step([[token] if live else [] for token, live in zip(last, self._live, strict=True)])
        self._live = [live and token not in self._ends for token, live in zip(last, self._live, strict=True)]
        return torch.zeros(len(last), dtype=torch.bool)
