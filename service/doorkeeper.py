"""What every request passes first and every response last."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics


class Doorkeeper:
    """Counts responses. Outside of the application, so that also its failures are seen."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.responded(_path(scope), message["status"])
            await send(message)

        await self._app(scope, receive, sending)


def _path(scope: Scope) -> str:
    """A route's path: clients may ask for any number of others."""
    route = scope.get("route")
    return "other" if route is None else str(route.path)
