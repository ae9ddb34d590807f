"""One header of a request, as ASGI has them."""

from starlette.types import Scope


def header(scope: Scope, name: bytes) -> str:
    """The first value of a header, `name` in lower case; empty where there is none."""
    value: bytes
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""
