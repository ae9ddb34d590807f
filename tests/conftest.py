"""What several kinds of tests share: the native library, and the demo model exported once a run in each precision."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from export.artifact import Source, export
from runtime.native.library import COMPILERS, Library, build

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


@pytest.fixture(scope="session")
def library() -> Library:
    """Built once from the sources as they are."""
    if not shutil.which("cmake") or not any(map(shutil.which, COMPILERS)):
        pytest.skip("no CMake or no C++ compiler here")
    return Library.load(build())


@pytest.fixture(scope="session", params=["stock", "native"])
def operators(request: pytest.FixtureRequest) -> str:
    """ONNX Runtime's operators, then our own."""
    if request.param == "native":
        request.getfixturevalue("library")
    return str(request.param)
