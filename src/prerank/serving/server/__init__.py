"""The HTTP server: protocol, limits, queue, metrics, workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prerank.plugins import lazy_names

if TYPE_CHECKING:
    from prerank.serving.server.app import make_app as make_app
    from prerank.serving.server.config import ServerConfig as ServerConfig
    from prerank.serving.server.workers.supervisor import Started as Started
    from prerank.serving.server.workers.supervisor import serve as serve

_TARGETS = {
    "ServerConfig": "prerank.serving.server.config:ServerConfig",
    "Started": "prerank.serving.server.workers.supervisor:Started",
    "make_app": "prerank.serving.server.app:make_app",
    "serve": "prerank.serving.server.workers.supervisor:serve",
}

__all__ = sorted(_TARGETS)  # noqa: PLE0605

# starlette and uvicorn are an extra: imported when the server is first used.
__getattr__, __dir__ = lazy_names(__name__, _TARGETS)
