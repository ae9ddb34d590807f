"""Weights in blocks: what can be kept to the bit is, and all else comes as near as the bits allow."""

import numpy as np
import pytest

from export.quantize import int4, int4_values, int8_block_values, int8_blocks

BLOCK = 32
FORMS = {"int4": (int4, int4_values, -8, 7), "int8": (int8_blocks, int8_block_values, -128, 127)}


def stored(form: str, weight: np.ndarray) -> np.ndarray:
    """What an artifact would hold of it."""
    quantize, values, *_ = FORMS[form]
    return values(*quantize(weight, BLOCK), weight.shape[1])


def scales(random: np.random.Generator, blocks: int) -> np.ndarray:
    """float16 of either sign and any magnitude, subnormal ones too."""
    exponents = random.integers(-24, 4, blocks).astype(np.float32)
    wide = random.normal(0, 1, blocks).astype(np.float32) * np.exp2(exponents)
    return wide.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("peak", ["any", "least", "most"])
def test_whole_multiples_of_a_float16_are_kept_to_the_bit(form: str, peak: str) -> None:
    """Whatever level the largest value of a block has: other programs choose scales otherwise than llama.cpp does."""
    *_, low, high = FORMS[form]
    random = np.random.default_rng(0)
    levels = random.integers(low, high + 1, (40, 6, BLOCK)).astype(np.float32)
    if peak == "any":
        levels = np.rint(levels * random.random((40, 6, 1), np.float32))
        levels[0, 0] = 0
    elif peak == "least":
        levels[..., 7] = low
    else:
        levels = np.clip(levels, -high, high)
        levels[..., 7] = high
    weight = (levels * scales(random, 40 * 6).reshape(40, 6, 1)).reshape(40, -1)
    np.testing.assert_array_equal(stored(form, weight), weight)


@pytest.mark.parametrize("highest", [7, 15])
def test_fewer_bits_in_eight(highest: int) -> None:
    """A file of Q4_0 or Q5_0 keeps its values in int8-block32 as well."""
    random = np.random.default_rng(1)
    levels = random.integers(-highest - 1, highest + 1, (40, 6, BLOCK)).astype(np.float32)
    weight = (levels * scales(random, 40 * 6).reshape(40, 6, 1)).reshape(40, -1)
    np.testing.assert_array_equal(stored("int8", weight), weight)


def test_the_lowest_level_has_no_counterpart() -> None:
    """A block with 64 and -64 of a scale has no 128 and -128 of half of it."""
    levels = np.zeros((2, BLOCK), np.float32)
    levels[0, :3], levels[1, :3] = (-64, 64, 3), (127, -1, 5)
    weight = (levels * np.float32(0.01171875)).reshape(2, BLOCK)
    np.testing.assert_array_equal(stored("int8", weight), weight)


@pytest.mark.parametrize("form", FORMS)
def test_other_values_come_near(form: str) -> None:
    weight = np.random.default_rng(2).normal(0, 1, (50, 100)).astype(np.float32)  # a last block of four
    error = np.abs(stored(form, weight) - weight)
    padded = np.zeros((50, 128), np.float32)
    padded[:, :100] = np.abs(weight)
    peaks = padded.reshape(50, 4, BLOCK).max(axis=2).repeat(BLOCK, axis=1)[:, :100]
    assert (error <= peaks / {"int4": 4, "int8": 253}[form]).all()
