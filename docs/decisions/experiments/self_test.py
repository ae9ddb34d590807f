"""What the self-test measures for right artifacts, and for those with one tensor of the checkpoint scrambled.

Run from the repository's root:  .venv/bin/python -m docs.decisions.experiments.self_test [CHECKPOINT]
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from export import artifact, selftest
from export.arithmetic import EXACT
from export.artifact import Source
from export.checkpoint import expected_shapes
from export.config import ModelConfig
from export.decoder import build_decoder
from tests.checkpoints import tiny_llama

PRECISIONS = ("fp32", "int8", "int4")
DEMO = Path(__file__).parents[3] / "export" / "demo" / "model"
DEEP = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}


def error(checkpoint: Path, precision: str, scrambled: str | None = None) -> float:
    """The self-test's figure; the graph is built with one tensor's values in another order."""

    def build(config: ModelConfig, tensor: Callable[[str], np.ndarray], *rest: object) -> None:
        def read(name: str) -> np.ndarray:
            values = tensor(name)
            return (
                np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)
                if name == scrambled
                else values
            )

        build_decoder(config, read, *rest)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder, patch.object(artifact, "build_decoder", build):
        _, report = artifact.export(Source(checkpoint, None, precision), Path(folder) / "a", lambda what: None)
    assert report is not None
    return report.decoder


def main(checkpoint: Path) -> None:
    selftest.LIMITS = {"ragged": dict.fromkeys(PRECISIONS, np.inf)}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in (("2 layers of 64", {}), ("6 layers of 128", DEEP)):
            models = [tiny_llama(Path(folder) / name / str(seed), seed=seed, **shape) for seed in range(30)]  # type: ignore[arg-type]
            for precision in PRECISIONS:
                errors = sorted(error(model, precision) for model in models)
                print(
                    f"random, {name}, {precision}: median {errors[15]:.1e}, largest {errors[-1]:.1e} of 30", flush=True
                )
    for precision in PRECISIONS:
        print(f"{checkpoint.name}, {precision}: {error(checkpoint, precision):.1e}", flush=True)
    for precision in PRECISIONS[1:]:
        with patch.object(selftest, "arithmetic", lambda numerics: EXACT):
            plain = error(checkpoint, precision)
        print(f"{checkpoint.name}, {precision}, against a reference that does not round: {plain:.1e}", flush=True)
    names = sorted(expected_shapes(ModelConfig.read(checkpoint)))
    for kind, chosen in (
        ("matrices", [n for n in names if "norm" not in n]),
        ("norms", [n for n in names if "norm" in n]),
    ):
        found = sorted((error(checkpoint, "int8", name), name) for name in chosen)
        least = ", ".join(f"{name} {value:.1e}" for value, name in found[:3])
        print(f"{checkpoint.name}, int8, one of {len(chosen)} {kind} scrambled, the least: {least}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO)
