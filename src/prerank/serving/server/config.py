"""How the server runs: addresses, limits, times. A value of each kind is stated once, here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from prerank.config import Config

__all__ = ["ServerConfig", "Target"]

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Target = str
"""What a process imports by itself: ``package.module:name``."""


class ServerConfig(Config, frozen=True):
    """Settings of the server; every limit is per worker unless it says otherwise.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 takes a free one.
    workers : int
        Processes; each has an event loop and one engine thread.
    threads : int
        Threads that torch computes with in each worker.
    max_body, max_header : int
        Bytes of a body and of a request line with its headers.
    max_buffered : int
        Bytes of bodies that are held at once, those being read and those waiting.
    max_connections : int
        Open connections; further ones wait in the listening socket.
    max_candidates, max_events : int
        Of a request; events of all its streams together.
    max_batch : int
        Requests of one ``rank:batch``.
    header_s, body_s : float
        A request's headers, and then its body, must have come within.
    idle_s : float
        How long a connection without a request is kept.
    write_s : float
        How long a client may take nothing of its answer.
    max_queue : int
        Requests that wait for the engine.
    coalesce, coalesce_requests : int
        Most candidates, and requests, that are handed to the engine together. Above the number of
        a typical request they are ranked one by one, which answers the first of them sooner.
    max_wait_ms : float
        A request that has waited so long is refused.
    patience, min_wait_ms : float
        The same in budgets: one that has waited this many times its own budget is refused, but
        none before the second.
    notice_s, drain_s : float
        After SIGTERM: ``/readyz`` says no for the first before connections are closed; requests
        may take the second to end.
    load_s : float
        How long a worker may take to open and test a bundle.
    refresh_s : float
        How often a worker looks for items that another process has added; 0 for never.
    access_log : str
        File that gets a line per request; ``-`` is stderr, empty none.
    request_ids : {"omit", "hash"}
        What the access log says of request ids: nothing, or 16 hex digits of their SHA-256.
    generation : str
        File that names the active bundle; empty: a temporary one.
    engine : dict
        Values of :class:`prerank.serving.Engine.Config`.

    Examples
    --------
    >>> ServerConfig().host, ServerConfig(port=0).port
    ('127.0.0.1', 0)
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    threads: Count = 1
    max_body: Count = 4 << 20
    max_header: Count = 16 << 10
    max_buffered: Count = 64 << 20
    max_connections: Count = 512
    max_candidates: Count = 20_000
    max_events: Count = 10_000
    max_batch: Count = 64
    header_s: Seconds = 5.0
    body_s: Seconds = 10.0
    idle_s: Seconds = 75.0
    write_s: Seconds = 10.0
    max_queue: Count = 256
    coalesce: Count = 2048
    coalesce_requests: Count = 32
    max_wait_ms: Seconds = 1000.0
    patience: Seconds = 2.0
    min_wait_ms: Annotated[float, msgspec.Meta(ge=0)] = 20.0
    notice_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    drain_s: Seconds = 10.0
    load_s: Seconds = 300.0
    refresh_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    access_log: str = "-"
    request_ids: Literal["omit", "hash"] = "omit"
    generation: str = ""
    engine: dict[str, Any] = msgspec.field(default_factory=dict)
