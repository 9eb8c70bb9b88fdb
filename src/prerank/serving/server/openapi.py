"""The OpenAPI 3.1 document, made from the messages themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from prerank import __version__
from prerank.serving.messages import RankRequest
from prerank.serving.server.protocol import (
    Answer,
    BatchAnswer,
    BatchRequest,
    Failure,
    ItemsAnswer,
    ItemsRequest,
    ReloadAnswer,
    ReloadRequest,
    State,
)

__all__ = ["document"]

_BODIES = ("application/json", "application/msgpack")
_WHY = {
    400: "Malformed: neither JSON nor msgpack, or a key twice in one object.",
    401: "The bearer token is missing or wrong.",
    404: "No such path.",
    405: "No such method here.",
    408: "The body did not come in time.",
    409: "The history (or the server) is not in the state that the call assumes.",
    413: "Larger than the limits of the server.",
    415: "Another content type, or compressed.",
    422: "A value does not fit; the message says which, where, and what was expected.",
    503: "No room, or stopping; come again after Retry-After.",
}


def document(*, needs_token: bool) -> dict[str, Any]:
    """Return the document.

    Parameters
    ----------
    needs_token : bool
        Whether this server asks for a bearer token.

    Examples
    --------
    >>> sorted(document(needs_token=False)["paths"])[-1]
    '/v1/reload'
    """
    posts: list[tuple[str, str, str, Any, Any, Sequence[int]]] = [
        ("/v1/rank", "rank", "Order the candidates of a request.", RankRequest, Answer, (409,)),
        ("/v1/rank:batch", "rankBatch", "The same for many.", BatchRequest, BatchAnswer, ()),
        (
            "/v1/items",
            "changeItems",
            "Add, replace and remove items; every worker serves them when this answers.",
            ItemsRequest,
            ItemsAnswer,
            (),
        ),
        (
            "/v1/reload",
            "reload",
            "Go over to another bundle in all workers, or in none.",
            ReloadRequest,
            ReloadAnswer,
            (409,),
        ),
    ]
    gets: list[tuple[str, str, str, Any]] = [
        ("/healthz", "healthz", "Whether the process lives.", State),
        ("/readyz", "readyz", "Whether requests should be sent here.", State),
        ("/v1/model", "model", "What answers: version, tiers, features, limits.", None),
        ("/openapi.json", "openapi", "This document.", None),
    ]
    kinds = [kind for post in posts for kind in post[3:5]]
    kinds += [get[3] for get in gets if get[3]]
    schemas, components = msgspec.json.schema_components(
        [*kinds, Failure], ref_template="#/components/schemas/{name}"
    )
    for schema in components.values():
        # The first paragraph is for everyone, the rest for readers of the code.
        schema["description"] = " ".join(schema["description"].partition("\n\n")[0].split())
    by_kind = dict(zip([*kinds, Failure], schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, name, text, body, answer, more in posts:
        statuses = sorted({400, 401, 408, 413, 415, 422, 503, *more})
        paths[path] = {
            "post": {
                "operationId": name,
                "summary": text,
                "requestBody": {"required": True, "content": _content(by_kind[body])},
                "responses": _responses(by_kind[answer], by_kind[Failure], statuses),
            }
        }
    for path, name, text, answer in gets:
        schema = by_kind[answer] if answer else {"type": "object"}
        responses = _responses(schema, by_kind[Failure], [401, 503], types=_BODIES[:1])
        paths[path] = {"get": {"operationId": name, "summary": text, "responses": responses}}
    paths["/metrics"] = {
        "get": {
            "operationId": "metrics",
            "summary": "Counters of all workers for Prometheus.",
            "responses": {
                "200": {
                    "description": "Prometheus' text format.",
                    "content": {"text/plain": {"schema": {"type": "string"}}},
                }
            },
        }
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "prerank", "version": __version__, "description": __doc__.strip()},
        "paths": paths,
        "components": {"schemas": components},
    }
    if needs_token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _content(schema: Any, types: Sequence[str] = _BODIES) -> dict[str, Any]:
    return {kind: {"schema": schema} for kind in types}


def _responses(
    answer: Any, failure: Any, statuses: Sequence[int], *, types: Sequence[str] = _BODIES
) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "Done.", "content": _content(answer, types)}}
    for status in statuses:
        found[str(status)] = {"description": _WHY[status], "content": _content(failure, types)}
        if status == 503:
            found["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return found
