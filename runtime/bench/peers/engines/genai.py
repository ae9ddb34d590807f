"""onnxruntime-genai on the CPU, a model of its own builder; speculation is its n-gram lookup."""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

NGRAM, DRAFT = 3, 8  # tokens that have to match, drafted at most: the example of its documentation
Step = Callable[[list[list[int]]], None]


class Engine:
    def prepare(self, checkpoint: str, out: str, precision: str) -> None:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        cache = str(Path(out) / "cache")
        subprocess.run([*builder, "-i", checkpoint, "-o", out, "-p", precision, "-e", "cpu", "-c", cache], check=True)

    def load(
        self, checkpoint: str, prepared: str, precision: str, threads: int, rows: int, length: int, simulated: bool
    ) -> dict[str, Any]:
        config = og.Config(prepared)
        own = json.loads((Path(prepared) / "genai_config.json").read_text())["model"]
        ends = own["eos_token_id"]
        self.ends, self.pad = frozenset(ends if isinstance(ends, list) else [ends]), own["pad_token_id"]
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model: Any = og.Model(config)
        return {"versions": {name: importlib.metadata.version(name) for name in ("onnxruntime-genai", "onnxruntime")}}

    def run(self, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, speculation: str, step: Step) -> None:
        width = max(map(len, prompts))
        params = og.GeneratorParams(self.model)
        length = width + new_tokens
        params.set_search_options(
            do_sample=False, batch_size=len(prompts), max_length=length, min_length=length if ignore_eos else 0
        )
        if speculation == "lookup":
            params.set_speculative_options(ngram_size=NGRAM, max_draft_tokens=DRAFT)
        generator = og.Generator(self.model, params)
        # on the right, with its own padding token: padded on the left, its CPU attention gives other texts
        generator.append_tokens(np.array([p + [self.pad] * (width - len(p)) for p in prompts], np.int32))
        live = [True] * len(prompts)
        while not generator.is_done():
            generator.generate_next_token()
            new = [int(token) for token in generator.get_next_tokens()]
            step([[token] if alive else [] for token, alive in zip(new, live, strict=True)])
            live = [alive and (ignore_eos or token not in self.ends) for token, alive in zip(new, live, strict=True)]
