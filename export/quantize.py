"""Weights in fewer bits: free functions, arrays in, arrays out.

int8: W8A8, symmetric, a scale per output channel here and a scale per token at run time. Every token is quantized
alone, so its result does not depend on its neighbours in the batch.
int4, int8_blocks: symmetric blocks along the input dimension, in the layout of ONNX Runtime's MatMulNBits. A block of
whole multiples of one scale keeps its values bit for bit, whoever chose that scale: so does GGUF's Q4_0 in int4, and
Q4_0, Q5_0 and Q8_0 in int8_blocks.
"""

from collections.abc import Iterable

import numpy as np

INT4_ZERO = 8  # MatMulNBits' default zero point: a nibble q stands for (q - 8) * scale
INT8_ZERO = 128  # likewise for bytes
HALF_LEAST, HALF_MOST = np.finfo(np.float16).smallest_normal, np.finfo(np.float16).max
_GLANCE = 4  # values of a block that tell most scales apart
_SHRINK = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # clipping tried for each int4 block


def int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> int8 [in, out] and float32 scales [out]."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-12)) / np.float32(127)
    levels = np.rint(weight / scale[:, None]).astype(np.int8)
    return np.ascontiguousarray(levels.T), scale.astype(np.float32)


def int4(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> uint8 [out, blocks, block / 2], low nibble first, and float32 scales [out, blocks].

    Each block takes, of a few scales from its largest value down, the one with the least squared error; the largest
    value by magnitude keeps its sign at level -8, which uses all 16 levels. Scales are float16 numbers, as
    GGUF's are, where those reach: native operators then read half as many bytes of them.
    """
    values = _in_blocks(weight, block)
    peak = _peaks(values)
    best_scale = np.ones_like(peak)
    best_error = np.full_like(peak, np.inf)
    for shrink in _SHRINK:
        scale = _as_half(np.where(peak == 0, np.float32(1), peak * shrink / np.float32(-8)))
        levels = np.clip(np.rint(values / scale[..., None]), -8, 7)
        error = np.square(levels * scale[..., None] - values).sum(axis=2)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    _find_exact(values, peak, best_scale, best_error != 0, range(1, 8), 7)
    nibbles = (np.clip(np.rint(values / best_scale[..., None]), -8, 7) + INT4_ZERO).astype(np.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4, best_scale


def int8_blocks(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> uint8 [out, blocks, block] and float32 scales [out, blocks]; the largest value is at 127."""
    values = _in_blocks(weight, block)
    peak = _peaks(values)
    scale = np.where(peak == 0, np.float32(1), np.abs(peak) / np.float32(127))
    rough = (np.rint(values / scale[..., None]) * scale[..., None] != values).any(axis=2)
    rough = _find_exact(values, peak, scale, rough, (*range(1, 17), -128), 127)  # with Q4_0 and Q5_0, a few levels do
    if not rough.all():  # else no block is of a file of such blocks: do not look for their scales in vain
        _find_exact(values, peak, scale, rough, range(17, 127), 127)
    levels = np.clip(np.rint(values / scale[..., None]), -128, 127)
    return (levels + INT8_ZERO).astype(np.uint8), scale


def _in_blocks(weight: np.ndarray, block: int) -> np.ndarray:
    """[out, in] -> [out, blocks, block], filled up with zeros."""
    out, width = weight.shape
    blocks = -(-width // block)
    padded = np.zeros((out, blocks * block), np.float32)
    padded[:, :width] = weight
    return padded.reshape(out, blocks, block)


def _peaks(values: np.ndarray) -> np.ndarray:
    """The largest value by magnitude of each block, [out, blocks]."""
    peaks: np.ndarray = np.take_along_axis(values, np.abs(values).argmax(axis=2)[..., None], axis=2)[..., 0]
    return peaks


def _as_half(scale: np.ndarray) -> np.ndarray:
    """The nearest float16, as float32; left as it is where float16 has no number of full precision."""
    magnitude = np.abs(scale)
    within = (magnitude >= HALF_LEAST) & (magnitude <= HALF_MOST)
    halves: np.ndarray = np.where(within, np.where(within, scale, 1).astype(np.float16).astype(np.float32), scale)
    return halves


def _find_exact(
    values: np.ndarray, peak: np.ndarray, scale: np.ndarray, rough: np.ndarray, levels: Iterable[int], highest: int
) -> np.ndarray:
    """Puts into `scale` one that gives the values of a `rough` block exactly, if its peak is at one of `levels`.

    Returns which blocks are still rough. Of whole multiples of a float16, peak / level is that float16 to the bit.
    """
    left = np.argwhere(rough)
    for level in levels:
        rows, columns = left.T
        tried = peak[rows, columns] / np.float32(level)
        glance = values[rows, columns, :_GLANCE]
        likely = np.flatnonzero((np.rint(glance / tried[:, None]) * tried[:, None] == glance).all(axis=1))
        found = values[rows[likely], columns[likely]]
        whole = np.minimum(np.rint(found / tried[likely, None]), highest)  # -128's counterpart is one too many
        exact = likely[(whole * tried[likely, None] == found).all(axis=1)]
        scale[rows[exact], columns[exact]] = tried[exact]
        left = np.delete(left, exact, axis=0)
    still = np.zeros_like(rough)
    still[tuple(left.T)] = True
    return still


def int4_values(packed: np.ndarray, scale: np.ndarray, width: int) -> np.ndarray:
    """What `int4` stored, as float32 [out, in]."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    return _values(nibbles.astype(np.float32) - INT4_ZERO, scale, width)


def int8_block_values(packed: np.ndarray, scale: np.ndarray, width: int) -> np.ndarray:
    """What `int8_blocks` stored, as float32 [out, in]."""
    return _values(packed.astype(np.float32) - INT8_ZERO, scale, width)


def _values(levels: np.ndarray, scale: np.ndarray, width: int) -> np.ndarray:
    values: np.ndarray = levels * scale[..., None]
    return values.reshape(len(values), -1)[:, :width]
