"""What a sampler is: requests in, the same requests with the candidates to train on out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from prerank.log.format.columns import Columns

if TYPE_CHECKING:
    from prerank.log import Log, Transforms
    from prerank.sampling.counts import SamplingCounts

__all__ = ["KnowsItems", "Sampler", "knowing", "sampled"]


class Sampler(Protocol):
    """Chooses which stored candidates a request keeps, and draws others.

    It sees numpy columns before tensors are made of them, so that a candidate which is left out
    costs nothing further. What it draws is a pure function of (seed, epoch, request row), or of
    (seed, epoch, key) where requests share draws: not of the batch size, of the process, or of
    what was read before.

    A sampler may say which logged ranks and scores it reads, ``logged : frozenset of str``, as an
    objective may.
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


@runtime_checkable
class KnowsItems(Protocol):
    """A sampler whose draws depend on the items that the model has a row for."""

    def knowing(self, is_known: npt.NDArray[np.bool_]) -> Self:
        """Return the sampler for a model that knows these items ``[num_items]`` of the log."""
        ...


def knowing(sampler: Sampler | None, transforms: Transforms, log: Log) -> Sampler | None:
    """Tell a sampler that asks for it which items of a log a model has rows for.

    Parameters
    ----------
    sampler : Sampler, optional
        Returned as it is if it does not ask.
    transforms : Transforms
        The model's.
    log : Log
        What is sampled from.
    """
    return sampler.knowing(transforms.knows(log)) if isinstance(sampler, KnowsItems) else sampler


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
