"""Trains pydoc-chat's decoder until its greedy answers are the data's, word for word.

Every pass draws one trained phrasing an object; the loss counts the answer's tokens alone. Batches follow from
(seed, pass) and the saved state holds weights, optimizers and the step, so an interrupted run ends in the same weights
as a whole one.
"""

import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from export.demo.decoder import Decoder, Shape
from export.demo.dialogue import BOS, EOS, PREFIX, TRAINED_PHRASINGS, Entry, turn


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the trained weights, besides data and tokenizer."""

    passes: int = 44
    batch: int = 128
    matrix_lr: float = 0.03
    lr: float = 5e-3
    warmup: int = 100
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenized trained objects: the shared prefix, each object's prompts (one a phrasing) and its answer."""

    prefix: list[int]
    prompts: list[list[list[int]]]
    answers: list[list[int]]


def tokenize(tokenizer: Tokenizer, entries: list[Entry]) -> Corpus:
    """Prompt and answer apart, as a server meets them."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    trained = [entry for entry in entries if not entry.heldout]
    prompts = [[ids(turn(phrasing, entry.name)) for phrasing in TRAINED_PHRASINGS] for entry in trained]
    return Corpus(ids(PREFIX), prompts, [ids(f" {entry.answer}{EOS}") for entry in trained])


def batches(corpus: Corpus, recipe: Recipe, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass `number` over the corpus: (rows, targets) [rows, width], targets -100 where nothing is learnt."""
    draw = random.Random(f"{recipe.seed}/{number}")
    pairs = [(draw.choice(prompts), answer) for prompts, answer in zip(corpus.prompts, corpus.answers, strict=True)]
    # Rows of like length together, with noise so that the company of a row changes from pass to pass.
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]) + draw.uniform(0, 6))
    groups = [pairs[start : start + recipe.batch] for start in range(0, len(pairs), recipe.batch)]
    draw.shuffle(groups)
    for group in groups:
        width = max(len(prompt) + len(answer) for prompt, answer in group) - 1
        rows = torch.zeros(len(group), width, dtype=torch.long)
        targets = torch.full((len(group), width), -100)
        for index, (prompt, answer) in enumerate(group):
            text = prompt + answer
            rows[index, : len(text) - 1] = torch.tensor(text[:-1])
            targets[index, len(prompt) - 1 : len(text) - 1] = torch.tensor(answer)
        yield rows, targets


def optimizers(model: Decoder, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [parameter for parameter in model.layers.parameters() if parameter.dim() == 2]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW([model.embed_tokens, *norms], lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def scale(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def learn(model: Decoder, prefix: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the answers' tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(prefix, rows)
        wanted = targets >= 0
        logits = functional.linear(hidden[wanted], model.embed_tokens)
    return functional.cross_entropy(logits.float(), targets[wanted])


def train(corpus: Corpus, recipe: Recipe, work: Path) -> tuple[Decoder, float]:
    """The trained decoder and the seconds it took; goes on from work/base.pt when that is there."""
    torch.manual_seed(recipe.seed)
    model = Decoder(Shape())
    optims = optimizers(model, recipe)
    steps_a_pass = math.ceil(len(corpus.answers) / recipe.batch)
    total = recipe.passes * steps_a_pass
    prefix = torch.tensor(corpus.prefix)
    saved = work / "base.pt"
    step, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, values in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(values)
        step, spent = state["step"], state["seconds"]
    base_lrs = [[group["lr"] for group in optim.param_groups] for optim in optimizers(model, recipe)]
    started = time.monotonic() - spent
    with tqdm(total=total, initial=step, desc="base", mininterval=5, unit="step") as bar:
        for number in range(step // steps_a_pass, recipe.passes):
            for index, (rows, targets) in enumerate(batches(corpus, recipe, number)):
                if number * steps_a_pass + index < step:
                    continue
                for optim, lrs in zip(optims, base_lrs, strict=True):
                    for group, lr in zip(optim.param_groups, lrs, strict=True):
                        group["lr"] = lr * scale(step, total, recipe.warmup)
                loss = learn(model, prefix, rows, targets)
                torch.autograd.backward(loss)
                for optim in optims:
                    optim.step()
                    optim.zero_grad()
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            save(saved, model, optims, step, time.monotonic() - started)
    return model, time.monotonic() - started


def save(path: Path, model: Decoder, optims: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    """Write the whole state beside the old one, then put it in its place: a kill leaves one or the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optims": [optim.state_dict() for optim in optims],
        "step": step,
        "seconds": seconds,
    }
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


def publish(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """config.json and model.safetensors in fp16."""
    bos, eos = tokenizer.encode(BOS + EOS, add_special_tokens=False).ids
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config(bos, eos), indent=2) + "\n")
    save_file(model.checkpoint(), folder / "model.safetensors", metadata={"format": "pt"})
