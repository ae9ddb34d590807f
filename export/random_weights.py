"""Tensors of random values that follow from a seed and the tensor's name, drawn piece by piece."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from export.checkpoint import EMBEDDING, expected_shapes
from export.config import ModelConfig
from export.tensors import Shape

PIECE = 1 << 22  # values drawn at a time


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor to be drawn from a normal distribution."""

    name: str
    shape: Shape
    mean: float
    std: float

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def pieces(self, seed: int) -> Iterator[np.ndarray]:
        """The values in order, flat float32 pieces."""
        random = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        for start in range(0, self.size, PIECE):
            values = random.standard_normal(min(PIECE, self.size - start), np.float32)
            values *= np.float32(self.std)
            values += np.float32(self.mean)
            yield values


def model_weights(config: ModelConfig, std: float) -> list[Weight]:
    """Every tensor of the checkpoint: norms around 1, all others around 0.

    The embedding is of the scale of all layers' sum, each of which adds 1/sqrt(2 * layers) of what `std` makes of it
    (Radford et al., GPT-2, 2019): a model of std alone is chaotic and turns rounding of weights into other logits.
    """
    weights = []
    for name, shape in expected_shapes(config).items():
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        own = 1.0 if name == EMBEDDING else std / (2 * config.layers) ** 0.5 if adds else std
        weights.append(Weight(name, shape, 1.0 if name.endswith("norm.weight") else 0.0, own))
    return weights


def head_weights(config: ModelConfig, heads: int, std: float) -> list[Weight]:
    """Medusa heads in layout v1, one layer each."""
    hidden, vocab = config.hidden, config.vocab
    shapes: dict[str, Shape] = {}
    for h in range(heads):
        shapes[f"{h}.0.linear.weight"] = (hidden, hidden)
        shapes[f"{h}.0.linear.bias"] = (hidden,)
        shapes[f"{h}.1.weight"] = (vocab, hidden)
    return [Weight(name, shape, 0.0, std) for name, shape in shapes.items()]
