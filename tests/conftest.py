"""What several kinds of tests share: the native library, and the demo model, exported once a run in each precision and
graph form."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from export.artifact import Source, export
from runtime.errors import GorgonError
from runtime.graphs import check_provider
from runtime.native.library import COMPILERS, Library, build
from runtime.params import PROVIDERS
from tests import provider

DEMO = Path(__file__).parents[1] / "export" / "demo"
CHECKPOINT = DEMO / "model"
HEADS = CHECKPOINT / "medusa_lm_head.safetensors"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--provider", choices=PROVIDERS[1:], default="cpu", help="runs tests of the padded form")


def pytest_configure(config: pytest.Config) -> None:
    provider.chosen = config.getoption("--provider")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before all tests fail for one reason: a provider that is not there."""
    if provider.chosen != "cpu":
        try:
            check_provider(provider.chosen)
        except GorgonError as error:
            pytest.exit(str(error), returncode=error.exit_code)


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
