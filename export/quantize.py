"""Weights in fewer bits: free functions, arrays in, arrays out.

int8: W8A8, symmetric, a scale per output channel here and a scale per token at run time. Every token is quantized
alone, so its result does not depend on its neighbours in the batch.
int4: symmetric blocks along the input dimension, in the layout of ONNX Runtime's MatMulNBits.
"""

import numpy as np

INT4_ZERO = 8  # MatMulNBits' default zero point: a nibble q stands for (q - 8) * scale
_SHRINK = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # clipping tried for each int4 block


def int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> int8 [in, out] and float32 scales [out]."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-12)) / np.float32(127)
    levels = np.rint(weight / scale[:, None]).astype(np.int8)
    return np.ascontiguousarray(levels.T), scale.astype(np.float32)


def int4(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> uint8 [out, blocks, block / 2], low nibble first, and float32 scales [out, blocks].

    Each block takes, of a few scales from its largest value down, the one with the least squared error; the largest
    value by magnitude keeps its sign at level -8, which uses all 16 levels.
    """
    out, width = weight.shape
    blocks = -(-width // block)
    padded = np.zeros((out, blocks * block), np.float32)
    padded[:, :width] = weight
    values = padded.reshape(out, blocks, block)
    peak = np.take_along_axis(values, np.abs(values).argmax(axis=2)[..., None], axis=2)[..., 0]  # [out, blocks]
    best_scale = np.ones_like(peak)
    best_error = np.full_like(peak, np.inf)
    for shrink in _SHRINK:
        scale = np.where(peak == 0, np.float32(1), peak * shrink / np.float32(-8))
        levels = np.clip(np.rint(values / scale[..., None]), -8, 7)
        error = np.square(levels * scale[..., None] - values).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    nibbles = (np.clip(np.rint(values / best_scale[..., None]), -8, 7) + INT4_ZERO).astype(np.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4, best_scale


def int4_values(packed: np.ndarray, scale: np.ndarray, width: int) -> np.ndarray:
    """What `int4` stored, as float32 [out, in]."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    values: np.ndarray = (nibbles.astype(np.float32) - INT4_ZERO) * scale[..., None]
    return values.reshape(len(packed), -1)[:, :width]
