"""The ranker behind pre-ranking, as far as a log knows it: a logged score, or a logged order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prerank.batch import Evidence
from prerank.errors import InputError, did_you_mean
from prerank.schema import Schema

__all__ = ["LoggedRanker", "logged_ranker"]


@dataclass(frozen=True, slots=True)
class LoggedRanker:
    """What a logged ranker says of each candidate; NaN where it was not asked.

    Parameters
    ----------
    name : str
        ``score:NAME`` or ``rank:STAGE``.
    """

    name: str

    def __call__(self, evidence: Evidence) -> npt.NDArray[np.float64]:
        """Return values ``[I]``, higher is better."""
        kind, _, name = self.name.partition(":")
        if kind == "score":
            return np.asarray(evidence.scores[name].double().numpy())
        rank = evidence.ranks[name].numpy()
        return np.where(rank >= 0, -rank.astype(np.float64), np.nan)


def logged_ranker(schema: Schema, name: str | None = None) -> LoggedRanker | None:
    """Choose the logged ranker.

    Parameters
    ----------
    schema : Schema
        Of the log.
    name : str, optional
        ``score:NAME``, ``rank:STAGE``, or one of the two names alone. Default: the score
        ``ranker``, else the only logged score, else the order of the stage ``rank``; None where
        the log has none of them.

    Raises
    ------
    InputError
        A name that the log does not have.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> click = (Label(name="click"),)
    >>> logged_ranker(Schema(labels=click, scores=("factors", "ranker"), ranks=("rank",)))
    LoggedRanker(name='score:ranker')
    >>> logged_ranker(Schema(labels=click, ranks=("rank",)), "rank")
    LoggedRanker(name='rank:rank')
    """
    known = [f"score:{s}" for s in schema.scores] + [f"rank:{s}" for s in schema.ranks]
    if name is not None:
        for full in known:
            if name in (full, full.partition(":")[2]):
                return LoggedRanker(full)
        words = [*known, *schema.scores, *schema.ranks]
        hint = did_you_mean(name, words) if known else "the log has neither scores nor ranks"
        raise InputError(f"ranker '{name}': no such logged score or rank; {hint}")
    scores = [s for s in known if s.startswith("score:")]
    for choice in ("score:ranker", *(scores if len(scores) == 1 else ()), "rank:rank"):
        if choice in known:
            return LoggedRanker(choice)
    return None
