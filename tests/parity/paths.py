"""Random trees for a session, and the plain run they are compared with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.batch import Packer
from runtime.manifest import Manifest
from runtime.ragged import RaggedSession
from runtime.tree import Tree, lone

ROWS = 8


@dataclass
class Model:
    """A session and its packer: logits of whatever rows bring."""

    session: RaggedSession
    packer: Packer

    @classmethod
    def load(cls, artifact: Path, exact: bool = True, operators: str = "auto") -> "Model":
        manifest = Manifest.read(artifact)
        session = RaggedSession(artifact, manifest, ROWS, 2, operators)
        return cls(session, Packer(exact, manifest.even_tokens, manifest.context))

    def run(self, works: list[tuple[int, list[int] | Tree]]) -> list[np.ndarray]:
        """For each row the logits of its tree's nodes [nodes, vocab], or of its chunk's last token [1, vocab]."""
        batch, first = self.packer.pack(works)
        result = self.session.run(batch)
        counts = [len(work.tokens) if isinstance(work, Tree) else 1 for _, work in works]
        return [result.logits[at : at + n].copy() for at, n in zip(first, counts, strict=True)]

    def prefill(self, prompts: list[list[int]]) -> list[np.ndarray]:
        """Rows 0, 1, ... take the prompts; [vocab] logits after each."""
        logits = [row[0] for row in self.run([(0, prompt) for prompt in prompts])]
        for row, prompt in enumerate(prompts):
            self.session.commit(row, 0, list(range(len(prompt))), row)
        return logits

    def plain(self, prompt: list[int], tokens: list[int]) -> np.ndarray:
        """[1 + tokens, vocab]: the prompt in one chunk, then one token a step, alone in row 0."""
        logits = self.prefill([prompt])
        for i, token in enumerate(tokens):
            logits.append(self.run([(len(prompt) + i, lone(token))])[0][0])
            self.session.commit(0, len(prompt) + i, [0], 0)
        return np.stack(logits)


def make_tree(tokens: list[int], parents: list[int]) -> Tree:
    ancestors, depth = np.eye(len(tokens), dtype=bool), np.zeros(len(tokens), np.int64)
    for i, parent in enumerate(parents[1:], 1):
        ancestors[i] |= ancestors[parent]
        depth[i] = depth[parent] + 1
    return Tree(tokens, parents, depth, ancestors)


def random_tree(
    rng: np.random.Generator, path: list[int], nodes: int, vocab: int, path_first: bool
) -> tuple[Tree, list[int]]:
    """A tree that holds `path` from its root, and the slots that path lies in: the first ones, or among other nodes."""
    order = list(range(len(path)))  # at which step of building each path node comes
    if not path_first:
        order = [0, *sorted(rng.choice(np.arange(1, nodes), len(path) - 1, replace=False).tolist())]
    tokens, parents, slots = [path[0]], [-1], [0]
    taken = {(-1, path[0])}
    for i in range(1, nodes):
        if len(slots) < len(path) and i == order[len(slots)]:
            token, parent = path[len(slots)], slots[-1]
            slots.append(i)
        else:
            parent = int(rng.integers(0, i))
            ahead = (
                path[slots.index(parent) + 1]
                if parent in slots[:-1] or parent == slots[-1] and len(slots) < len(path)
                else -1
            )
            token = int(rng.integers(0, vocab))
            while (parent, token) in taken or token == ahead:
                token = int(rng.integers(0, vocab))
        taken.add((parent, token))
        tokens.append(token)
        parents.append(parent)
    return make_tree(tokens, parents), slots
