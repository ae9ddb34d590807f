"""Gorgon's own entry, driven as its peers are: `python -m runtime.bench.peers.gorgon [HEADS]`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.bench.machine import versions
from runtime.bench.peers.host import Step, serve
from runtime.bench.simulated import SimulatedSession
from runtime.engine import Engine
from runtime.errors import StepError
from runtime.manifest import Manifest
from runtime.params import EngineConfig, SamplingParams

ARTIFACT = "artifact"
CHUNK = 256  # prompt tokens a step: steps with prompts are not measured
SLOWDOWN = 1e6
SEED = 0  # of simulated acceptance


class Gorgon:
    def __init__(self, heads: str | None) -> None:
        self._heads = heads

    def prepare(self, checkpoint: str, out: str, precision: str) -> None:
        heads = [] if self._heads is None else ["--heads", self._heads]
        artifact = str(Path(out) / ARTIFACT)
        export = [sys.executable, "-m", "export", checkpoint, *heads, "--precision", precision, "--out", artifact]
        subprocess.run(export, check=True)

    def load(
        self, checkpoint: str, prepared: str, precision: str, threads: int, rows: int, length: int, simulated: bool
    ) -> dict[str, Any]:
        artifact = Path(prepared) / ARTIFACT
        manifest = Manifest.read(artifact)
        memory = rows * manifest.capacity * manifest.kv_bytes
        # steps with prompts are not measured: all rows decode as soon as can be
        config = EngineConfig(
            rows=rows, chunk=CHUNK, kv_memory=memory, threads=threads, prefill_slowdown=SLOWDOWN, prefix_reuse=False
        )
        self._engine = Engine.from_artifact(artifact, config)
        if simulated:
            self._engine.session = SimulatedSession(self._engine.session, SEED)
        return {"versions": versions()}

    def run(self, prompts: list[list[int]], new_tokens: int, ignore_eos: bool, speculation: str, step: Step) -> None:
        nodes = int(speculation) if speculation.isdigit() else speculation
        params = SamplingParams(max_tokens=new_tokens, ignore_eos=ignore_eos, speculation=nodes)
        rows = {self._engine.add(prompt, params).id: row for row, prompt in enumerate(prompts)}
        while self._engine.has_work:
            new: list[list[int]] = [[] for _ in prompts]
            for output in self._engine.step():
                if output.finish_reason == "error":
                    raise StepError(f"a sequence failed: {output.sequence.error}")
                new[rows[output.sequence.id]] = list(output.tokens)
            if any(new):
                step(new)


if __name__ == "__main__":
    serve(lambda: Gorgon(sys.argv[1] if len(sys.argv) > 1 else None))
