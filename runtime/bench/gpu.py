"""`python -m runtime.bench gpu`: the padded form's steps against the memory's speed, by sequences and nodes.

A step is a decoder run, the commit of what was accepted, and where a tree is drafted the heads; the content does not
matter to it, so the cache holds zeros. Its floor is what has to be read from memory, weights and keys and values, at
the speed of a copy measured here. Tokens a second with speculation are those that a tree of so many nodes brings by
the artifact's head accuracies, or those published for vicuna-7b's heads.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import machine
from runtime.bench.machine import versions
from runtime.bench.markdown import table
from runtime.bench.options import counts, positive
from runtime.device import Block
from runtime.errors import ConfigurationError
from runtime.graphs import check_provider
from runtime.manifest import Manifest
from runtime.params import MAX_NODES, PROVIDERS, EngineConfig
from runtime.providers import DEVICES, NAMES
from runtime.session import Batch, Session
from runtime.sessions import open_session
from runtime.tree import Universe, accuracy_of

PEER = Path(__file__).parent / "peers" / "engines" / "static_cache.py"
COPIED = 1 << 30  # bytes of the copy that measures the memory's speed
ACCEPTED = 3  # nodes committed of a tree, the last of which does not lie in place
PEER_SECONDS = 1200.0


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds are medians: of the decoder's run, and of a step with all that belongs to it."""

    sequences: int
    nodes: int
    run: float
    step: float
    floor: float  # seconds that reading takes
    tokens_per_step: float  # of one sequence, simulated

    @property
    def tokens_per_second(self) -> float:
        return self.sequences * self.tokens_per_step / self.step


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "gpu",
        help="steps on a GPU, against its memory's speed",
        description=__doc__.partition("\n\n")[2] if __doc__ else None,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--artifact", type=Path, help="directory that `python -m export --form padded` wrote")
    what.add_argument("--ready", action="store_true", help="say whether the provider works here, and no more")
    add("--provider", choices=PROVIDERS[1:], default="cuda", help="(%(default)s)")
    add("--sequences", type=counts, default=counts("1,4,16,64"), metavar="LIST", help="with commas (1,4,16,64)")
    add("--nodes", type=counts, default=counts("1,8,16,32,64"), metavar="LIST", help="with commas (1,8,16,32,64)")
    add("--context", type=positive, default=512, help="committed tokens of each sequence (%(default)s)")
    add("--repeat", type=positive, default=30, help="steps timed of each kind (%(default)s)")
    add("--peer", metavar="PYTHON", help="with torch: time transformers, compiled and with a static cache, as well")
    add("--peer-config", type=Path, metavar="FILE", help="config.json of the model's shape, for --peer")
    add("--json", type=Path, metavar="FILE", help="write all figures there as well")
    return parser


def run(options: argparse.Namespace) -> int:
    """Measures, prints, writes. Raises GorgonError."""
    check_provider(options.provider)
    if options.ready:
        return 0
    manifest = Manifest.read(options.artifact)
    if manifest.form != "padded":
        raise ConfigurationError(f"{manifest.name} has the {manifest.form} form: export it with --form padded")
    if options.context + MAX_NODES > manifest.context or max(options.nodes) > MAX_NODES:
        raise ConfigurationError(
            f"{options.context} tokens and trees of {max(options.nodes)} nodes: {manifest.name} has a context of"
            f" {manifest.context}, and trees have at most {MAX_NODES} nodes"
        )
    if (options.peer is None) != (options.peer_config is None):
        raise ConfigurationError("--peer and --peer-config go together")
    rows = max(options.sequences)
    memory = rows * manifest.capacity * manifest.kv_bytes
    config = EngineConfig(rows=rows, kv_memory=memory, provider=options.provider)
    session = open_session(options.artifact, manifest, config, lambda message: print(message, file=sys.stderr))
    bandwidth = copied_a_second(DEVICES[options.provider].name)
    steps = measure(session, options, bandwidth)
    peer = None if options.peer is None else peer_seconds(options, manifest)
    print(report(steps, bandwidth, peer, manifest))
    if options.json is not None:
        figures = {
            "machine": {"gpus": machine.gpus(), "cpu": machine.cpu()[0]}, "versions": versions(),
            "provider": NAMES[options.provider], "bandwidth": bandwidth, "steps": [asdict(step) for step in steps],
            "peer": peer,
        }  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 0


def copied_a_second(device: str, size: int = COPIED) -> float:
    """Bytes read and written in a second by copies of `size` on the device: the fastest of some."""
    source, target = Block(device, size), Block(device, size)
    end = Block(device, 8)

    def copies(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            target.copy(source)
        end.read()  # comes after them: copies on a device return at once
        return time.perf_counter() - began

    copies(2)
    return 8 * 2 * size / min(copies(8) for _ in range(5))


def measure(session: Session, options: argparse.Namespace, bandwidth: float) -> list[Step]:
    m = session.manifest
    chance = np.sort(Universe(accuracy_of(m), m.draft_top_k).chance[1:])[::-1]
    steps = []
    for sequences in options.sequences:
        for nodes in options.nodes:
            batch = batch_of(sequences, nodes, options.context, m.vocab)
            path = [*range(ACCEPTED - 1), nodes - 1] if nodes > ACCEPTED else list(range(nodes))
            drafts = nodes > 1 and m.medusa_heads > 0

            def step(batch: Batch = batch, path: list[int] = path, drafts: bool = drafts) -> None:
                session.run(batch)
                for row in range(len(batch.length)):
                    session.commit(row, options.context, path, row * (len(batch.wanted) // len(batch.length)))
                if drafts:
                    session.heads(list(range(len(batch.length))), m.medusa_heads)

            run = median(lambda batch=batch: session.run(batch), options.repeat)  # type: ignore[misc]
            whole = median(step, options.repeat)
            keys = sequences * (options.context + nodes) * m.kv_bytes
            floor = (weight_bytes(m) + keys) / bandwidth
            gained = float(chance[: nodes - 1].sum()) if drafts else 0.0
            steps.append(Step(sequences, nodes, run, whole, floor, 1 + gained))
            print(f"{sequences} x {nodes}: {1e3 * whole:.2f} ms", file=sys.stderr)
    return steps


def batch_of(sequences: int, nodes: int, context: int, vocab: int) -> Batch:
    """Chains: what a tree looks like costs nothing."""
    tokens = np.random.default_rng(0).integers(0, vocab, sequences * nodes)
    depth = np.tile(np.arange(nodes), sequences)
    ancestors = np.broadcast_to(np.tri(nodes, dtype=bool), (sequences, nodes, nodes))
    length, count = np.full(sequences, context), np.full(sequences, nodes)
    return Batch(tokens, depth, length, count, ancestors, np.arange(sequences * nodes))


def median(call: Callable[[], object], repeat: int) -> float:
    """Seconds of a call, once it is warm: a shape's first runs capture its graph."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def weight_bytes(manifest: Manifest) -> int:
    """Of the decoder, but for the embedding, of which a step reads a few rows."""
    embedding = manifest.vocab * manifest.hidden * manifest.value_bytes
    return int(manifest.files["decoder.onnx.data"]["size"]) - embedding


def peer_seconds(options: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    """Seconds of a step of transformers for each number of sequences, or why there are none."""
    asked = {
        "config": str(options.peer_config), "sequences": options.sequences, "context": options.context,
        "dtype": manifest.values, "repeat": options.repeat, "device": DEVICES[options.provider].name,
    }  # fmt: skip
    command = [options.peer, str(PEER), json.dumps(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def report(steps: Sequence[Step], bandwidth: float, peer: dict[str, Any] | None, manifest: Manifest) -> str:
    rows = [["sequences", "nodes", "run, ms", "step, ms", "floor, ms", "run over floor", "tokens a step", "tokens/s"]]
    rows += [
        [
            str(s.sequences), str(s.nodes), f"{1e3 * s.run:.2f}", f"{1e3 * s.step:.2f}", f"{1e3 * s.floor:.2f}",
            f"{s.run / s.floor:.2f}", f"{s.tokens_per_step:.2f}", f"{s.tokens_per_second:.0f}",
        ]
        for s in steps
    ]  # fmt: skip
    gpus = ", ".join(machine.gpus()) or machine.cpu()[0]
    lines = [f"{manifest.name}, {manifest.precision}, on {gpus}; a copy moves {bandwidth / 1e9:.0f} GB/s", ""]
    lines += table(rows)
    if peer is not None:
        lines += ["", "transformers, torch.compile and a static cache:"]
        if "error" in peer:
            lines.append(f"not run: {peer['error']}")
        else:
            found = [["sequences", "step, ms", "tokens/s"]]
            found += [[n, f"{1e3 * s:.2f}", f"{int(n) / s:.0f}"] for n, s in peer["seconds"].items()]
            lines += [*table(found), f"{peer['versions']}"]
    return "\n".join(lines)
