"""The short way to an endpoint: FastAPI's layers together take as long as a small model takes for a token.

FastAPI still describes these routes, and still says what is wrong: what cannot go the short way, or fails on it, goes
FastAPI's.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.headers import header

FAILED = "gorgon.failed"  # in a request's scope: what the short way raised

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """Of an endpoint that takes a `body` and the request as `http`, and returns a Response; others are as ever."""

    @property
    def model(self) -> type[BaseModel] | None:
        """Of the body, where the endpoint may be asked directly."""
        model = self.endpoint.__annotations__.get("body")
        return model if isinstance(model, type) and issubclass(model, BaseModel) else None

    def get_route_handler(self) -> Handler:
        general: Handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if (error := request.scope.get(FAILED)) is not None:
                raise error
            return await general(request)

        return handle


class Direct:
    """Around the application: reads the bodies that are posted to direct routes, and asks their endpoints."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._routes: dict[str, tuple[DirectRoute, type[BaseModel]]] = {}
        for route in app.router.routes:
            if isinstance(route, DirectRoute) and (model := route.model) is not None:
                self._routes[route.path] = route, model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.get(scope.get("path", "")) if scope.get("method") == "POST" else None
        if found is None or header(scope, b"content-type").partition(";")[0].strip() != "application/json":
            await self._app(scope, receive, send)
            return
        route, model = found
        scope["app"], scope["route"] = self._app, route
        response: ASGIApp
        try:
            content = await _read(receive)
            try:
                body = model.model_validate(json.loads(content))
            except (ValueError, RecursionError):
                await self._app(scope, _again(content, receive), send)
                return
            response = await route.endpoint(body, Request(scope, receive, send))
        except Exception as error:  # raised again where the application's handlers answer to it
            scope[FAILED] = error
            response = self._app
        await response(scope, receive, send)


async def _read(receive: Receive) -> bytes:
    """A whole body; raises ClientDisconnect."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(content: bytes, receive: Receive) -> Receive:
    """`receive` with a body that was read before what is still to come."""
    first: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receiving() -> Message:
        return first.pop() if first else await receive()

    return receiving
