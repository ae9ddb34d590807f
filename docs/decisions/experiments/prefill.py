"""A prompt of 512 tokens, and of 128: an int4 artifact beside llama.cpp's Q4_0 on the same checkpoint.

Both are given the whole prompt at once and take turns, one stopped while the other runs. `python -m runtime.bench
peers` installs llama.cpp and writes its file.

Run:  .venv/bin/python -m docs.decisions.experiments.prefill ARTIFACT .peers/environments/llama.cpp \
          .peers/models/NAME/llama.cpp-Q4_0-HASH
"""

import sys
import time
from pathlib import Path

import numpy as np

from runtime.batch import Packer
from runtime.bench.compare import Ratio, Spread
from runtime.bench.markdown import ratio, spread, table
from runtime.bench.peers import host
from runtime.bench.peers.process import Process
from runtime.machine import usable_cores
from runtime.manifest import Manifest
from runtime.ragged import RaggedSession

PROMPTS = (512, 128)
TURNS, PATIENCE = 5, 300.0  # seconds for an answer


def main() -> None:
    artifact, environment, prepared = map(Path, sys.argv[1:4])
    manifest, cores = Manifest.read(artifact), usable_cores()
    peer = Process("llama.cpp", [str(environment / "bin/python"), "-P", host.__file__, "llamacpp"], cores,
                   Path("/dev/null"))  # fmt: skip
    peer.ask({"do": "load", "checkpoint": "", "prepared": str(prepared), "precision": "Q4_0", "threads": cores,
              "rows": 1, "length": max(PROMPTS) + 8, "simulated": False}, PATIENCE)  # fmt: skip
    peer.pause()
    session = RaggedSession(artifact, manifest, 1, memory=1 << 30)
    packer, rng = Packer(True, manifest.even_tokens, max(PROMPTS) + 1), np.random.default_rng(0)
    rows = [["tokens", f"{manifest.name}, ms", "llama.cpp Q4_0, ms", "times faster"]]
    for length in PROMPTS:
        ours, theirs = [], []
        for turn in range(TURNS + 1):
            prompt = rng.integers(3, manifest.vocab, length).tolist()
            batch, _ = packer.pack([(0, prompt)])
            began = time.perf_counter()
            session.run(batch)
            taken = time.perf_counter() - began
            peer.resume()
            said = peer.ask({"do": "run", "prompts": [prompt], "new_tokens": 1, "ignore_eos": True,
                             "speculation": "off"}, PATIENCE)  # fmt: skip
            peer.pause()
            if turn:  # the first one warms up
                ours.append(taken * 1e3)
                theirs.append(said["steps"][0][0] * 1e3)
        pairs = Ratio.of([b / a for a, b in zip(ours, theirs, strict=True)])
        rows.append([str(length), spread(Spread.of(ours), 0), spread(Spread.of(theirs), 0), ratio(pairs)])
    peer.close()
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
