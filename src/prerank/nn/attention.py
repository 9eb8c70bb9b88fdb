"""Attention within one candidate: among its own tokens, or over its request's history.

No candidate sees another. Whatever belongs to a request, an item or an event is projected once
there; per candidate remain the products of a few short vectors.

Shapes: ``R`` requests, ``U`` unique items, ``I`` candidates, ``L`` events of all requests, ``N``
rows of a token, ``F`` tokens, ``A`` width of all heads together, ``h`` heads, ``d = A / h``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.batch import Pairs
from prerank.errors import InputError
from prerank.jagged import Jagged, lengths_to_offsets
from prerank.nn.linear import RowKind

__all__ = ["HistoryAttention", "TokenAttention"]


def _check_heads(width: int, num_heads: int) -> None:
    if width < 1 or num_heads < 1 or width % num_heads:
        raise InputError(
            f"attention: width {width} does not divide into {num_heads} heads; choose a width "
            "that is a multiple of the heads"
        )


class TokenAttention(nn.Module):
    """Multi-head self-attention among the tokens of each candidate.

    ``out_f = sum_g softmax_g(q_f . k_g / sqrt(d)) v_g`` per head, over the tokens ``g`` of the same
    candidate. Each token has its own projection to query, key and value, since tokens differ in
    width and meaning; its bias tells what kind of token it is. There is no output projection: the
    linear layer that reads the result is one.

    Parameters
    ----------
    tokens : mapping of str to (RowKind, int)
        Name, rows and width of every token. One of width 0 is left out.
    width : int
        Width ``A`` of queries, keys and values, all heads together.
    num_heads : int
        Heads ``h``.

    Raises
    ------
    InputError
        A width that the heads do not divide.

    Examples
    --------
    >>> from prerank.batch import Features
    >>> tokens = {"user": ("request", 3), "item": ("item", 2), "product": ("candidate", 4)}
    >>> attention = TokenAttention(tokens, width=8, num_heads=2)
    >>> none = Features(torch.zeros(3, 0).long(), (), torch.zeros(3, 0), ())
    >>> pairs = Pairs(torch.tensor([0, 0, 1]), torch.tensor([5, 1, 5]), none, none)
    >>> user = attention.project({"user": torch.randn(2, 3)})
    >>> item = attention.project({"item": torch.randn(6, 2)})
    >>> product = attention.project({"product": torch.randn(3, 4)})
    >>> attention(user, item, product, pairs).shape, attention.out_width
    (torch.Size([3, 24]), 24)
    """

    def __init__(
        self, tokens: Mapping[str, tuple[RowKind, int]], width: int, num_heads: int
    ) -> None:
        super().__init__()
        _check_heads(width, num_heads)
        self.width, self.num_heads = width, num_heads
        self.kinds = {name: kind for name, (kind, size) in tokens.items() if size}
        self.projections = nn.ModuleDict(
            {name: nn.Linear(size, 3 * width) for name, (_, size) in tokens.items() if size}
        )

    @property
    def out_width(self) -> int:
        """Width of the result: every token's, side by side."""
        return self.width * len(self.kinds)

    def project(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Project tokens of the same rows; those of width 0 are passed over.

        Parameters
        ----------
        tokens : mapping of str to Tensor ``[N, width]``
            At least one, all of the same rows.

        Returns
        -------
        Tensor ``[N, h, F, 3 * d]``
            Query, key and value of each token.
        """
        first = next(iter(tokens.values()))
        shape = (first.shape[0], self.num_heads, 3 * self.width // self.num_heads)
        parts = [
            self.projections[name](x_NX).view(shape)
            for name, x_NX in tokens.items()
            if name in self.kinds
        ]
        if not parts:
            return first.new_zeros(shape[0], shape[1], 0, shape[2])
        return torch.stack(parts, dim=2)

    def forward(self, requests: Tensor, items: Tensor, candidates: Tensor, pairs: Pairs) -> Tensor:
        """Attend within each candidate.

        Parameters
        ----------
        requests, items, candidates : Tensor ``[R | U | I, h, F, 3 * d]``
            Projected tokens of each kind of rows.
        pairs : Pairs
            The links.

        Returns
        -------
        Tensor ``[I, out_width]``
            Head by head; in each the tokens of requests, items and candidates.
        """
        tokens = [
            requests.index_select(0, pairs.request_of),
            items.index_select(0, pairs.item_of),
            candidates,
        ]
        # One small product per candidate and head: rows of both are one batch.
        query, key, value = torch.cat(tokens, dim=2).flatten(0, 1).chunk(3, dim=2)
        logits_BFG = torch.baddbmm(
            query.new_zeros(1, 1, 1),
            query,
            key.transpose(1, 2),
            beta=0.0,
            alpha=1.0 / math.sqrt(query.shape[2]),
        )
        # torch.softmax is several times slower on rows as short as these.
        weight_BFG = (logits_BFG - logits_BFG.detach().amax(2, keepdim=True)).exp()
        pooled_BFd = torch.bmm(weight_BFG, value) / weight_BFG.sum(2, keepdim=True)
        return pooled_BFd.reshape(pairs.request_of.numel(), self.out_width)


class HistoryAttention(nn.Module):
    """Multi-head attention of each candidate to the events of its request.

    Keys and values are made once per event. A learned event that every history has stands for
    "none of these", and is all there is where the history is empty.

    Parameters
    ----------
    event_width : int
        Width of the encoded events.
    width : int
        Width ``A`` of queries, keys and values, all heads together.
    num_heads : int
        Heads ``h``.

    Raises
    ------
    InputError
        A width that the heads do not divide.

    Examples
    --------
    >>> attention = HistoryAttention(event_width=3, width=4, num_heads=2)
    >>> events = Jagged.from_lengths(torch.randn(5, 3), torch.tensor([3, 0, 2]))
    >>> projected = attention.project(events)
    >>> attention(torch.randn(6, 4), projected, torch.tensor([0, 0, 1, 2, 2, 0])).shape
    torch.Size([6, 4])
    """

    def __init__(self, event_width: int, width: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(width, num_heads)
        self.width, self.num_heads = width, num_heads
        self.key_value = nn.Linear(event_width, 2 * width)
        self.none = nn.Parameter(torch.randn(2 * width) / math.sqrt(width))

    def project(self, events: Jagged) -> Jagged:
        """Return key and value of each event, ``[L, 2 * A]``, from its encoding."""
        return events.with_values(self.key_value(events.values))

    def forward(self, query_IA: Tensor, events: Jagged, request_of: Tensor) -> Tensor:
        """Attend to the events of each candidate's request.

        Parameters
        ----------
        query_IA : Tensor ``[I, A]``
            Queries.
        events : Jagged ``[L, 2 * A]``, ``R`` rows
            From :meth:`project`.
        request_of : Tensor ``[I]`` int64
            Request of each query, in any order.

        Returns
        -------
        Tensor ``[I, A]``
        """
        num_requests, lengths = events.num_rows, events.lengths
        place, num_places = _places(request_of, num_requests)
        if not num_places:
            return query_IA
        longest = int(lengths.amax())
        none = self.none.expand(num_requests, 1, -1)
        pairs_RS = torch.cat([none, events.to_padded(longest)], dim=1)
        is_event_RS = torch.arange(longest + 1, device=lengths.device) <= lengths.unsqueeze(1)
        # Queries of one request are rows of one product, instead of a copy of its events each.
        query_PA = query_IA.new_zeros(num_requests * num_places, self.width)
        query_PA = query_PA.index_copy(0, place, query_IA)
        key, value = (self._heads(x, num_requests) for x in pairs_RS.chunk(2, dim=2))
        pooled = F.scaled_dot_product_attention(
            self._heads(query_PA, num_requests), key, value, is_event_RS[:, None, None, :]
        )
        return pooled.transpose(1, 2).reshape(-1, self.width).index_select(0, place)

    def _heads(self, x: Tensor, num_requests: int) -> Tensor:
        """Return ``[R, h, rows, d]`` from ``[R * rows, A]``."""
        return x.reshape(num_requests, -1, self.num_heads, self.width // self.num_heads).transpose(
            1, 2
        )


def _places(request_of: Tensor, num_requests: int) -> tuple[Tensor, int]:
    """Return a place ``[I]`` in ``R`` blocks of equal size for each candidate, and that size."""
    if not request_of.numel():
        return request_of, 0
    count_R = torch.bincount(request_of, minlength=num_requests)
    num_places = int(count_R.amax())
    order = torch.argsort(request_of, stable=True)
    sorted_I = request_of[order]
    rank_I = torch.arange(order.numel(), device=order.device)
    rank_I = rank_I - lengths_to_offsets(count_R)[sorted_I]
    place = torch.empty_like(request_of)
    place[order] = sorted_I * num_places + rank_I
    return place, num_places
