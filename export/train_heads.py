"""Trains Medusa heads on a frozen Llama checkpoint: `python -m export.train_heads CHECKPOINT TEXT --out FILE`.

TEXT is a plain text file (one document), or a .jsonl file with a document a line: {"text": ...} and, if wanted,
{"prompt": ...}, which is read but not learnt from. The base runs once: its hidden states after the final norm go to a
memory-mapped file in FILE.work, and the heads (Medusa v1 layout) train on that. An interrupted run goes on where it
was.

Head i: lm_i(x + SiLU(linear_i(x))), predicting the token at offset 2 + i of the hidden state's position; the loss is
the sum of 0.8^i times its cross-entropy (Cai et al. 2024, arXiv:2401.10774, Medusa-1).
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.text import Window, windows
from runtime.errors import CheckpointError, ConfigurationError, GorgonError

DECAY = 0.8
RANKS = 5  # accuracies are measured for the top 1 to 5
SAMPLE = 20_000  # positions an accuracy is measured on
SAVE_EVERY = 50  # steps
IGNORED = -100

Measured = dict[str, Any]  # the .json beside the heads


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the trained heads, besides the checkpoint and the text."""

    heads: int = 5
    epochs: int = 2
    lr: float = 1e-3
    batch: int = 2048  # positions a step
    context: int = 1024  # tokens a window
    warmup: int = 40  # steps
    held_out: float = 0.05  # tail of the windows that is measured and not learnt
    seed: int = 0


@dataclass(frozen=True, slots=True)
class States:
    """What the heads train on; those of the held-out windows come last."""

    hidden: np.ndarray  # [positions, hidden] fp16, memory-mapped
    targets: np.ndarray  # [positions, heads], IGNORED past the end of a window
    trained: int  # positions before the held-out ones
    output: Tensor  # [vocab, hidden], the base's output matrix


class Residual(nn.Module):
    """x + SiLU(linear(x)); linear starts at zero."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.silu(self.linear(x))


class Heads(nn.Sequential):
    """The heads, each of which starts as the base's output matrix; parameters have their Medusa v1 names."""

    def __init__(self, count: int, output: Tensor) -> None:
        vocab, hidden = output.shape
        super().__init__(*(nn.Sequential(Residual(hidden), nn.Linear(hidden, vocab, bias=False)) for _ in range(count)))
        for name, parameter in self.named_parameters():
            if name.endswith(".1.weight"):
                parameter.data.copy_(output)

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds: fp16."""
        return {name: value.detach().to("cpu", torch.float16) for name, value in self.state_dict().items()}


def positions(window: Window) -> range:
    """The positions learnt from: those whose token at offset 2 is text."""
    return range(max(0, window.prompt - 1), max(0, len(window.ids) - 2))


def targets(window: Window, heads: int) -> np.ndarray:
    """[positions, heads]: the token at offset 2 + head of each position, IGNORED past the end."""
    padded = np.array(window.ids + [IGNORED] * heads)
    aims: np.ndarray = padded[np.add.outer(np.array(positions(window), dtype=int), 2 + np.arange(heads))]
    return aims


def collect(checkpoint: Path, text: Path, options: Options, work: Path, device: str) -> States:
    """Run the frozen base over the text, once: a later call reads the file it left."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} does not load: {error}") from None
    model.to(device).eval()
    found = [window for window in windows(text, tokenizer.backend_tokenizer, options.context) if positions(window)]
    if len(found) < 2:
        raise ConfigurationError(
            f"{text}: expected two documents or windows of three tokens or more, found {len(found)}"
        )
    tail = max(1, round(len(found) * options.held_out))
    spans = [positions(window) for window in found]
    starts = np.cumsum([0] + [len(span) for span in spans])
    file = work / "hidden.npy"
    if not file.exists():
        beside = work / "hidden.tmp"
        shape = (int(starts[-1]), model.config.hidden_size)
        hidden = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float16, shape=shape)
        order = sorted(range(len(found)), key=lambda index: len(found[index].ids))
        groups = [order[at : at + 64] for at in range(0, len(order), 64)]
        for group in tqdm(groups, desc="hidden states", mininterval=5):
            width = len(found[group[-1]].ids)
            # Padding stands on the right, where a causal model does not look.
            rows = torch.tensor([found[index].ids + [0] * (width - len(found[index].ids)) for index in group])
            with torch.inference_mode():
                states = model.model(rows.to(device)).last_hidden_state.to("cpu", torch.float16).numpy()
            for row, index in enumerate(group):
                hidden[starts[index] : starts[index + 1]] = states[row, spans[index].start : spans[index].stop]
        hidden.flush()
        os.replace(beside, file)
    aims = np.concatenate([targets(window, options.heads) for window in found])
    output = model.get_output_embeddings().weight.detach()
    return States(np.load(file, mmap_mode="r"), aims, int(starts[len(found) - tail]), output)


def scale(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def learn(states: States, options: Options, work: Path, device: str) -> Heads:
    """The trained heads; goes on from work/heads.pt when that is there."""
    heads = Heads(options.heads, states.output).to(device)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=options.lr, weight_decay=0.0)
    steps = math.ceil(states.trained / options.batch)
    total, done = steps * options.epochs, 0
    saved = work / "heads.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    bar = tqdm(total=total, initial=done, desc="heads", unit="step", mininterval=5)
    for step in range(done, total):
        epoch, index = divmod(step, steps)
        if index == 0 or step == done:
            order = np.random.default_rng([options.seed, epoch]).permutation(states.trained)
        chosen = np.sort(order[index * options.batch : (index + 1) * options.batch])
        x = torch.from_numpy(states.hidden[chosen]).to(device, torch.float32)
        aims = torch.from_numpy(states.targets[chosen]).to(device)
        optimizer.param_groups[0]["lr"] = options.lr * scale(step, total, options.warmup)
        with torch.autocast(device, dtype=torch.bfloat16):
            for number, head in enumerate(heads):
                # One head's graph at a time: the logits of a large vocabulary are the memory of this loop.
                loss = functional.cross_entropy(head(x).float(), aims[:, number], ignore_index=IGNORED, reduction="sum")
                torch.autograd.backward(DECAY**number * loss / len(chosen))
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
        bar.set_postfix(last_head_loss=f"{loss.item() / len(chosen):.3f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total:
            beside = work / "heads.tmp"
            state = {"heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, beside)
            os.replace(beside, saved)
    bar.close()
    return heads


def accuracy(heads: Heads, hidden: np.ndarray, aims: np.ndarray, device: str) -> list[list[float]]:
    """[heads][ranks]: the share of positions whose target is among the head's top 1, 2, ... tokens."""
    chosen = np.linspace(0, len(hidden) - 1, min(SAMPLE, len(hidden))).astype(int)
    hits = np.zeros((aims.shape[1], RANKS))
    counts = np.zeros((aims.shape[1], 1))
    for start in range(0, len(chosen), 1024):
        part = chosen[start : start + 1024]
        wanted = torch.from_numpy(aims[part]).to(device)
        with torch.inference_mode():
            x = torch.from_numpy(hidden[part]).to(device, torch.float32)
            for number, head in enumerate(heads):
                found = (head(x).topk(RANKS).indices == wanted[:, number, None]).cumsum(1)
                hits[number] += found.sum(0).cpu().numpy()
                counts[number] += int((wanted[:, number] != IGNORED).sum())
    return [[round(float(share), 4) for share in row] for row in hits / np.maximum(counts, 1)]


def train_heads(checkpoint: Path, text: Path, out: Path, options: Options, device: str = "cpu") -> Measured:
    """Write the heads to `out` and their accuracies beside it as .json; the accuracies."""
    work = out.with_name(out.name + ".work")
    asked = json.dumps(asdict(options)) + "".join(
        hashlib.sha256(file.read_bytes()).hexdigest() for file in [text, *sorted(checkpoint.glob("model*.safetensors"))]
    )
    stamp = work / "asked"
    if work.exists() and not (stamp.exists() and stamp.read_text() == asked):
        shutil.rmtree(work)  # the work of another text, checkpoint or recipe
    work.mkdir(parents=True, exist_ok=True)
    stamp.write_text(asked)
    states = collect(checkpoint, text, options, work, device)
    heads = learn(states, options, work, device)
    for parameter in heads.parameters():  # measure what the file holds
        parameter.data = parameter.data.half().float()
    cut = states.trained
    measured: Measured = {
        "heads": options.heads,
        "options": asdict(options),
        "accuracy": {
            "held_out": accuracy(heads, states.hidden[cut:], states.targets[cut:], device),
            "trained": accuracy(heads, states.hidden[:cut], states.targets[:cut], device),
        },
    }
    beside = out.with_name(out.name + ".tmp")
    save_file(heads.tensors(), beside, metadata={"format": "pt"})
    os.replace(beside, out)
    out.with_suffix(".json").write_text(json.dumps(measured, indent=2) + "\n")
    shutil.rmtree(work)
    return measured


def table(measured: Measured) -> str:
    """The accuracies in per cent, a line a head."""
    lines = []
    for part, rows in measured["accuracy"].items():
        lines.append(f"{part:>9}  " + "".join(f"{f'top-{rank}':>8}" for rank in range(1, RANKS + 1)))
        for head, row in enumerate(rows):
            lines.append(f"   head {head}  " + "".join(f"{100 * value:8.1f}" for value in row))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.train_heads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="directory of a Hugging Face Llama checkpoint with its tokenizer")
    parser.add_argument("text", type=Path, help=".txt, or .jsonl with a document a line")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file; accuracies go to .json beside it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    for field in fields(Options):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default, help="(default: %(default)s)")
    given = vars(parser.parse_args())
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    options = Options(**{field.name: given[field.name] for field in fields(Options)})
    try:
        measured = train_heads(given["checkpoint"], given["text"], given["out"], options, given["device"])
    except GorgonError as error:
        print(f"train_heads: {error}", file=sys.stderr)
        return error.exit_code
    print(table(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
