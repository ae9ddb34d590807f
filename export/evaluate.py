"""`python -m export.evaluate`: how well an artifact predicts a text, how far from fp32 it is, how often its heads hit.

Perplexity and divergence are those of the next token at every position of the text, given the text before it; a head is
right where the text's token at its offset is among its best. For what speculation gains, take a text the model wrote.
Unless --checkpoint or --reference says what fp32 is, it is the fp32 artifact of the same model beside ARTIFACT.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from export.artifact import write_head_accuracy
from export.checkpoint import LM_HEAD
from export.model import open_model
from export.reference import Reference, chain, log_softmax
from export.text import Window, windows
from export.tokenizer import FILE as TOKENIZER
from runtime.errors import ArtifactError, ConfigurationError, GorgonError
from runtime.manifest import FILE, Manifest
from runtime.params import EngineConfig
from runtime.session import Batch
from runtime.sessions import open_session

WINDOW = 512  # tokens computed together
CHUNK = 64  # of them in one run
ROWS = 8  # hidden states given to the heads at once
DIMENSIONS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab")

Logits = Callable[[int], Iterator[np.ndarray]]  # a window's number -> chunk after chunk, float32 [tokens, vocab]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`divergence` is KL(fp32 || artifact) in nats a token, `head_accuracy` [heads][top-1, top-2, ... cumulative]."""

    tokens: int
    perplexity: float
    reference_perplexity: float | None
    divergence: float | None
    agreement: float | None  # share of positions where both have the same most probable token
    head_accuracy: tuple[tuple[float, ...], ...] | None

    def __str__(self) -> str:
        lines = [f"{self.tokens} tokens", f"perplexity            {self.perplexity:.4f}"]
        if self.reference_perplexity is not None:
            lines.append(f"perplexity of fp32    {self.reference_perplexity:.4f}")
            lines.append(f"KL divergence         {self.divergence:.6f} nats a token")
            lines.append(f"top-1 agreement       {self.agreement:.2%}")
        for head, row in enumerate(self.head_accuracy or ()):
            lines.append(f"head {head}, top-1 to top-{len(row)}  " + " ".join(f"{share:.3f}" for share in row))
        return "\n".join(lines)


class Artifact:
    """A loaded artifact, fed one window after the other."""

    def __init__(self, path: Path) -> None:
        directory = path.resolve()
        self.manifest = Manifest.read(directory)
        try:
            self.tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        except Exception as error:  # the package raises bare Exception
            raise ArtifactError(f"{directory / TOKENIZER} does not load: {error}") from error
        config = EngineConfig(rows=ROWS, kv_memory=ROWS * self.manifest.capacity * self.manifest.kv_bytes)
        self._session = open_session(directory, self.manifest, config, lambda message: None)

    def chunks(self, ids: list[int]) -> Iterator[np.ndarray]:
        """Logits [tokens, vocab] of up to CHUNK tokens at a time, each valid until the next."""
        for start in range(0, len(ids), CHUNK):
            tokens = np.array(ids[start : start + CHUNK], np.int64)
            n = np.arange(len(tokens))
            tree = np.tri(len(tokens), dtype=bool)[None]
            yield self._session.run(Batch(tokens, n, np.array([start]), n[-1:] + 1, tree, n)).logits

    def drafts(self, positions: int) -> np.ndarray:
        """The heads' tokens [positions, heads, top_k] for each token of the chunk that ran last."""
        found = []
        for start in range(0, positions, ROWS):
            rows = range(min(ROWS, positions - start))
            for row in rows:  # a commit that moves nothing: it only says whose hidden state the row drafts from
                self._session.commit(row, 0, [0], start + row)
            found.append(self._session.heads(list(rows), self._session.manifest.medusa_heads).tokens.copy())
        return np.concatenate(found)


def evaluate(artifact: Artifact, texts: Sequence[Window], reference: Logits | None) -> Evaluation:
    """Runs every window through the artifact, and beside it the reference's logits of the same tokens."""
    manifest = artifact.manifest
    sums = np.zeros(4)  # negative log-likelihood of the artifact and of the reference, divergence, agreement
    right = np.zeros((manifest.medusa_heads, manifest.draft_top_k))
    tried = np.zeros(manifest.medusa_heads)
    for number, window in enumerate(tqdm(texts, desc="windows", mininterval=1, disable=not sys.stderr.isatty())):
        others = None if reference is None else reference(number)
        for i, logits in enumerate(artifact.chunks(window.ids)):
            sums += _next_token(window, i * CHUNK, logits, None if others is None else next(others))
            if manifest.medusa_heads:
                _count(window, i * CHUNK, artifact.drafts(len(logits)), right, tried)
    tokens = sum(len(window.predicted) for window in texts)
    own, other, divergence, agreement = (float(value) / tokens for value in sums)
    accuracy = right.cumsum(axis=1) / np.maximum(tried, 1)[:, None]
    return Evaluation(
        tokens,
        math.exp(own),
        None if reference is None else math.exp(other),
        None if reference is None else divergence,
        None if reference is None else agreement,
        tuple(tuple(round(float(share), 4) for share in row) for row in accuracy) if manifest.medusa_heads else None,
    )


def _next_token(window: Window, start: int, logits: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    """One chunk's part of the sums; it begins at token `start` of its window."""
    places = np.array([p - start for p in window.predicted if start <= p < start + len(logits)], int)
    targets = np.array(window.ids)[places + start + 1]
    own = log_softmax(logits[places].astype(np.float64))
    loss = -own[np.arange(len(places)), targets].sum()
    if other is None:
        return np.array([loss, 0, 0, 0])
    true = log_softmax(other[places].astype(np.float64))
    return np.array([
        loss,
        -true[np.arange(len(places)), targets].sum(),
        (np.exp(true) * (true - own)).sum(),
        (true.argmax(axis=1) == own.argmax(axis=1)).sum(),
    ])  # fmt: skip


def _count(window: Window, start: int, drafts: np.ndarray, right: np.ndarray, tried: np.ndarray) -> None:
    """Adds one chunk's hits to right [heads, top_k] and tried [heads]; head h predicts the token at offset 2 + h."""
    for h in range(drafts.shape[1]):
        places = [p for p in window.predicted if start <= p < start + len(drafts) and p + 2 + h < len(window.ids)]
        if places:
            targets = np.array(window.ids)[np.array(places) + 2 + h]
            right[h] += (drafts[np.array(places) - start, h] == targets[:, None]).sum(axis=0)
            tried[h] += len(places)


def from_checkpoint(directory: Path, manifest: Manifest, texts: Sequence[Window]) -> Logits:
    """The numpy forward pass: hidden states of all windows are computed first, logits when asked for."""
    model = open_model(directory)
    config, checkpoint = model.config, model.checkpoint
    for name in DIMENSIONS:
        if getattr(config, name) != getattr(manifest, name):
            raise ConfigurationError(
                f"{directory} has {name} {getattr(config, name)}, the artifact {getattr(manifest, name)}: expected the "
                "checkpoint it was exported from"
            )
    print(f"fp32 reference of {directory}", file=sys.stderr)
    states = Reference(config, checkpoint.tensor).hidden_states([chain(window.ids) for window in texts])
    lm_head = checkpoint.tensor(LM_HEAD)

    def logits(number: int) -> Iterator[np.ndarray]:
        for start in range(0, len(states[number]), CHUNK):
            yield states[number][start : start + CHUNK] @ lm_head.T

    return logits


def from_artifact(path: Path, manifest: Manifest, texts: Sequence[Window]) -> Logits:
    """Another artifact of the same model, in fp32."""
    other = Artifact(path)
    if difference := _difference(other.manifest, manifest):
        raise ConfigurationError(f"{path} {difference}: expected an fp32 artifact of the same checkpoint as reference")
    return lambda number: other.chunks(texts[number].ids)


def beside(artifact: Path, manifest: Manifest) -> Path:
    """The one fp32 artifact of the same model in the folder of `artifact`."""
    folder, found = artifact.absolute().parent, []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path / FILE).is_file():
            continue  # behind a name such as .demo-int8-0123abcd there may be a half-written one
        try:
            if _difference(Manifest.read(path.resolve()), manifest) is None:
                found.append(path)
        except ArtifactError:
            continue  # a damaged neighbour is none of this artifact's concern
    if len(found) != 1:
        several = f"several fp32 artifacts ({', '.join(path.name for path in found)})" if found else "no fp32 artifact"
        raise ConfigurationError(
            f"{folder} has {several} that could be of the model of {artifact.name}: give --checkpoint or --reference"
        )
    return found[0]


def _difference(other: Manifest, manifest: Manifest) -> str | None:
    """Why `other` is not the fp32 artifact of the model that `manifest` describes."""
    if other.precision != "fp32":
        return f"is {other.precision}"
    for name in DIMENSIONS:
        if getattr(other, name) != getattr(manifest, name):
            return f"has {name} {getattr(other, name)}, the artifact {getattr(manifest, name)}"
    if other.context < min(WINDOW, manifest.context):
        return f"has context {other.context}, the artifact {manifest.context}"
    if other.files[TOKENIZER]["sha256"] != manifest.files[TOKENIZER]["sha256"]:
        return "has another tokenizer"
    return None


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m export.evaluate", description=__doc__.split("\n\n")[0] if __doc__ else None
    )
    add = top.add_argument
    add("artifact", type=Path, metavar="ARTIFACT")
    add("text", type=Path, metavar="TEXT", help='a text file, or .jsonl with {"text": ...} and perhaps "prompt" a line')
    group = top.add_argument_group(
        "fp32", "the reference: by default an fp32 artifact of the same model beside ARTIFACT"
    ).add_mutually_exclusive_group()
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="compare with this checkpoint in fp32, by numpy")
    group.add_argument("--reference", type=Path, metavar="ARTIFACT", help="compare with this fp32 artifact")
    add("--write", action="store_true", help="put the heads' accuracies into the artifact's manifest")
    add("--json", action="store_true", help="print JSON")
    return top


def run(options: argparse.Namespace) -> Evaluation:
    artifact = Artifact(options.artifact)
    manifest = artifact.manifest
    if options.write and not manifest.medusa_heads:
        raise ConfigurationError(
            f"{options.artifact} has no heads whose accuracy could be written: export it with --heads"
        )
    texts = windows(options.text, artifact.tokenizer, min(WINDOW, manifest.context))
    reference = None
    if options.checkpoint is not None:
        reference = from_checkpoint(options.checkpoint, manifest, texts)
    elif options.reference is not None:
        reference = from_artifact(options.reference, manifest, texts)
    elif manifest.precision == "fp32":
        print(f"{options.artifact} is fp32 itself: not compared with fp32", file=sys.stderr)
    else:
        other = beside(options.artifact, manifest)
        print(f"fp32 reference: {other}", file=sys.stderr)
        reference = from_artifact(other, manifest, texts)
    evaluation = evaluate(artifact, texts, reference)
    if options.write and evaluation.head_accuracy is not None:
        write_head_accuracy(options.artifact, manifest, evaluation.head_accuracy)
    return evaluation


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        evaluation = run(options)
    except (GorgonError, OSError) as error:
        print(f"export.evaluate: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, GorgonError) else 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(asdict(evaluation)) if options.json else evaluation)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
