"""What a client asks and what it gets: raw values in, an order out; JSON and msgpack alike.

A request names things as the client knows them: raw ids, raw feature values, times in ms. The
bundle encodes them. Anything that does not fit is refused in one line (:mod:`.errors`).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

__all__ = [
    "Candidates",
    "Events",
    "Id",
    "NewItem",
    "RankAnswer",
    "RankRequest",
    "Scalar",
    "TierExplained",
    "Timings",
    "User",
    "Value",
]

Id = int | str
"""A raw id: an integer or a string, whatever the log has."""
Scalar = int | float | str | bool | None
"""A raw value of one feature; None is missing."""
Value = int | float | str | bool | None | list[Scalar]
"""A scalar, or a list for a multi-valued feature or a vector."""
Events = list[dict[str, Scalar]] | dict[str, list[Scalar]]
"""Events of one stream, oldest first: one object each, or one list per column (same length)."""
Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who asks.

    Parameters
    ----------
    id : int, str, optional
        Raw user id.
    features : dict of str to Value
        Raw user features; absent ones are missing.
    """

    id: Id | None = None
    features: dict[str, Value] = {}


class NewItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An item that the bundle may not know, with its raw item features."""

    id: Id
    features: dict[str, Value] = {}


class Candidates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be ordered.

    Parameters
    ----------
    ids : list of int or str, or bytes
        Raw item ids, each once. Bytes (base64 in JSON) are packed little-endian int64.
    features : dict of str to list of Scalar
        Candidate features, one value per id; ``channel`` where the log has channels. Absent ones
        are missing.
    new : list of NewItem
        Item features of ids that the bundle may not know; used for those it does not know.
    """

    ids: list[Id] | bytes
    features: dict[str, list[Scalar]] = {}
    new: list[NewItem] = []


class RankRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request: order these candidates for this user now.

    Parameters
    ----------
    candidates : Candidates
        What is to be ordered.
    request_id : str, int
        Returned as it came.
    time : int, optional
        Of the request, in ms since the epoch; default: now.
    user : User
        Who asks.
    context : dict of str to Value
        Raw context features; what comes from the time is not sent.
    history : dict
        ``{stream: events}``, streams left out are empty; or ``{"version": V}`` for a history that
        this engine has seen, ``V`` being ``history_version`` of an earlier answer. Both together
        give the history a version of the client's own.
    k : int, optional
        Length of the answer; default: all.
    budget_ms : float, optional
        Time to answer in, queueing included; when it is short the answer is degraded, never late
        by an expressive model's work.
    explain : bool
        Add scores and the places that each tier gave.

    Examples
    --------
    >>> body = b'{"candidates": {"ids": [7, 9]}, "user": {"id": 3}, "k": 1}'
    >>> msgspec.json.decode(body, type=RankRequest).candidates.ids
    [7, 9]
    """

    candidates: Candidates
    request_id: Id = ""
    time: Time | None = None
    user: User = User()
    context: dict[str, Value] = {}
    history: dict[str, Events | str | int] = {}
    k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    budget_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    explain: bool = False


class Timings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the time went, in ms; of coalesced requests all share those of their batch.

    Parameters
    ----------
    total : float
        From the call (or from ``started``) to the answer.
    encode, state : float
        Raw values to tensors; request states.
    tiers : list of float
        Scoring of each tier that ran.
    """

    total: float
    encode: float
    state: float
    tiers: list[float]


class TierExplained(msgspec.Struct, frozen=True):
    """What one tier said of the ids of the answer, in their order.

    Parameters
    ----------
    model : str
        Its class.
    position : list of int or None
        0-based place in the tier's own order of what reached it; None where it did not score.
    score : list of float or None
        The tier's value; comparable within this tier and request only.
    """

    model: str
    position: list[int | None]
    score: list[float | None]


class RankAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The order.

    Parameters
    ----------
    model : str
        Version of the bundle that answered.
    request_id : str, int
        Of the request.
    ids : list of int or str
        Best first, at most ``k``.
    tier : list of int
        Index of the last tier that scored each id; -1 for an unknown one that was placed last.
    degraded : bool
        Whether time was short and less was computed than the cascade asks for.
    done : str, optional
        Of a degraded answer: what was done instead.
    score : list of float or None, optional
        With ``explain``: value of the last tier that scored each id; never compare two tiers'.
    unknown : list of int or str
        Ids of the request that the bundle does not know, whatever became of them.
    history_version : str
        Name for the user and history of this request, for a later request of the same user.
    explain : list of TierExplained, optional
        With ``explain``: one per tier that ran.
    timings : Timings
        Where the time went.
    """

    model: str
    request_id: Id = ""
    ids: list[Id]
    tier: list[int]
    degraded: bool
    done: str | None = None
    score: list[float | None] | None = None
    unknown: list[Id]
    history_version: str = ""
    explain: list[TierExplained] | None = None
    timings: Timings

    def plain(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values
