"""Errors that a user can cause, each with the exit status of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CheckFailedError", "InputError", "PrerankError", "did_you_mean", "missing_extra"]


class PrerankError(Exception):
    """A run that failed for a reason the user should read in one line (exit status 1)."""

    exit_code = 1


class InputError(PrerankError):
    """Bad usage or bad input: a file, column, option or recipe that is not as expected (exit 2)."""

    exit_code = 2


class CheckFailedError(PrerankError):
    """A check ran to its end and found something wrong (exit status 1)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known word, or lists the known ones.

    Examples
    --------
    >>> did_you_mean("embeding_dim", ["embedding_dim", "hidden"])
    "did you mean 'embedding_dim'?"
    >>> did_you_mean("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "none are known"


def missing_extra(package: str, extra: str) -> InputError:
    """Return the error for an optional package that is not installed."""
    return InputError(f"'{package}' is not installed; run: pip install 'prerank[{extra}]'")
