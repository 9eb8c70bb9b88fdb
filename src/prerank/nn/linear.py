"""A linear layer over concatenated parts, each paid at its own number of rows.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``H`` outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import addmm_flop, flop_registry, register_flop_formula

from prerank.batch import Pairs

__all__ = ["RowKind", "SplitLinear"]

RowKind = Literal["request", "item", "candidate"]
"""Rows of a part: ``R``, ``U`` or ``I``."""

# torch counts the operations of addmm, but not of the same done in place.
if torch.ops.aten.addmm_ not in flop_registry:
    register_flop_formula(torch.ops.aten.addmm_, get_raw=True)(addmm_flop)

_KINDS: tuple[RowKind, ...] = ("request", "item", "candidate")


class SplitLinear(nn.Module):
    """``nn.Linear`` on the concatenation of request, item and candidate parts.

    ``W [x_r; x_i; x_c] = W_r x_r + W_i x_i + W_c x_c``: each product is made at the rows of its
    part, then gathered by ``request_of`` and ``item_of`` and added, so that the wide concatenation
    per candidate never exists. Products of requests and items can be computed ahead and cached.
    Source: the split first layer of IKBO (PyTorch blog) and COLD (arXiv 2007.16122).

    Parameters
    ----------
    parts : mapping of str to (RowKind, int)
        Name, rows and width of every part, in the order of the concatenation. A part of width 0
        is allowed and costs nothing.
    out_features : int
        Width ``H`` of the result.
    tied : mapping of str to str, optional
        Parts that have no weights of their own but use those of another part, which must be as
        wide: the layer then acts on the sum of the two.

    Examples
    --------
    >>> from prerank.batch import Features
    >>> layer = SplitLinear({"user": ("request", 3), "item": ("item", 2)}, 4)
    >>> none = Features(torch.zeros(3, 0).long(), (), torch.zeros(3, 0), ())
    >>> pairs = Pairs(torch.tensor([0, 0, 1]), torch.tensor([5, 1, 5]), none, none)
    >>> user = layer.project("user", torch.randn(2, 3))
    >>> item = layer.project("item", torch.randn(6, 2))
    >>> layer.combine({"user": user, "item": item}, pairs).shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[RowKind, int]],
        out_features: int,
        *,
        tied: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.tied = dict(tied or {})
        self.widths = {name: width for name, (_, width) in parts.items()}
        self.kinds = {name: kind for name, (kind, _) in parts.items()}
        self.out_features = out_features
        # The bias rides on the part with the fewest rows.
        filled = sorted(
            (name for name, width in self.widths.items() if width),
            key=lambda name: _KINDS.index(self.kinds[name]),
        )
        assert filled, "every part has width 0"
        self._bias_part = filled[0]
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(out_features, width))
                for name, width in self.widths.items()
                if width and name not in self.tied
            }
        )
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``nn.Linear`` on the concatenation would."""
        bound = 1.0 / math.sqrt(sum(self.widths.values()))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """Weight ``[H, sum of widths]`` of the equal ``nn.Linear``."""
        return torch.cat([self.block(name) for name, width in self.widths.items() if width], dim=1)

    def block(self, name: str) -> Tensor:
        """Return the weight ``[H, width]`` of a part that is not empty."""
        weight: Tensor = self.weights[self.tied.get(name, name)]
        return weight

    def project(self, name: str, x: Tensor) -> Tensor:
        """Apply the block of one part at its own rows.

        Parameters
        ----------
        name : str
            The part.
        x : Tensor ``[R | U | I, width]``
            Its values.

        Returns
        -------
        Tensor ``[R | U | I, H]``
            What :meth:`combine` takes (of width 0 for a part of width 0). One part includes the
            bias.
        """
        if not self.widths[name]:
            return x
        return F.linear(x, self.block(name), self.bias if name == self._bias_part else None)

    def combine(
        self,
        projected: Mapping[str, Tensor],
        pairs: Pairs,
        candidate: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Gather request and item projections to the candidates, add the candidate parts.

        Parameters
        ----------
        projected : mapping of str to Tensor
            Request and item parts, from :meth:`project`. Several parts of one kind of rows may
            also come as their sum under one name.
        pairs : Pairs
            The links, ``I`` candidates.
        candidate : mapping of str to Tensor ``[I, width]``
            Values of the candidate parts, not yet projected: their products are added in place,
            without a second tensor ``[I, H]``.

        Returns
        -------
        Tensor ``[I, H]``
        """
        rows: dict[RowKind, Tensor] = {"request": pairs.request_of, "item": pairs.item_of}
        sums: dict[RowKind, Tensor] = {}
        for name, value in projected.items():
            if self.widths[name]:
                kind = self.kinds[name]
                sums[kind] = sums[kind] + value if kind in sums else value
        total: Tensor | None = None
        for kind, value in sums.items():
            # index_select, not value[index]: several times faster on CPU, forward and backward.
            gathered = value.index_select(0, rows[kind])
            total = gathered if total is None else total.add_(gathered)
        for name, x in (candidate or {}).items():
            if not self.widths[name]:
                continue
            if total is None:
                total = self.project(name, x)
            else:
                # Autocast leaves what is done in place alone.
                weight = self.block(name).to(total.dtype)
                total = total.addmm_(x.to(total.dtype), weight.t())
        assert total is not None, "no part to combine"
        return total

    def forward(self, parts: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
        """Project all parts and combine them, ``[I, H]``."""
        at_candidates = {n: x for n, x in parts.items() if self.kinds[n] == "candidate"}
        projected = {n: self.project(n, x) for n, x in parts.items() if n not in at_candidates}
        return self.combine(projected, pairs, at_candidates)

    def extra_repr(self) -> str:
        """Describe the layer in ``repr(model)``."""
        parts = ", ".join(f"{name}={width}" for name, width in self.widths.items())
        return f"{parts}, out_features={self.out_features}"
