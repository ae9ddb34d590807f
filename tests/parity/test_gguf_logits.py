"""A GGUF file's artifact against transformers, given what llama.cpp's own package says the blocks stand for."""

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_llama, write_tensors
from tests.gguf_files import Gguf, Kind
from tests.parity.test_config_fields import LIMIT, by_artifact, by_transformers, error

TOKENS = np.random.default_rng(5).integers(0, 320, 100)
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1}


KINDS = ((Kind.F16, {}), (Kind.Q4_0, {}), (Kind.Q8_0, {"num_key_value_heads": 1}), (Kind.Q4_K, WIDE), (Kind.Q6_K, WIDE))


@pytest.mark.parametrize(
    ("kind", "overrides", "precision"),
    [
        *((*kind, precision) for kind in KINDS for precision in ("fp32", "padded-fp32")),
        # blocks of every possible content exceed what float16 holds, but for these
        *(pytest.param(*kind, "padded-fp16", marks=pytest.mark.slow) for kind in KINDS[:2]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_logits(tmp_path: Path, kind: Kind, overrides: dict[str, int], precision: str) -> None:
    made = Gguf(overrides, kind)
    base = tiny_llama(tmp_path / "base", **made.config)
    write_tensors(base, made.values)
    want = by_transformers(base, TOKENS)
    found = by_artifact(made.write(tmp_path / "tiny.gguf"), tmp_path / "tiny", TOKENS, precision)
    assert error(found, want) < LIMIT[precision.removeprefix("padded-")]
