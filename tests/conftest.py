"""What several kinds of tests share: the demo model, exported once a run in each precision."""

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
    """demo_artifact(precision): the demo model's artifact, read only."""
    root = tmp_path_factory.mktemp("artifacts")

    @cache
    def make(precision: str) -> Path:
        out = root / f"demo-{precision}"
        export(Source(CHECKPOINT, HEADS, precision), out, lambda message: None)
        return out

    return make
