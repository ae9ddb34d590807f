from collections.abc import Iterator

import pytest

from tests.service.serving import HeldSession, Serving, engine_on, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    """A server that a module's tests share; its session takes steps as fast as it can."""
    with serving(lambda: engine_on(HeldSession())) as running:
        yield running
        status, health = running.health()
        assert (status, health["rows_in_use"], health["waiting"]) == (200, 0, 0), "a test left a request behind"
