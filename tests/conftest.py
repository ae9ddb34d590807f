"""What several kinds of tests share: the demo model, exported once a run in each precision and graph form."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from export.artifact import Source, export

DEMO = Path(__file__).parents[1] / "export" / "demo"
CHECKPOINT = DEMO / "model"
HEADS = CHECKPOINT / "medusa_lm_head.safetensors"


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """demo_artifact(precision): the demo model's artifact, read only; padded-PRECISION is one of the padded form."""
    root = tmp_path_factory.mktemp("artifacts")

    @cache
    def make(precision: str) -> Path:
        out = root / f"demo-{precision}"
        form = "padded" if precision.startswith("padded-") else "ragged"
        source = Source(CHECKPOINT, HEADS, precision.removeprefix("padded-"), form)
        export(source, out, lambda message: None)
        return out

    return make
