"""What goes over the wire besides :mod:`prerank.serving.messages`, and why a call is refused."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from prerank.serving.errors import OverloadedError, ServingError
from prerank.serving.messages import (
    Id,
    NewItem,
    RankAnswer,
    RankRequest,
    TierExplained,
    Timings,
)

__all__ = [
    "Answer",
    "BatchAnswer",
    "BatchEntry",
    "BatchRequest",
    "Error",
    "Failure",
    "ItemsAnswer",
    "ItemsRequest",
    "NewStats",
    "Refusal",
    "ReloadAnswer",
    "ReloadRequest",
    "State",
    "refusal_of",
]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The order: a ``RankAnswer`` whose ids are packed if those of the request were.

    Parameters
    ----------
    ids : list of int or str, or bytes
        Best first. Bytes (base64 in JSON) are packed little-endian int64.
    """

    model: str
    request_id: Id = ""
    ids: list[Id] | bytes
    tier: list[int]
    degraded: bool
    done: str | None = None
    score: list[float | None] | None = None
    unknown: list[Id]
    history_version: str = ""
    explain: list[TierExplained] | None = None
    timings: Timings

    @classmethod
    def of(cls, answer: RankAnswer, *, packed: bool) -> Answer:
        """Return what is sent."""
        ids: list[Id] | bytes = answer.ids
        if packed:
            ids = np.array(answer.ids, dtype="<i8").tobytes()
        return cls(
            model=answer.model,
            request_id=answer.request_id,
            ids=ids,
            tier=answer.tier,
            degraded=answer.degraded,
            done=answer.done,
            score=answer.score,
            unknown=answer.unknown,
            history_version=answer.history_version,
            explain=answer.explain,
            timings=answer.timings,
        )


class Error(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why there is no answer.

    Parameters
    ----------
    code : str
        In one word, for programs.
    message : str
        In one line: what, where, found, expected.
    retry_after_s : float, optional
        When to come again.
    """

    code: str
    message: str
    retry_after_s: float | None = None


class Failure(msgspec.Struct, frozen=True):
    """Body of every response that is no success."""

    error: Error


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several requests, answered each for itself."""

    requests: list[RankRequest]


class BatchEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer or error of one request."""

    answer: Answer | None = None
    error: Error | None = None


class BatchAnswer(msgspec.Struct, frozen=True):
    """Answers in the order of the requests."""

    answers: list[BatchEntry]


class NewStats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Statistics of an item from a moment (ms) on; null is missing."""

    id: Id
    valid_from_ms: int
    values: dict[str, float | None]


class ItemsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Items to add or replace, ids that are candidates no more, statistics of items."""

    items: list[NewItem] = []
    removed: list[Id] = []
    stats: list[NewStats] = []


class ItemsAnswer(msgspec.Struct, frozen=True):
    """What every worker serves from now on.

    Parameters
    ----------
    model : str
        Version with the items in it.
    items, removed, stats : int
        How many there were in the call.
    """

    model: str
    items: int
    removed: int
    stats: int


class ReloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which bundle to go over to.

    Parameters
    ----------
    bundle : str, optional
        Name of a folder beside the active bundle; default: the active one's path, read again.
    """

    bundle: str | None = None


class ReloadAnswer(msgspec.Struct, frozen=True):
    """What is active in all workers.

    Parameters
    ----------
    model : str
        Version of the bundle.
    generation : int
        Counts reloads that succeeded.
    workers : int
        How many acknowledged.
    """

    model: str
    generation: int
    workers: int


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of ``/healthz`` and ``/readyz``."""

    ok: bool
    model: str = ""
    reason: str = ""


class Refusal(Exception):  # noqa: N818 -- no error of ours: the client's, or too many clients
    """A call that is not answered, as it is told to the client.

    Parameters
    ----------
    status : int
        HTTP status.
    code, message : str
        For programs, and one line for people.
    retry_after_s : float, optional
        When to come again.
    headers : dict of str to str, optional
        Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            # The header has whole seconds; the body has what was measured.
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def error(self) -> Error:
        """Return what is sent."""
        wait = None if self.retry_after_s is None else round(self.retry_after_s, 3)
        return Error(self.code, self.message, wait)


def refusal_of(error: Exception) -> Refusal:
    """Return how an error of the engine is told; what nobody expected says nothing of itself.

    Examples
    --------
    >>> from prerank.serving.errors import HistoryRequiredError
    >>> refusal_of(HistoryRequiredError("send it")).status, refusal_of(ZeroDivisionError()).status
    (409, 503)
    """
    match error:
        case Refusal():
            return error
        case OverloadedError():
            wait = error.retry_after_s
            return Refusal(error.status, error.code, str(error), retry_after_s=wait)
        case ServingError():
            line = " ".join(str(error).split())
            return Refusal(error.status, error.code, line)
    message = "this request cannot be answered; the server's log names the place"
    return Refusal(503, "internal", message, retry_after_s=1.0)
