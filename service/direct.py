"""Routes whose bodies are read without FastAPI's general way, which takes longer than a small model takes for a token.

FastAPI still describes them, and still says what is wrong with a body: what does not go the short way goes its way.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """Of an endpoint that takes a `body` and the request as `http`, and returns a Response; others are as ever."""

    def get_route_handler(self) -> Handler:
        general: Handler = super().get_route_handler()
        model = self.endpoint.__annotations__.get("body")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return general
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return await general(request)
            content = await request.body()  # is kept: the general way reads it again
            try:
                body = model.model_validate(json.loads(content))
            except (ValueError, RecursionError):
                return await general(request)
            response: Response = await endpoint(body, request)
            return response

        return handle
