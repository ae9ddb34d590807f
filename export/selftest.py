"""Runs a new artifact against the numpy reference: two rows, prompts in chunks, a tree on each, and the heads; with
stock operators, and with native ones where they are built.

The reference rounds as the artifact's precision does. What is compared is the largest difference of a logit, as a share
of the largest logit; LIMITS were set from measurements: docs/decisions/0004-self-test.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export import stages
from export.arithmetic import arithmetic
from export.checkpoint import Checkpoint
from export.heads import MedusaHeads
from export.numerics import numerics
from export.progress import Say, unheard
from export.reference import Reference, chain_and_tree, log_softmax
from runtime import graphs, machine
from runtime.batch import Packer
from runtime.errors import ConfigurationError, SelfTestError
from runtime.manifest import Manifest
from runtime.native.library import Library, find
from runtime.params import EngineConfig
from runtime.providers import NAMES
from runtime.session import Batch, Draft
from runtime.sessions import open_session
from runtime.tree import Tree

PROMPTS = (12, 5)  # tokens of each row's prompt
CHUNK = 8
PARENTS = ((-1, 0, 1, 2, 1, 0, 5), (-1, 0, 0, 2))  # of each row's tree
STAGE_BYTES = 2**30  # of weights at a time: a model larger than memory is checked as well
LIMITS: Mapping[str, Mapping[str, float]] = {
    "ragged": {"fp32": 2e-4, "int8": 0.1, "int8-block32": 0.1, "int4": 0.1},
    "padded": {"fp32": 2e-4, "fp16": 0.02, "bf16": 0.1, "int4": 0.05},
}


@dataclass(frozen=True, slots=True)
class Report:
    """Largest errors found, as shares of the largest logit (heads: log-probability); `heads` None without heads."""

    decoder: float
    heads: float | None
    limit: float

    def __str__(self) -> str:
        heads = "" if self.heads is None else f", of the heads' log-probabilities {self.heads:.1e}"
        return f"largest error of the logits {self.decoder:.1e} of their scale{heads}; allowed {self.limit:g}"


def check_machine(form: str, precision: str) -> None:
    """Raises ConfigurationError where an artifact of this form and precision cannot be run here, and so not tested."""
    if precision == "bf16" and not (machine.cuda_devices() and NAMES["cuda"] in ort.get_available_providers()):
        raise ConfigurationError(
            f"the self-test cannot run {form} bf16 here: ONNX Runtime's CPU provider has no MatMul of bf16, and there"
            f" is no GPU with {NAMES['cuda']}: export where there is one, or in fp16, or keep it unchecked with"
            " --no-self-test"
        )


def run(directory: Path, checkpoint: Checkpoint, heads: MedusaHeads | None, progress: Say) -> Report:
    """Raises SelfTestError if the artifact in `directory` does not compute what its checkpoint and heads do.

    The ragged form runs with stock operators, and with native ones where they are built: either may serve it.
    """
    manifest = Manifest.read(directory)
    prompts, trees = _work(manifest)
    found = []
    try:
        if manifest.form == "ragged":
            for library in (None, native) if (native := find()) else (None,):
                found.append(_in_stages(directory, manifest, prompts, trees, library))
        else:
            found.append(_in_session(directory, manifest, prompts, trees))
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        operators = f" (with {'native' if found else 'stock'} operators)" if manifest.form == "ragged" else ""
        raise SelfTestError(f"{directory.name} does not run: {error}{operators}") from error
    rounding = arithmetic(numerics(manifest.form, manifest.precision, checkpoint.dtypes))
    reference = Reference(checkpoint.config, checkpoint.tensor, rounding, progress)
    spans = [chain_and_tree(prompt, tree.tokens, tree.parents) for prompt, tree in zip(prompts, trees, strict=True)]
    every = [replace(span, ordered=ordered) for ordered in (False, True)[: len(found)] for span in spans]
    hidden = reference.hidden_states(every)  # for all kinds of operators in one pass over the weights
    states = [state[len(prompt) :] for state, prompt in zip(hidden, prompts * len(found), strict=True)]
    decoder = _share(np.concatenate([logits for logits, _ in found]), reference.logits(np.concatenate(states)))
    of_heads = None
    if heads is not None:
        drafts = [draft for _, draft in found if draft is not None]
        draft = Draft(*(np.concatenate([getattr(d, part) for d in drafts]) for part in ("tokens", "logprobs")))
        of_heads = _draft_error(draft, reference.head_logits(heads, np.stack([state[0] for state in states])))
    report = Report(decoder, of_heads, LIMITS[manifest.form][manifest.precision])
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


def _in_stages(
    directory: Path, manifest: Manifest, prompts: list[list[int]], trees: list[Tree], library: Library | None
) -> tuple[np.ndarray, Draft | None]:
    """Logits of all trees' nodes [nodes, vocab], and the heads' draft from each root."""
    steps, roots = _steps(manifest, prompts, trees)
    result = stages.run(directory / "decoder.onnx", manifest, steps, STAGE_BYTES, library)
    if not manifest.medusa_heads:
        return result["logits"], None
    heads = graphs.load(directory / "heads.onnx", library=library)
    feed = {"hidden": result["hidden"][roots], "depth": np.array([manifest.medusa_heads])}
    return result["logits"], Draft(*heads.run(["tokens", "logprobs"], feed))


def _in_session(
    directory: Path, manifest: Manifest, prompts: list[list[int]], trees: list[Tree]
) -> tuple[np.ndarray, Draft | None]:
    """As `_in_stages`, on the provider that the artifact is for."""
    config = EngineConfig(rows=len(prompts), kv_memory=len(prompts) * manifest.capacity * manifest.kv_bytes)
    session = open_session(directory, manifest, config, unheard)
    steps, roots = _steps(manifest, prompts, trees)
    for batch in steps[:-1]:
        session.run(batch)
    logits = session.run(steps[-1]).logits.copy()
    if not manifest.medusa_heads:
        return logits, None
    for row, (prompt, root) in enumerate(zip(prompts, roots, strict=True)):
        session.commit(row, len(prompt), [0], root)
    return logits, session.heads(list(range(len(prompts))), manifest.medusa_heads)


def _steps(manifest: Manifest, prompts: list[list[int]], trees: list[Tree]) -> tuple[list[Batch], list[int]]:
    """Prompts in chunks, then all trees at once; and where each tree's root is among the last step's results."""
    packer = Packer(exact=True, even=manifest.even_tokens, widest=CHUNK + 1)
    steps = []
    for row, prompt in enumerate(prompts):  # rows one after the other: rows 0 .. row share the runs
        others = [(len(p), [p[-1]]) for p in prompts[:row]]
        for start in range(0, len(prompt), CHUNK):
            steps.append(packer.pack([*others, (start, prompt[start : start + CHUNK])])[0])
    last, roots = packer.pack([(len(prompt), tree) for prompt, tree in zip(prompts, trees, strict=True)])
    return [*steps, last], roots


def _draft_error(draft: Draft, logits: np.ndarray) -> float:
    """Both ways: each token has the log-probability it is given, and the ranks have those of the reference's ranks."""
    want = log_softmax(logits)  # [rows, heads, vocab]
    given = np.take_along_axis(want, draft.tokens, axis=-1)
    best = -np.sort(-want, axis=-1)[..., : draft.tokens.shape[-1]]
    return max(_share(draft.logprobs, given), _share(draft.logprobs, best))


def _share(found: np.ndarray, want: np.ndarray) -> float:
    """The largest difference over the largest value; not a number where `found` has one."""
    return float(np.abs(found - want).max() / np.abs(want).max())
