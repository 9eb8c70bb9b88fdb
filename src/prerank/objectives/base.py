"""What an objective is: named scalar parts from scores and evidence.

Shapes: ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from prerank.batch import RequestBatch, Scores
from prerank.errors import InputError, did_you_mean

__all__ = [
    "Normaliser",
    "Objective",
    "check_names",
    "check_weights",
    "divided",
    "local_weight",
    "scores_of",
    "weighted_mean",
]

Normaliser = Callable[[Tensor], Tensor]
"""From the total weight of this process's batch to what its weighted sum is divided by."""


class Objective(Protocol):
    """From the scores of the models in training to named scalar losses.

    Names are ``kind/what`` (``bce/click``, ``nce/exposed``). A combine rule turns the parts into a
    gradient; an objective neither adds them up nor draws negatives.

    Attributes
    ----------
    per_impression : bool
        Whether the loss is a weighted mean over candidates, so that splitting a request in two
        rows leaves it unchanged.
    normaliser : Normaliser
        Data-parallel training sets it to ``all_reduce(weight) / world_size``: averaging gradients
        over processes then gives the gradient of the global mean, however unequal the batches.

    An objective may also say which logged ranks and scores it reads, ``logged : frozenset of str``
    (``rank.STAGE``, ``score.NAME``): training then reads no others, which halves what a log of
    many costs to read. Of one that does not say, all are read.
    """

    per_impression: bool
    normaliser: Normaliser

    def __call__(self, scores: Mapping[str, Scores], batch: RequestBatch) -> dict[str, Tensor]:
        """Return the named parts, scalars; zero, not NaN, where the batch has nothing to say."""
        ...


def local_weight(weight: Tensor) -> Tensor:
    """Divide by the weight of this process's batch: the normaliser of a single process."""
    return weight


def weighted_mean(total: Tensor, weight: Tensor, normaliser: Normaliser) -> Tensor:
    """Divide weighted sums by their normalised weight; no weight gives 0.

    Parameters
    ----------
    total : Tensor ``[...]``
        Weighted sums of losses.
    weight : Tensor ``[...]``
        Their total weights in this batch.
    normaliser : Normaliser
        The objective's.

    Examples
    --------
    >>> weighted_mean(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 0.0]), local_weight)
    tensor([2., 0.])
    """
    return divided(total, normaliser(weight))


def divided(total: Tensor, divisor: Tensor) -> Tensor:
    """Divide sums by their weights, both ``[...]``, already normalised; no weight gives 0.

    Examples
    --------
    >>> divided(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 0.0]))
    tensor([2., 0.])
    """
    return total / torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def scores_of(scores: Mapping[str, Scores], model: str | None) -> Scores:
    """Return the scores of the named model, or of the only one.

    Raises
    ------
    InputError
        No such model, or several and no name.
    """
    if model is None and len(scores) == 1:
        return next(iter(scores.values()))
    if model is None:
        raise InputError(
            f"objective: {len(scores)} models are in training ({', '.join(sorted(scores))}); "
            "name one in its option 'model'"
        )
    if model not in scores:
        known = ", ".join(sorted(scores)) or "none"
        raise InputError(f"objective: no model '{model}' in training; models here: {known}")
    return scores[model]


def check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known; ``where`` says whose they are ("bce: sources").

    Raises
    ------
    InputError
        The first such name, and the nearest known one.
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            raise InputError(f"{where}: '{name}' is not known; {did_you_mean(name, known)}")


def check_weights(
    where: str, weights: Mapping[str, float], known: Iterable[str], *, is_positive: bool = False
) -> None:
    """Refuse weights of unknown names, and ones that are negative (or 0) or not finite.

    Raises
    ------
    InputError
        Names the first one.
    """
    check_names(where, weights, known)
    for name, weight in weights.items():
        if not 0.0 <= weight < float("inf") or (is_positive and weight == 0.0):
            expected = "above 0" if is_positive else "0 or more"
            raise InputError(f"{where}: '{name}' is {weight}; expected {expected}")
