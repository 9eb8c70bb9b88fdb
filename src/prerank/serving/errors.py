"""Why a request is not answered: one line each, with the HTTP status that a server gives it."""

from __future__ import annotations

from typing import ClassVar

from prerank.errors import InputError

__all__ = [
    "BadRequestError",
    "HistoryRequiredError",
    "OverloadedError",
    "ServingError",
    "UnknownFeatureError",
]


class ServingError(InputError):
    """A request that cannot be answered as it is.

    Attributes
    ----------
    status : int
        HTTP status.
    code : str
        The same in one word, for programs.
    """

    status: ClassVar[int] = 422
    code: ClassVar[str] = "bad_request"


class BadRequestError(ServingError):
    """Values that do not fit: a wrong type, lists of unequal length, too many candidates."""


class UnknownFeatureError(BadRequestError):
    """A feature or stream that the bundle does not have; the nearest name is given."""

    code = "unknown_feature"


class HistoryRequiredError(ServingError):
    """Only a version of the history was sent and its state is not (or no longer) held."""

    status = 409
    code = "history_required"


class OverloadedError(ServingError):
    """No room for one more request.

    Parameters
    ----------
    message : str
        One line.
    retry_after_s : float
        When to come again.
    """

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
