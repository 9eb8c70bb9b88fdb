"""What each source does to the scores: gradients of the loss by candidate, split by cause.

Shapes: ``I`` candidates, ``T`` tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prerank.batch import POSITIVE

__all__ = ["Pulls", "split_pulls"]


@dataclass(frozen=True, slots=True)
class Pulls:
    """Gradients with respect to the scores.

    Parameters
    ----------
    sources : tuple of str
        Those with a candidate that the loss reaches, hardest first.
    own : dict of str to Tensor ``[I, T]``
        By source: what the parts named after it do, and what others do to its candidates.
    positive : dict of str to Tensor ``[I, T]``
        By kind of part (``bce``): pull on positives that belongs to no source by itself.
    shares : dict of str to dict of str to float
        By kind, by source: which share of that pull a source is held to cause; they add up to 1,
        or are empty where that kind pushes no negative.
    other : Tensor ``[I, T]``
        The rest. ``own``, ``positive`` and ``other`` add up to the gradient of the loss.
    negative : dict of str to Tensor ``[I, T]``
        By source: the gradient of the loss at its own candidates, 0 elsewhere.
    """

    sources: tuple[str, ...]
    own: dict[str, Tensor]
    positive: dict[str, Tensor]
    shares: dict[str, dict[str, float]]
    other: Tensor
    negative: dict[str, Tensor]


def split_pulls(
    parts: Mapping[str, Tensor],
    logits: Tensor,
    source: Tensor,
    names: tuple[str, ...],
    weights: Mapping[str, float] | None = None,
    sides: Mapping[str, Tensor] | None = None,
) -> Pulls:
    """Split the gradient of the parts with respect to the scores by the source that causes it.

    A part named after a source (``nce/rank``) is caused by it as a whole, the pull on positives
    included. Any other part (``bce/engaged``) is split by the candidates that receive it:
    members of a source, positives, others. What it does to positives is shared among sources in
    proportion to the ``|dL/ds|`` that parts of its kind put on their negatives.

    Parameters
    ----------
    parts : mapping of str to Tensor
        Scalars, from an objective.
    logits : Tensor ``[I, T]``
        The leaf they were computed from.
    source : Tensor ``[I]`` int64
        ``evidence.source``.
    names : tuple of str
        ``schema.source_names``, easiest first.
    weights : mapping of str to float, optional
        Factor of a part by its name, or by what follows the slash; default 1.
    sides : mapping of str to Tensor, optional
        By source, a scalar with the gradient of its negatives alone: of an objective that has a
        word of its own on who is negative. Default: the loss at the source's candidates.

    Examples
    --------
    >>> logits = torch.tensor([[2.0], [1.0], [3.0]], requires_grad=True)
    >>> parts = {"nce/rank": logits[1, 0] - logits[0, 0], "bce/click": 2 * logits[2, 0]}
    >>> pulls = split_pulls(parts, logits, torch.tensor([POSITIVE, 1, 0]), ("random", "rank"))
    >>> pulls.own["rank"].squeeze(1).tolist(), pulls.negative["rank"].squeeze(1).tolist()
    ([-1.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    >>> pulls.own["random"].squeeze(1).tolist(), pulls.sources
    ([0.0, 0.0, 2.0], ('rank', 'random'))
    """
    zero = torch.zeros_like(logits)
    own = dict.fromkeys(names, zero)
    positive: dict[str, Tensor] = {}
    by_kind: dict[str, Tensor] = {}
    members = {name: (source == code).unsqueeze(1) for code, name in enumerate(names)}
    is_positive = (source == POSITIVE).unsqueeze(1)
    other = total = zero
    for part, value in parts.items():
        kind, _, what = part.partition("/")
        weight = (weights or {}).get(part, (weights or {}).get(what, 1.0))
        pull = _gradient(value, logits) * weight
        total, by_kind[kind] = total + pull, by_kind.get(kind, zero) + pull
        if what in own:
            own[what] = own[what] + pull
            continue
        if what == "positive":
            positive[kind] = positive.get(kind, zero) + pull
            continue
        rest = pull
        for name, member in members.items():
            own[name] = own[name] + pull * member
            rest = rest * ~member
        positive[kind] = positive.get(kind, zero) + rest * is_positive
        other = other + rest * ~is_positive
    shares = {}
    for kind in positive:
        mass = {
            name: float((by_kind[kind] * member).abs().sum()) for name, member in members.items()
        }
        whole = sum(mass.values())
        shares[kind] = {name: m / whole for name, m in mass.items()} if whole else {}
    if sides is None:
        negative = {name: torch.where(member, total, zero) for name, member in members.items()}
    else:
        found = {name: _gradient(side, logits) for name, side in sides.items()}
        negative = {name: found.get(name, zero) for name in names}
    reached = tuple(name for name in reversed(names) if bool(negative[name].any()))
    return Pulls(reached, own, positive, shares, other, negative)


def _gradient(value: Tensor, logits: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(logits)
    (pull,) = torch.autograd.grad(
        value, logits, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return pull
