"""The ASGI application of one worker."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from prerank.serving.server.auth import Guard
from prerank.serving.server.gate import Gate
from prerank.serving.server.routes import Routes
from prerank.serving.server.service import Service

__all__ = ["make_app"]


def make_app(service: Service, token: str = "") -> ASGIApp:
    """Return the application.

    Parameters
    ----------
    service : Service
        What its routes share.
    token : str
        Bearer token to ask for; empty: none.
    """
    guard = Guard(token)
    routes = Routes(service, needs_token=not guard.is_open)
    # Flat table, no redirects: a path either exists or it does not.
    router = Router(
        [
            Route("/v1/rank", routes.rank, methods=["POST"]),
            Route("/v1/rank:batch", routes.batch, methods=["POST"]),
            Route("/v1/items", routes.items, methods=["POST"]),
            Route("/v1/reload", routes.reload, methods=["POST"]),
            Route("/v1/model", routes.model, methods=["GET"]),
            Route("/healthz", routes.healthz, methods=["GET"]),
            Route("/readyz", routes.readyz, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
            Route("/openapi.json", routes.openapi, methods=["GET"]),
        ],
        redirect_slashes=False,
    )

    async def routed(scope, receive, send):  # type: ignore[no-untyped-def]
        # Makes the router raise instead of answering by itself.
        scope["app"] = router
        await router(scope, receive, send)

    return Gate(routed, guard, service.done, service.note, service.config.max_body)
