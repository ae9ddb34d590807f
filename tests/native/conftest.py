"""The paths of the native operators, one after the other."""

from collections.abc import Iterator

import pytest

from runtime.native.library import PATHS, Library


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, library: Library) -> Iterator[str]:
    """Each path in force in turn, those that this processor lacks skipped."""
    if not library.has(request.param):
        pytest.skip(f"this processor has no {request.param}")
    with library.forced(request.param):
        yield request.param
