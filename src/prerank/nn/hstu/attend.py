"""Attention of groups of rows, block by block, its weights never kept.

A block of scores is made, turned into weights, used and forgotten; the backward pass makes it
again. Memory then grows with the number of tokens, not of pairs, and a block stays in the caches,
where the element-wise half of the work is several times cheaper.

Shapes: ``N`` queries, ``M`` keys, ``h`` heads, ``d`` width of a head, ``P`` buckets; in a block
``G`` rows, ``B = G * h``, ``c`` queries, ``s`` keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from prerank.nn.hstu.padding import Padding
from prerank.nn.hstu.plan import Chunk, Group

__all__ = ["Weights", "attend"]

Weights = Literal["silu", "softmax"]
"""How scores become weights: HSTU's pointwise ``silu(score) / n``, or a softmax over the keys."""


def attend(
    query_NA: Tensor,
    key_MA: Tensor,
    value_MA: Tensor,
    groups: Sequence[Group],
    *,
    num_heads: int,
    weights: Weights,
    position_hP: Tensor | None = None,
    time_hP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from queries to keys as a plan says; what no group holds gets zeros.

    Parameters
    ----------
    query_NA, key_MA, value_MA : Tensor ``[N | M, h * d]``
        Flat tokens, heads side by side; values may be of another width than queries and keys.
    groups : sequence of Group
        From :mod:`prerank.nn.hstu.plan`.
    num_heads : int
        ``h``.
    weights : {"silu", "softmax"}
        How scores become weights.
    position_hP, time_hP : Tensor ``[h, P]``, optional
        Relative biases by bucket, added to the scores.

    Returns
    -------
    Tensor ``[N, h * d]``
        Weighted sums of values.
    Tensor ``[N, h]``
        With ``softmax`` the log of the sum of exponentials, -inf where nothing is seen: what more
        keys can be joined by. With ``silu`` a lone zero.
    """
    with torch.autocast(query_NA.device.type, enabled=False):
        pooled, total = _Attend.apply(  # type: ignore[no-untyped-call]
            query_NA, key_MA, value_MA, position_hP, time_hP, groups, num_heads, weights
        )
    return pooled, total


def _heads(padding: Padding, x_NA: Tensor, num_heads: int) -> Tensor:
    """Return a group's tokens, ``[G, h, S, d]``."""
    block = padding.pad(x_NA)
    return block.view(*block.shape[:2], num_heads, -1).transpose(1, 2).contiguous()


def _put(padding: Padding, x_GhSd: Tensor, out_NA: Tensor) -> None:
    padding.put(x_GhSd.transpose(1, 2).flatten(2), out_NA)


def _columns(x_GhSd: Tensor, keys: slice | Tensor) -> Tensor:
    """Return some keys as ``[B, s, d]``."""
    return x_GhSd[:, :, keys].flatten(0, 1)


def _add_columns(x_GhSd: Tensor, keys: slice | Tensor, add_Bsd: Tensor) -> None:
    add = add_Bsd.view(*x_GhSd.shape[:2], *add_Bsd.shape[1:])
    if isinstance(keys, slice):
        x_GhSd[:, :, keys] += add
    else:
        x_GhSd.index_add_(2, keys, add)


def _looked_up(table_hP: Tensor, index_Gcs: Tensor) -> Tensor:
    """Return biases ``[1 | G, h, 1 | c, s]``."""
    found = table_hP.index_select(1, index_Gcs.flatten())
    return found.view(-1, *index_Gcs.shape).transpose(0, 1)


def _tally(grad_hP: Tensor, index_Gcs: Tensor, grad_Ghcs: Tensor) -> None:
    """Add gradients of scores to those of the buckets they read."""
    if index_Gcs.shape[0] == 1:
        grad_Ghcs = grad_Ghcs.sum(0, keepdim=True)
    if index_Gcs.shape[1] == 1:
        grad_Ghcs = grad_Ghcs.sum(2, keepdim=True)
    index = index_Gcs.flatten()
    for head in range(grad_hP.shape[0]):
        grad = grad_Ghcs[:, head].flatten()
        grad_hP[head] += torch.bincount(index, weights=grad, minlength=grad_hP.shape[1])


class _Tables:
    """The relative biases of one call and what becomes of their gradients."""

    def __init__(self, position_hP: Tensor | None, time_hP: Tensor | None, like: Tensor) -> None:
        self.tables = [t if t is None else t.to(like.dtype) for t in (position_hP, time_hP)]
        self.grads = [None if t is None else torch.zeros_like(t) for t in self.tables]

    def add(self, scores_Ghcs: Tensor, chunk: Chunk) -> None:
        for table, index in zip(self.tables, (chunk.position, chunk.time), strict=True):
            if table is not None and index is not None:
                scores_Ghcs += _looked_up(table, index)

    def tally(self, chunk: Chunk, grad_Ghcs: Tensor) -> None:
        for grad, index in zip(self.grads, (chunk.position, chunk.time), strict=True):
            if grad is not None and index is not None:
                _tally(grad, index, grad_Ghcs)


def _softmax(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and the log of their sum; nothing seen gives zeros and -inf."""
    scores = scores.masked_fill(mask == 0, float("-inf"))
    total = scores.logsumexp(-1)
    finite = torch.where(total.isinf(), 0.0, total)
    return scores.sub_(finite.unsqueeze(-1)).exp_(), total


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position: Tensor | None,
        time: Tensor | None,
        groups: Sequence[Group],
        num_heads: int,
        weights: Weights,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(query, key, value, position, time)
        ctx.groups, ctx.num_heads, ctx.weights = groups, num_heads, weights
        ctx.set_materialize_grads(False)
        tables = _Tables(position, time, query)
        pooled = query.new_zeros(query.shape[0], value.shape[1])
        total = query.new_full((query.shape[0], num_heads), float("-inf"))
        if weights == "silu":
            total = query.new_zeros(())
        for group in groups:
            q, k, v = _blocks(group, query, key, value, num_heads)
            out = q.new_empty(*q.shape[:3], v.shape[3])
            sums = q.new_empty(*q.shape[:3], 1)
            for chunk in group.chunks():
                scores = _scores(q, k, chunk, tables)
                if weights == "silu":
                    weight = F.silu(scores, inplace=True).mul_(chunk.mask.unsqueeze(1))
                else:
                    weight, log_sum = _softmax(scores, chunk.mask.unsqueeze(1))
                    sums[:, :, chunk.first : chunk.last, 0] = log_sum
                part = torch.bmm(weight.flatten(0, 1), _columns(v, chunk.keys))
                out[:, :, chunk.first : chunk.last] = part.view(*q.shape[:2], -1, v.shape[3])
            _put(group.queries, out, pooled)
            if weights == "softmax":
                _put(group.queries, sums, total)
        return pooled, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor | None, grad_total: Tensor | None) -> Any:
        query, key, value, position, time = ctx.saved_tensors
        num_heads: int = ctx.num_heads
        tables = _Tables(position, time, query)
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        if grad_pooled is None:
            grad_pooled = query.new_zeros(query.shape[0], value.shape[1])
        for group in ctx.groups:
            q, k, v = _blocks(group, query, key, value, num_heads)
            grad_out = _heads(group.queries, grad_pooled, num_heads)
            grad_sums = None
            if ctx.weights == "softmax" and grad_total is not None:
                grad_sums = _heads(group.queries, grad_total, num_heads)
            grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
            for chunk in group.chunks():
                part = slice(chunk.first, chunk.last)
                mask = chunk.mask.unsqueeze(1)
                scores = _scores(q, k, chunk, tables)
                out_Bcd = grad_out[:, :, part].flatten(0, 1)
                value_Bsd = _columns(v, chunk.keys)
                grad = torch.bmm(out_Bcd, value_Bsd.transpose(1, 2)).view_as(scores)
                if ctx.weights == "silu":
                    weight = F.silu(scores).mul_(mask)
                    grad = torch.ops.aten.silu_backward(grad.mul_(mask), scores)
                else:
                    weight, _ = _softmax(scores, mask)
                    shift = (grad * weight).sum(-1, keepdim=True)
                    if grad_sums is not None:
                        shift -= grad_sums[:, :, part]
                    grad = grad.sub_(shift).mul_(weight)
                tables.tally(chunk, grad)
                weight_Bcs, grad_Bcs = weight.flatten(0, 1), grad.flatten(0, 1)
                _add_columns(grad_v, chunk.keys, torch.bmm(weight_Bcs.transpose(1, 2), out_Bcd))
                query_Bcd = q[:, :, part].flatten(0, 1)
                _add_columns(grad_k, chunk.keys, torch.bmm(grad_Bcs.transpose(1, 2), query_Bcd))
                to_query = torch.bmm(grad_Bcs, _columns(k, chunk.keys))
                grad_q[:, :, part] = to_query.view(*q.shape[:2], -1, q.shape[3])
            grad_q *= _scale(query, num_heads)
            _put(group.queries, grad_q, grads[0])
            _put(group.keys, grad_k, grads[1])
            _put(group.keys, grad_v, grads[2])
        return *grads, *tables.grads, None, None, None


def _scale(query_NA: Tensor, num_heads: int) -> float:
    return math.sqrt(num_heads / query_NA.shape[1])


def _blocks(
    group: Group, query: Tensor, key: Tensor, value: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled queries, keys and values of a group, ``[G, h, Q | S, d]``."""
    q = _heads(group.queries, query, num_heads)
    q = q * _scale(query, num_heads)
    return q, _heads(group.keys, key, num_heads), _heads(group.keys, value, num_heads)


def _scores(q_GhQd: Tensor, k_GhSd: Tensor, chunk: Chunk, tables: _Tables) -> Tensor:
    """Return the scores of a chunk, ``[G, h, c, s]``, biases included."""
    query_Bcd = q_GhQd[:, :, chunk.first : chunk.last].flatten(0, 1)
    scores = torch.bmm(query_Bcd, _columns(k_GhSd, chunk.keys).transpose(1, 2))
    scores = scores.view(*q_GhQd.shape[:2], *scores.shape[1:])
    tables.add(scores, chunk)
    return scores
