"""One HSTU layer, its attention apart: what happens to each token alone.

Source: "Actions Speak Louder than Words" (Zhai et al., ICML 2024, arXiv 2402.17152) and the open
code of the same team, which differ: see :class:`HSTULayer`.

Shapes: ``N`` tokens, ``D`` width, ``h`` heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.nn.hstu.attend import Weights, attend
from prerank.nn.hstu.plan import Group

__all__ = ["Form", "HSTULayer", "Tokens"]

Form = Literal["code", "paper"]
"""Which of the two published forms of a layer."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a layer makes of its tokens: ``gate``, ``query``, ``key``, ``value``, ``[N, h * d]``."""

    gate: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


class HSTULayer(nn.Module):
    """``y = x + out(mix(gate, attention))``, projections of ``norm(x)`` in one product.

    ``code``, the authors' open code: SiLU on the gate only; mix is
    ``[u, o, u * norm(o)]`` side by side. ``paper``, the ICML text: SiLU on gate, query, key and
    value; mix is ``u * norm(o)``.

    Parameters
    ----------
    width : int
        ``D``.
    num_heads, query_width, value_width : int
        Heads and the widths of one.
    form : {"code", "paper"}
        Which of the published forms.
    weights : {"silu", "softmax"}
        How scores become weights.
    norm : {"layer", "head"}
        Whether what attention returns is normalised over all heads or in each.
    position_buckets, time_buckets : int
        Rows of the relative biases, beside the one for pairs with a contextual token; 0: none.
    dropout : float
        Of the mix.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        query_width: int,
        value_width: int,
        *,
        form: Form = "code",
        weights: Weights = "silu",
        norm: Literal["layer", "head"] = "layer",
        position_buckets: int = 0,
        time_buckets: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.form, self.weights = num_heads, form, weights
        Q, V = num_heads * query_width, num_heads * value_width
        self.widths = [V, Q, Q, V]
        self.norm_in = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, sum(self.widths))
        self.norm_out = nn.LayerNorm(V) if norm == "layer" else nn.GroupNorm(num_heads, V)
        self.project_out = nn.Linear(3 * V if form == "code" else V, width)
        self.dropout = nn.Dropout(dropout)

        def bias(num_buckets: int) -> nn.Parameter | None:
            if not num_buckets:
                return None
            return nn.Parameter(0.02 * torch.randn(num_heads, num_buckets + 1))

        self.position = bias(position_buckets)
        self.time = bias(time_buckets)

    def project(self, x_ND: Tensor) -> Tokens:
        """Return gate, queries, keys and values of tokens."""
        projected = self.project_in(self.norm_in(x_ND))
        if self.form == "paper":
            return Tokens(*torch.split(F.silu(projected), self.widths, dim=1))
        gate, query, key, value = torch.split(projected, self.widths, dim=1)
        return Tokens(F.silu(gate), query, key, value)

    def keys_values(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values alone: all that a last layer needs of the history."""
        first = self.widths[0] + self.widths[1]
        weight, bias = self.project_in.weight[first:], self.project_in.bias[first:]
        projected = F.linear(self.norm_in(x_ND), weight, bias)
        projected = F.silu(projected) if self.form == "paper" else projected
        key, value = torch.split(projected, self.widths[2:], dim=1)
        return key, value

    def attend(
        self, query_NA: Tensor, key_MA: Tensor, value_MA: Tensor, groups: Sequence[Group]
    ) -> tuple[Tensor, Tensor]:
        """Attend with this layer's biases; see :func:`prerank.nn.hstu.attend.attend`."""
        return attend(
            query_NA,
            key_MA,
            value_MA,
            groups,
            num_heads=self.num_heads,
            weights=self.weights,
            position_hP=self.position,
            time_hP=self.time,
        )

    def with_self(
        self, tokens: Tokens, pooled_NA: Tensor, total_Nh: Tensor, share_N1: Tensor
    ) -> Tensor:
        """Add each candidate's own key to what it took from the history.

        Parameters
        ----------
        tokens : Tokens
            Of the candidates.
        pooled_NA, total_Nh : Tensor
            From :meth:`attend` to the history.
        share_N1 : Tensor ``[N, 1]``
            One over the normaliser of each candidate.
        """
        query, key, value = (self._by_head(x) for x in (tokens.query, tokens.key, tokens.value))
        score_Nh = (query * key).sum(2) / math.sqrt(query.shape[2])
        for table in (self.position, self.time):
            if table is not None:
                score_Nh = score_Nh + table[:, 0].to(score_Nh.dtype)
        if self.weights == "silu":
            weight_Nh = F.silu(score_Nh) * share_N1
            return pooled_NA + (weight_Nh.unsqueeze(2) * value).flatten(1)
        weight_Nh1 = torch.sigmoid(score_Nh - total_Nh).unsqueeze(2)
        return torch.lerp(self._by_head(pooled_NA), value, weight_Nh1).flatten(1)

    def finish(self, x_ND: Tensor, gate_NA: Tensor, pooled_NA: Tensor) -> Tensor:
        """Return the layer's output ``[N, D]``."""
        mix = gate_NA * self.norm_out(pooled_NA)
        parts = [gate_NA, pooled_NA, mix] if self.form == "code" else [mix]
        # A product per part, added in place: the parts side by side would be one more wide copy.
        out: Tensor | None = None
        for x_NA, weight_DA in zip(
            parts, self.project_out.weight.chunk(len(parts), 1), strict=True
        ):
            dropped = self.dropout(x_NA)
            if out is None:
                out = F.linear(dropped, weight_DA, self.project_out.bias)
            else:  # autocast leaves what is done in place alone
                out = out.addmm_(dropped.to(out.dtype), weight_DA.t().to(out.dtype))
        assert out is not None
        return out.add_(x_ND) if out.dtype == x_ND.dtype else out + x_ND

    def _by_head(self, x_NA: Tensor) -> Tensor:
        return x_NA.view(x_NA.shape[0], self.num_heads, x_NA.shape[1] // self.num_heads)
