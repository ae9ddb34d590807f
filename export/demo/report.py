"""Measures pydoc-chat: answers word for word at temperature 0, head accuracies, tokens per step.

Everything runs on the published fp16 weights, computed in fp32. An answer is word for word when each of its tokens is
the argmax after the ones before it, which one pass over question and answer shows. Heads are measured on the model's
own greedy answers, right or wrong.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from export.demo.decoder import Decoder, Shape
from export.demo.dialogue import EOS, HELD_OUT_PHRASINGS, PREFIX, TRAINED_PHRASINGS, Entry, turn
from export.train_heads import Heads

RANKS = 10  # ranks of a head that a tree may use
SAMPLE = 2000  # questions the heads are measured on
LONGEST = 96  # tokens of a greedy answer
TREE_NODES = 16
BATCH = 64

Ranks = tuple[int, ...]  # a node of a tree: which of each head's candidates lead to it


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of a prompt behind the shared prefix, and of the answer that was trained or is expected."""

    prompt: list[int]
    answer: list[int]


def questions(tokenizer: Tokenizer, entries: list[Entry], phrasings: tuple[str, ...], seed: int) -> list[Question]:
    """Four phrasings of each entry, drawn where there are more."""
    draw = random.Random(seed)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return [
        Question(ids(turn(phrasing, entry.name)), ids(f" {entry.answer}{EOS}"))
        for entry in entries
        for phrasing in draw.sample(phrasings, 4)
    ]


def read(model: Decoder, prefix: Tensor, asked: list[Question]) -> Iterator[tuple[int, Tensor, list[int]]]:
    """(index, hidden states [answer, hidden] that predict the answer, the argmax after each) of each question."""
    order = sorted(range(len(asked)), key=lambda index: len(asked[index].prompt) + len(asked[index].answer))
    for start in range(0, len(order), BATCH):
        group = order[start : start + BATCH]
        texts = [asked[index].prompt + asked[index].answer[:-1] for index in group]
        width = max(map(len, texts))
        hidden = model(prefix, torch.tensor([text + [0] * (width - len(text)) for text in texts]))
        for row, index in enumerate(group):
            states = hidden[row, len(asked[index].prompt) - 1 : len(texts[row])]
            yield index, states, functional.linear(states, model.embed_tokens).argmax(-1).tolist()


def answer(model: Decoder, prefix: Tensor, asked: list[Question], eos: int) -> list[Question]:
    """The same prompts with the model's greedy answers, up to the end token or LONGEST tokens."""
    answers: list[list[int]] = [[] for _ in asked]
    for start in range(0, len(asked), BATCH):
        live = list(range(start, min(start + BATCH, len(asked))))
        while live:
            texts = [Question(asked[index].prompt, [*answers[index], eos]) for index in live]
            for row, _, predicted in read(model, prefix, texts):
                answers[live[row]].append(predicted[-1])
            live = [index for index in live if answers[index][-1] != eos and len(answers[index]) < LONGEST]
    return [Question(question.prompt, found) for question, found in zip(asked, answers, strict=True)]


def word_for_word(model: Decoder, prefix: Tensor, asked: list[Question]) -> list[bool]:
    """Whether the greedy answer of each question is the expected one."""
    right = [False] * len(asked)
    for index, _, predicted in read(model, prefix, asked):
        right[index] = predicted == asked[index].answer
    return right


def head_ranks(model: Decoder, heads: Heads, prefix: Tensor, asked: list[Question]) -> list[np.ndarray]:
    """Per question [answer - 1, heads]: the rank a head gives the token to come; RANKS if lower, -1 past the end."""
    found: list[np.ndarray] = []
    for index, states, _ in read(model, prefix, asked):
        tokens = torch.tensor(asked[index].answer)
        ranks = np.full((len(tokens) - 1, len(heads)), -1)
        for number, head in enumerate(heads):
            wanted = tokens[1 + number :]
            if len(wanted):
                hit = head(states[: len(wanted)]).topk(RANKS).indices == wanted[:, None]
                ranks[: len(wanted), number] = np.where(hit.any(1), hit.float().argmax(1), RANKS)
        found.append(ranks)
    return found


def best_tree(chances: np.ndarray, nodes: int) -> set[Ranks]:
    """The `nodes` rank-tuples of the highest product of chances [heads, ranks]; parents outweigh their children."""
    paths: dict[Ranks, float] = {(): 1.0}
    tree: set[Ranks] = set()
    while len(tree) < nodes:
        leaf = nlargest(1, paths, key=lambda path: paths[path] - 1e-9 * len(path))[0]
        weight = paths.pop(leaf)
        tree |= {leaf} - {()}
        if len(leaf) < len(chances):
            paths |= {(*leaf, rank): weight * chance for rank, chance in enumerate(chances[len(leaf)])}
    return tree


def tokens_per_step(ranks: list[np.ndarray], tree: set[Ranks]) -> float:
    """Greedy tree speculation over answers: tokens after each answer's first, by the steps they took."""
    tokens = steps = 0
    for table in ranks:
        position = 0
        while position < len(table):
            accepted = 0
            while accepted < table.shape[1] and tuple(table[position, : accepted + 1]) in tree:
                accepted += 1
            position += accepted + 1
            steps += 1
        tokens += len(table)
    return tokens / max(steps, 1)


def accuracies(ranks: list[np.ndarray]) -> list[list[float]]:
    """[heads][top 1 to 5]: the share of tokens found among a head's best."""
    table = np.concatenate(ranks)
    return [[round(float((column[column >= 0] <= rank).mean()), 4) for rank in range(5)] for column in table.T]


def measure(folder: Path, entries: list[Entry]) -> dict[str, Any]:
    """The report's figures, all independent of the machine."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prefix = torch.tensor(tokenizer.encode(PREFIX, add_special_tokens=False).ids)
    model = Decoder(Shape())
    model.load(load_file(folder / "model.safetensors"))
    heads = load_heads(folder / "medusa_lm_head.safetensors")
    trained = [entry for entry in entries if not entry.heldout]
    parts = {
        "trained": questions(tokenizer, trained, TRAINED_PHRASINGS, 0),
        "held_out_phrasings": questions(tokenizer, trained, HELD_OUT_PHRASINGS, 1),
        "held_out_objects": questions(tokenizer, [entry for entry in entries if entry.heldout], TRAINED_PHRASINGS, 2),
    }
    eos = tokenizer.encode(EOS, add_special_tokens=False).ids[0]
    right: dict[str, float] = {}
    ranks: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for part, asked in parts.items():
            answered = word_for_word(model, prefix, asked)
            right[part] = round(sum(answered) / len(asked), 4)
            chosen = sorted(random.Random(3).sample(range(len(asked)), min(SAMPLE, len(asked))))
            own = [asked[index] for index in chosen if answered[index]]
            own += answer(model, prefix, [asked[index] for index in chosen if not answered[index]], eos)
            ranks[part] = head_ranks(model, heads, prefix, own)
    table = np.concatenate(ranks["trained"])
    chances = np.array([[(column[column >= 0] == rank).mean() for rank in range(RANKS)] for column in table.T])
    tree = best_tree(chances, TREE_NODES)
    chain: set[Ranks] = {(0,) * depth for depth in range(1, len(chances) + 1)}
    return {
        "objects": {"trained": len(trained), "held_out": len(entries) - len(trained)},
        "phrasings": {"trained": len(TRAINED_PHRASINGS), "held_out": len(HELD_OUT_PHRASINGS)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "word_for_word": right,
        "head_accuracy": {part: accuracies(found) for part, found in ranks.items()},
        "tokens_per_step": {
            part: {
                f"tree_{TREE_NODES}": round(tokens_per_step(found, tree), 3),
                f"chain_{len(chain)}": round(tokens_per_step(found, chain), 3),
            }
            for part, found in ranks.items()
        },
        "tree": sorted(tree, key=lambda path: (len(path), path)),
    }


def load_heads(file: Path) -> Heads:
    """Published heads, in fp32."""
    tensors = load_file(file)
    heads = Heads(len(tensors) // 3, tensors["0.1.weight"])
    heads.load_state_dict(tensors)
    return heads


def table(report: dict[str, Any]) -> str:
    """The report in words, as `make demo-model` prints it."""
    lines = []
    for part, share in report["word_for_word"].items():
        name = part.replace("_", " ")
        lines.append(f"{name}: {100 * share:.1f} % answered word for word")
        for number, row in enumerate(report["head_accuracy"][part]):
            lines.append(f"  head {number}, top-1 to top-5: " + " ".join(f"{100 * value:5.1f}" for value in row))
        rates = report["tokens_per_step"][part].items()
        lines.append(
            "  tokens per step: " + ", ".join(f"{kind.replace('_', ' of ')} {rate:.2f}" for kind, rate in rates)
        )
    lines += [f"{stage}: {value:.0f} minutes" for stage, value in report.get("minutes", {}).items()]
    return "\n".join(lines)


def write(report: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(report, indent=1) + "\n")
