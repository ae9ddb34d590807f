"""What results are promised to be: the same bits, or as near as the provider and the precision allow.

The ragged form, and the padded one on the CPU, compute a row to the same bits whatever shares its step. A GPU takes
other kernels for products of other sizes: there, results of the padded form are near, texts may fork where the model is
undecided within its noise, and tests say so instead. `pytest --provider PROVIDER -k padded tests/parity` runs all of
them on the padded form.
"""

import numpy as np
import pytest

from runtime.manifest import Manifest
from runtime.session import Session
from tests import provider

# largest difference of a logit, as a share of the largest: from transformers' float32, or from the same by another way
SHARE = {"fp32": 1e-4, "fp16": 0.02, "int4": 0.02}
PADDED = ("padded-fp32", pytest.param("padded-fp16", marks=pytest.mark.slow))
PADDED_IN_FULL = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("padded-fp32", "padded-fp16"))


def to_the_bit(of: Session | Manifest | str) -> bool:
    """Of a session, a manifest, or a precision as tests name them: `int8`, `padded-fp16`."""
    form = of.partition("-")[0] if isinstance(of, str) else getattr(of, "manifest", of).form
    return form != "padded" or provider.chosen == "cpu"


def share_of(name: str) -> float:
    """Of a precision as tests name them."""
    return SHARE[name.removeprefix("padded-")]


def difference(found: np.ndarray, want: np.ndarray) -> float:
    """The largest one, as a share of the largest value."""
    return float(np.abs(found - want).max() / np.abs(want).max())


def same(session: Session, found: np.ndarray, want: np.ndarray) -> bool:
    """Whether logits are what is promised of logits computed another way by the same session."""
    if to_the_bit(session):
        return np.array_equal(found, want)
    return difference(found, want) <= share_of(session.manifest.precision)


def first_fork(mine: list[int], other: list[int]) -> int:
    """Where two texts differ first; one that ends before the other forks at its end."""
    pairs = enumerate(zip(mine, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(mine), len(other)))
