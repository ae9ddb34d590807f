"""Runs a new artifact against the numpy reference: two rows, prompts in chunks, a tree on each, and the heads; with
stock operators, and with native ones where they are built.

The reference rounds as the artifact's precision does. What is compared is the largest difference of a logit, as a share
of the largest logit; LIMITS were set from measurements: docs/decisions/0004-self-test.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.arithmetic import ARITHMETIC
from export.checkpoint import Checkpoint
from export.heads import MedusaHeads
from export.reference import Reference, chain_and_tree, log_softmax
from runtime.batch import Packer
from runtime.errors import SelfTestError
from runtime.manifest import Manifest
from runtime.native.library import find
from runtime.ragged import RaggedSession
from runtime.session import Draft, Session
from runtime.tree import Tree

PROMPTS = (12, 5)  # tokens of each row's prompt
CHUNK = 8
PARENTS = ((-1, 0, 1, 2, 1, 0, 5), (-1, 0, 0, 2))  # of each row's tree
LIMITS: Mapping[str, float] = {"fp32": 2e-4, "int8": 0.1, "int8-block32": 0.1, "int4": 0.1}


@dataclass(frozen=True, slots=True)
class Report:
    """Largest errors found, as shares of the largest logit (heads: log-probability); `heads` None without heads."""

    decoder: float
    heads: float | None
    limit: float

    def __str__(self) -> str:
        heads = "" if self.heads is None else f", of the heads' log-probabilities {self.heads:.1e}"
        return f"largest error of the logits {self.decoder:.1e} of their scale{heads}; allowed {self.limit:g}"


def run(directory: Path, checkpoint: Checkpoint, heads: MedusaHeads | None) -> Report:
    """Raises SelfTestError if the artifact in `directory` does not compute what its checkpoint and heads do.

    It runs with stock operators, and with native ones where they are built: either may serve it.
    """
    manifest = Manifest.read(directory)
    prompts, trees = _work(manifest)
    found = []
    for operators in ("stock", "native") if find() else ("stock",):
        try:
            session = RaggedSession(directory, manifest, rows=len(PROMPTS), operators=operators)
            found.append(_artifact(session, prompts, trees))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise SelfTestError(f"{directory.name} does not run: {error} (with {operators} operators)") from error
    reference = Reference(checkpoint.config, checkpoint.tensor, ARITHMETIC[manifest.precision])
    spans = [chain_and_tree(prompt, tree.tokens, tree.parents) for prompt, tree in zip(prompts, trees, strict=True)]
    states = [hidden[len(prompt) :] for hidden, prompt in zip(reference.hidden_states(spans), prompts, strict=True)]
    want = reference.logits(np.concatenate(states))
    decoder = max(_share(logits, want) for logits, _ in found)
    of_heads = None
    if heads is not None:
        want = reference.head_logits(heads, np.stack([hidden[0] for hidden in states]))
        of_heads = max(_draft_error(draft, want) for _, draft in found if draft is not None)
    report = Report(decoder, of_heads, LIMITS[manifest.precision])
    if not (decoder <= report.limit and (of_heads is None or of_heads <= report.limit)):
        raise SelfTestError(f"{directory.name}: {report}; the artifact was not kept")
    return report


def _work(manifest: Manifest) -> tuple[list[list[int]], list[Tree]]:
    """Prompts and trees of the same arbitrary tokens every time."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, manifest.vocab, n).tolist() for n in PROMPTS]
    if manifest.bos is not None:
        for prompt in prompts:
            prompt[0] = manifest.bos
    trees = []
    for parents in PARENTS:
        span = chain_and_tree([], random.integers(0, manifest.vocab, len(parents)).tolist(), parents)
        trees.append(Tree(span.tokens.tolist(), list(parents), span.position, span.sees))
    return prompts, trees


def _artifact(session: Session, prompts: list[list[int]], trees: list[Tree]) -> tuple[np.ndarray, Draft | None]:
    """Logits of all trees' nodes [nodes, vocab], and the heads' draft from each root."""
    packer = Packer(exact=True, even=session.manifest.even_tokens, widest=CHUNK + 1)
    for row, prompt in enumerate(prompts):  # rows one after the other: rows 0 .. row share the runs
        for start in range(0, len(prompt), CHUNK):
            others = [(len(p), [p[-1]]) for p in prompts[:row]]
            batch, _ = packer.pack([*others, (start, prompt[start : start + CHUNK])])
            session.run(batch)
    batch, first = packer.pack([(len(prompt), tree) for prompt, tree in zip(prompts, trees, strict=True)])
    logits = session.run(batch).logits.copy()
    if not session.manifest.medusa_heads:
        return logits, None
    for row, prompt in enumerate(prompts):
        session.commit(row, len(prompt), [0], first[row])
    return logits, session.heads(list(range(len(prompts))))


def _draft_error(draft: Draft, logits: np.ndarray) -> float:
    """Both ways: each token has the log-probability it is given, and the ranks have those of the reference's ranks."""
    want = log_softmax(logits)  # [rows, heads, vocab]
    given = np.take_along_axis(want, draft.tokens, axis=-1)
    best = -np.sort(-want, axis=-1)[..., : draft.tokens.shape[-1]]
    return max(_share(draft.logprobs, given), _share(draft.logprobs, best))


def _share(found: np.ndarray, want: np.ndarray) -> float:
    """The largest difference over the largest value; not a number where `found` has one."""
    return float(np.abs(found - want).max() / np.abs(want).max())
