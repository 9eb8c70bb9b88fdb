"""What a sampler found and drew, counted over the requests of a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from prerank.log import Part
    from prerank.sampling.base import Sampler

__all__ = ["SamplingCounts", "SourceCounts", "tally"]

Index = npt.NDArray[np.int64]


class SourceCounts(msgspec.Struct):
    """Negatives of one source.

    Parameters
    ----------
    stored : int
        Members that the log holds in these requests.
    eligible : int
        Those of them at or below the rank floor; for what is drawn from the item pool, the items
        that could be drawn.
    wanted : int
        Sum of the quotas.
    taken : int
        Members in the sampled requests.
    starved : int
        Requests that got fewer than their quota.
    hits : int
        Draws from the item pool thrown away because the request could not have that item.
    """

    stored: int = 0
    eligible: int = 0
    wanted: int = 0
    taken: int = 0
    starved: int = 0
    hits: int = 0

    def add(
        self, *, stored: int, eligible: Index, wanted: Index, taken: Index, hits: Index | int = 0
    ) -> None:
        """Add what some requests ``[R]`` had, were to get and got."""
        self.stored += stored
        self.eligible += int(eligible.sum())
        self.wanted += int(wanted.sum())
        self.taken += int(taken.sum())
        self.starved += int((taken < wanted).sum())
        self.hits += int(np.sum(hits))


class SamplingCounts(msgspec.Struct):
    """Counts of a pass over requests.

    Parameters
    ----------
    requests : int
        Requests seen.
    without_positive : int
        Those without an engaged candidate.
    left_out : int
        Those that the sampler dropped.
    stored, positives, taken : int
        Candidates stored, engaged ones, candidates in the sampled requests.
    sources : dict of str to SourceCounts
        By source.
    """

    requests: int = 0
    without_positive: int = 0
    left_out: int = 0
    stored: int = 0
    positives: int = 0
    taken: int = 0
    sources: dict[str, SourceCounts] = msgspec.field(default_factory=dict)

    def of(self, source: str) -> SourceCounts:
        """Return the counts of a source, made at first use."""
        return self.sources.setdefault(source, SourceCounts())


def tally(
    part: Part, sampler: Sampler, *, seed: int = 0, epoch: int = 0, batch_size: int = 256
) -> SamplingCounts:
    """Run a sampler over a part, in log order, and count what one epoch would train on.

    Parameters
    ----------
    part : Part
        Requests.
    sampler : Sampler
        What chooses.
    seed, epoch : int
        Keys of the draws.
    batch_size : int
        Requests at a time; matters only where requests of a batch share draws.
    """
    counts = SamplingCounts()
    for columns in part.columns(batch_size):
        key = int(columns.scalars["row"][0])
        sampler.sample(columns, seed=seed, epoch=epoch, key=key, counts=counts)
    return counts
