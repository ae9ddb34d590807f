"""Weights in fewer bits: free functions, arrays in, arrays out.

int8: W8A8, symmetric, a scale per output channel here and a scale per token at run time. Every token is quantized
alone, so its result does not depend on its neighbours in the batch.
int4, int8_blocks: symmetric blocks along the input dimension, in the layout of ONNX Runtime's MatMulNBits. A block of
whole multiples of one scale keeps its values bit for bit, whoever chose that scale: so does GGUF's Q4_0 in int4, and
Q4_0, Q5_0 and Q8_0 in int8_blocks.
"""

from collections.abc import Callable, Iterable

import numpy as np

from export.parts import in_parts

INT4_ZERO = 8  # MatMulNBits' default zero point: a nibble q stands for (q - 8) * scale
INT8_ZERO = 128  # likewise for bytes
HALF_LEAST, HALF_MOST = np.finfo(np.float16).smallest_normal, np.finfo(np.float16).max
_GLANCE, _NEAR = 4, np.float32(1e-3)  # values of a block that tell most scales apart: all near a level, or not
_SHRINK = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # clipping tried for each int4 block


def int8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> int8 [in, out] and float32 scales [out]."""
    levels, scale = np.empty(weight.shape[::-1], np.int8), np.empty(len(weight), np.float32)

    def quantize(rows: slice) -> None:
        values = weight[rows]
        largest = np.maximum(values.max(axis=1), -values.min(axis=1))
        scale[rows] = np.maximum(largest, np.float32(1e-12)) / np.float32(127)
        levels[:, rows] = np.rint(values / scale[rows, None]).T

    for _ in in_parts(weight, quantize):
        pass
    return levels, scale


def int4(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> uint8 [out, blocks, block / 2], low nibble first, and float32 scales [out, blocks].

    Each block takes, of a few scales from its largest value down, the one with the least squared error; the largest
    value by magnitude keeps its sign at level -8, which uses all 16 levels. Scales are float16 numbers, as
    GGUF's are, where those reach: native operators then read half as many bytes of them.
    """
    return _quantized(weight, block, _int4_scale, (-8, 7), INT4_ZERO, lambda level: level[0::2] | level[1::2] << 4)


def int8_blocks(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] float32 -> uint8 [out, blocks, block] and float32 scales [out, blocks]; the largest value is at 127."""
    return _quantized(weight, block, _int8_scale, (-128, 127), INT8_ZERO, lambda level: level)


def _quantized(
    weight: np.ndarray,
    block: int,
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray],  # values [block, blocks], their peaks -> scales [blocks]
    levels: tuple[int, int],
    zero: int,
    pack: Callable[[np.ndarray], np.ndarray],  # uint8 [block, blocks] -> [bytes, blocks]
) -> tuple[np.ndarray, np.ndarray]:
    out, blocks = len(weight), -(-weight.shape[1] // block)
    packed = np.empty((out, blocks, len(pack(np.zeros((block, 1), np.uint8)))), np.uint8)
    scale = np.empty((out, blocks), np.float32)

    def quantize(rows: slice) -> None:
        values = _in_blocks(weight[rows], block)
        highest, lowest = values.max(axis=0), values.min(axis=0)
        chosen = choose(values, np.where(highest >= -lowest, highest, lowest))
        level = np.clip(np.rint(values / chosen), *levels) + np.float32(zero)
        packed[rows] = pack(level.astype(np.uint8)).T.reshape(packed[rows].shape)
        scale[rows] = chosen.reshape(scale[rows].shape)

    for _ in in_parts(weight, quantize):
        pass
    return packed, scale


def _int4_scale(values: np.ndarray, peak: np.ndarray) -> np.ndarray:
    best_scale = np.ones_like(peak)
    best_error = np.full_like(peak, np.inf)
    off = np.empty_like(values)
    for shrink in _SHRINK:
        scale = _as_half(np.where(peak == 0, np.float32(1), peak * shrink / np.float32(-8)))
        np.rint(np.divide(values, scale, out=off), out=off)
        np.subtract(np.multiply(np.clip(off, -8, 7, out=off), scale, out=off), values, out=off)
        error = np.square(off, out=off).sum(axis=0)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    _find_exact(values, peak, best_scale, best_error != 0, range(1, 8), 7)
    return best_scale


def _int8_scale(values: np.ndarray, peak: np.ndarray) -> np.ndarray:
    scale = np.where(peak == 0, np.float32(1), np.abs(peak) / np.float32(127))
    rough = (np.rint(values / scale) * scale != values).any(axis=0)
    rough = _find_exact(values, peak, scale, rough, (*range(1, 17), -128), 127)  # with Q4_0 and Q5_0, a few levels do
    if not rough.all():  # else no block is of a file of such blocks: do not look for their scales in vain
        _find_exact(values, peak, scale, rough, range(17, 127), 127)
    return scale


def _in_blocks(weight: np.ndarray, block: int) -> np.ndarray:
    """[out, in] -> [block, out * blocks], filled up with zeros: operations on blocks run along the long side."""
    out, width = weight.shape
    blocks = -(-width // block)
    padded = np.zeros((out, blocks * block), np.float32)
    padded[:, :width] = weight
    return np.ascontiguousarray(padded.reshape(-1, block).T)


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
    rough = rough.copy()
    with np.errstate(invalid="ignore"):  # a block of zeros is not rough
        shares = values[:_GLANCE] / peak
    for level in levels:
        glance = shares * np.float32(level)
        likely = np.flatnonzero(rough & (np.abs(glance - np.rint(glance)) < _NEAR).all(axis=0))
        tried, found = peak[likely] / np.float32(level), values[:, likely]
        whole = np.minimum(np.rint(found / tried), highest)  # -128's counterpart is one too many
        exact = (whole * tried == found).all(axis=0)
        scale[likely[exact]] = tried[exact]
        rough[likely[exact]] = False
    return rough


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
