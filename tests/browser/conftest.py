import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.engine import Engine
from runtime.params import EngineConfig
from tests.browser.chromium import Page, browser, find
from tests.fake import fake_cost
from tests.service.serving import Serving, serving

MISSING = "needs Chromium: apt-get install chromium, or a chromium, chromium-browser or google-chrome in PATH"


@pytest.fixture(scope="session")
def new_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Page]]:
    """Where REQUIRE_CHROMIUM is set, as `.ci/run` does, a missing browser is a failure."""
    program = find()
    if program is None:
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with browser(program, tmp_path_factory.mktemp("chromium")) as new:
        yield new


@pytest.fixture
def page(new_page: Callable[[], Page]) -> Iterator[Page]:
    """A tab that nothing complains in but what a test excuses, and that asks only the server it is from."""
    page = new_page()
    yield page
    assert page.complaints() == []
    assert len({request["url"].split("/")[2] for request in page.requests()}) == 1, "a request to somewhere else"
    page.close()


@pytest.fixture(scope="session")
def demo(demo_artifact: Callable[[str], Path]) -> Iterator[Serving]:
    """The demo model behind a real server, with steps that cost what the fake's do: nothing is measured first."""
    config = EngineConfig(rows=2, context=256)
    with serving(lambda: Engine.from_artifact(demo_artifact("int8"), config, fake_cost())) as server:
        yield server
