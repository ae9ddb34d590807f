"""llama.cpp through llama-cpp-python's low-level interface: one `llama_decode` a step over all sequences.

Its high-level class runs one sequence and samples through a chain of candidates; an argmax over the logits is faster.
Speculation is its LlamaPromptLookupDecoding, verified in the same batch.
"""

import ctypes
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from .gguf_file import write_gguf

LOOKUP = 2  # tokens drafted at most: its documentation's advice for CPUs
Step = Callable[[list[list[int]]], None]


class Engine:
    def prepare(self, checkpoint: str, out: str, precision: str) -> None:
        write_gguf(Path(checkpoint), Path(out) / "model.gguf", precision)

    def load(
        self, checkpoint: str, prepared: str, precision: str, threads: int, rows: int, length: int, simulated: bool
    ) -> dict[str, Any]:
        ll.llama_backend_init()
        file = Path(prepared) / "model.gguf"
        params = ll.llama_model_default_params()
        params.load_mode = ll.LLAMA_LOAD_MODE_NONE  # a mapped file's pages may be dropped while other engines run
        self.model = ll.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise ValueError(f"{file} does not load")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.end = ll.llama_vocab_eos(ll.llama_model_get_vocab(self.model))
        self.threads, self.length = threads, length
        self.contexts: dict[int, Any] = {}
        self.batch = ll.llama_batch_init(rows * length, 0, 1)
        return {
            "versions": {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")},
            "notes": [ll.llama_print_system_info().decode().strip()],
        }

    def run(self, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, speculation: str, step: Step) -> None:
        context = self._context(len(prompts))
        memory = ll.llama_get_memory(context)
        ll.llama_memory_clear(memory, False)
        lookup = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP) if speculation == "lookup" else None
        texts = [np.array(prompt, np.intc) for prompt in prompts]
        ends = [len(prompt) + new_tokens for prompt in prompts]
        fed = dict(enumerate(texts))  # of each live row: what its next step computes
        known = [0] * len(prompts)  # tokens in the cache
        while fed:
            best = self._decode(context, [(row, known[row], tokens) for row, tokens in fed.items()], known)
            new: list[list[int]] = [[] for _ in prompts]
            for row in list(fed):
                new[row] = self._accept(fed[row], best[row], known[row] == 0)
                if not ignore_eos and self.end in new[row]:
                    new[row] = new[row][: new[row].index(self.end) + 1]
                new[row] = new[row][: ends[row] - len(texts[row])]
                known[row] = len(texts[row]) + len(new[row]) - 1
                texts[row] = np.concatenate([texts[row], np.array(new[row], np.intc)])
                if lookup is not None:
                    ll.llama_memory_seq_rm(memory, row, known[row], -1)
                if len(texts[row]) == ends[row] or (not ignore_eos and new[row][-1] == self.end):
                    del fed[row]
                    continue
                fed[row] = texts[row][-1:]
                if lookup is not None:
                    room = ends[row] - len(texts[row]) - 1
                    fed[row] = np.concatenate([fed[row], lookup(texts[row])[:room]])
            step(new)

    def _accept(self, tokens: np.ndarray, best: list[int], prompt: bool) -> list[int]:
        """What the model says after each fed token, as far as the draft agreed with it."""
        if prompt:
            return best
        agreed = 0
        while agreed < len(tokens) - 1 and tokens[agreed + 1] == best[agreed]:
            agreed += 1
        return best[: agreed + 1]

    def _decode(self, context: Any, work: list[tuple[int, int, np.ndarray]], known: list[int]) -> dict[int, list[int]]:
        """Runs (row, position, tokens) of all rows: the most probable next token after each, of a prompt the last."""
        batch, at, wanted = self.batch, 0, []
        for row, position, tokens in work:
            for i, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = int(token), position + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = position > 0 or i == len(tokens) - 1
                if batch.logits[at]:
                    wanted.append((row, at))
                at += 1
        batch.n_tokens = at
        if status := ll.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {status} for {at} tokens")
        best: dict[int, list[int]] = {row: [] for row, _, _ in work}
        for row, i in wanted:
            logits = np.ctypeslib.as_array(
                ctypes.cast(ll.llama_get_logits_ith(context, i), ctypes.POINTER(ctypes.c_float)), (self.vocab,)
            )
            best[row].append(int(logits.argmax()))
        return best

    def _context(self, rows: int) -> Any:
        """One for each number of sequences: each sequence's cache is apart, as llama.cpp advises."""
        if rows not in self.contexts:
            params = ll.llama_context_default_params()
            params.n_ctx, params.n_seq_max, params.kv_unified = rows * self.length, rows, False
            params.n_batch = rows * self.length
            params.n_threads = params.n_threads_batch = self.threads
            self.contexts[rows] = ll.llama_init_from_model(self.model, params)
            if not self.contexts[rows]:
                raise ValueError(f"no context for {rows} sequences")
        return self.contexts[rows]
