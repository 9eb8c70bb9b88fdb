"""What a sampler is: requests in, the same requests with the candidates to train on out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from prerank.log.format.columns import Columns

if TYPE_CHECKING:
    from prerank.sampling.counts import SamplingCounts

__all__ = ["Sampler", "sampled"]


class Sampler(Protocol):
    """Chooses which stored candidates a request keeps, and draws others.

    It sees numpy columns before tensors are made of them, so that a candidate which is left out
    costs nothing further. What it draws is a pure function of (seed, epoch, request row), or of
    (seed, epoch, key) where requests share draws: not of the batch size, of the process, or of
    what was read before.
    """

    def sample(
        self,
        columns: Columns,
        *,
        seed: int,
        epoch: int,
        key: int,
        counts: SamplingCounts | None = None,
    ) -> Columns:
        """Return the requests with their candidates for training.

        Parameters
        ----------
        columns : Columns
            Requests as they are stored, possibly none.
        seed, epoch : int
            Keys of the draws.
        key : int
            Key of what the requests of one batch share: the row of its first request, also where
            a process holds only a share of the batch.
        counts : SamplingCounts, optional
            Added to.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell this sampler from others: a run resumes with equal ones."""
        ...


def sampled(
    batches: Iterable[Columns], sampler: Sampler, *, seed: int, epoch: int = 0
) -> Iterator[Columns]:
    """Yield batches of columns with a sampler's candidates, as ``Part.batches`` makes them.

    Parameters
    ----------
    batches : iterable of Columns
        For example ``part.columns(256)``, or requests from anywhere else.
    sampler : Sampler
        What chooses.
    seed, epoch : int
        Keys of the draws.
    """
    for columns in batches:
        key = int(columns.scalars["row"][0]) if columns.num_requests else 0
        yield sampler.sample(columns, seed=seed, epoch=epoch, key=key)
