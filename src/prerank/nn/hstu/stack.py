"""A stack of HSTU layers with three equal forwards: two passes, one masked sequence, tiled rows.

Source: "Actions Speak Louder than Words" (Zhai et al., ICML 2024, arXiv 2402.17152) for the layer;
the open code of the same team for contextual tokens and the mask of many candidates on one history;
ROO (arXiv 2508.05640) for training on requests. The two-pass form with stored keys and values is
what serving systems do with such stacks; that it is also how to *train* them on a CPU is our
measurement (docs/roo.md).

Shapes: ``R`` requests, ``L`` events of all requests, ``C`` contextual tokens of each, ``I``
candidates, ``D`` width, ``A`` width of all heads together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prerank.batch import Rows
from prerank.config import Config as BaseConfig
from prerank.errors import InputError
from prerank.jagged import Jagged, ranges
from prerank.nn.hstu.attend import Weights
from prerank.nn.hstu.buckets import seconds
from prerank.nn.hstu.layer import Form, HSTULayer
from prerank.nn.hstu.padding import join_rows
from prerank.nn.hstu.plan import Group, Rule, plan_crossing, plan_sequences

__all__ = ["HSTUStack", "HSTUState"]


@dataclass(frozen=True, slots=True)
class HSTUState(Rows):
    """What a stack keeps of each request: contextual tokens and events, as each layer sees them.

    Parameters
    ----------
    keys, values : tuple of Jagged ``[R * C + L, A]``, ``R`` rows
        One of each per layer.
    age : Jagged of int32, optional
        Seconds from each event to the request, 0 for contextual tokens; kept for a time bias.
    """

    keys: tuple[Jagged, ...]
    values: tuple[Jagged, ...]
    age: Jagged | None


class HSTUStack(nn.Module):
    """Layers that read a history causally and score each candidate as if it came next.

    A candidate sees contextual tokens, history and itself; never another candidate, and nothing of
    a request ever sees a candidate. So the history can be computed once (:meth:`encode`) and any
    number of candidates scored against what is kept of it (:meth:`cross`); :meth:`forward` is the
    two in a row. :meth:`masked` and :meth:`tiled` compute the same from one masked sequence per
    request and from one sequence per candidate: they are what the two passes are tested and timed
    against.

    Parameters
    ----------
    config : HSTUStack.Config
        Sizes and options.

    Raises
    ------
    InputError
        A size that is not above 0.

    Examples
    --------
    >>> stack = HSTUStack.Config(width=8, num_heads=2).build()
    >>> history = Jagged.from_lengths(torch.randn(5, 8), torch.tensor([3, 0, 2]))
    >>> candidates, request_of = torch.randn(4, 8), torch.tensor([0, 0, 1, 2])
    >>> scored = stack(history, candidates, request_of)
    >>> torch.allclose(scored, stack.tiled(history, candidates, request_of), atol=1e-5)
    True
    """

    class Config(BaseConfig, frozen=True):
        """Sizes and options of a stack.

        Parameters
        ----------
        width : int
            Width ``D`` of tokens.
        num_layers, num_heads : int
            Layers, and heads of each.
        query_width, value_width : int, optional
            Widths of one head; default ``width / num_heads``, rounded up.
        weights : {"silu", "softmax"}
            HSTU's pointwise weights, or a softmax over what is seen.
        form : {"code", "paper"}
            Layer of the authors' open code or of the ICML text.
        norm : {"layer", "head"}
            Whether attention's output is normalised over all heads or in each.
        normaliser : {"constant", "visible"}
            What pointwise weights are divided by: ``length``, or the number of tokens a query
            sees. Never the longest row of a batch: a score would depend on its neighbours.
        length : float
            The constant.
        num_context : int
            Contextual tokens ``C`` that every request brings.
        context_sees : {"history", "context"}
            Whether contextual tokens read the history too, as in the authors' open code; the
            history is then strictly causal in its first layer only.
        window : int, optional
            Events further back than this are not seen, by events or candidates.
        position_buckets, time_buckets : int
            Buckets of the learned biases by distance and by time between two tokens; 0: none.
            Time needs 32 for a bucket per doubling up to decades.
        dropout : float
            Of what a layer adds.
        chunk : int
            Queries of a block of scores.
        cells : int
            Pairs of query and key of a block, per head. With ``chunk`` it bounds what attention
            needs beside the tokens; results do not depend on either.
        """

        width: int = 64
        num_layers: int = 2
        num_heads: int = 2
        query_width: int | None = None
        value_width: int | None = None
        weights: Weights = "silu"
        form: Form = "code"
        norm: Literal["layer", "head"] = "layer"
        normaliser: Literal["constant", "visible"] = "constant"
        length: float = 128.0
        num_context: int = 0
        context_sees: Literal["history", "context"] = "history"
        window: int | None = None
        position_buckets: int = 0
        time_buckets: int = 0
        dropout: float = 0.0
        chunk: int = 128
        cells: int = 1 << 17

        def build(self) -> HSTUStack:
            """Make the stack."""
            return HSTUStack(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        _check(config)
        self.config = config
        per_head = -(-config.width // config.num_heads)
        self.rule = Rule(
            num_context=config.num_context,
            context_sees=config.context_sees,
            window=config.window,
            length=config.length if config.normaliser == "constant" else None,
            position_buckets=config.position_buckets,
            time_buckets=config.time_buckets,
            chunk=config.chunk,
            cells=config.cells,
        )
        self.layers = nn.ModuleList(
            HSTULayer(
                config.width,
                config.num_heads,
                config.query_width or per_head,
                config.value_width or per_head,
                form=config.form,
                weights=config.weights,
                norm=config.norm,
                position_buckets=config.position_buckets,
                time_buckets=config.time_buckets,
                dropout=config.dropout,
            )
            for _ in range(config.num_layers)
        )

    def encode(
        self,
        history: Jagged,
        *,
        age_ms: Tensor | None = None,
        context_RCD: Tensor | None = None,
    ) -> HSTUState:
        """Pass 1: read contextual tokens and history of each request.

        Parameters
        ----------
        history : Jagged ``[L, D]``, ``R`` rows
            Events, oldest first.
        age_ms : Tensor ``[L]`` int64, optional
            Milliseconds from each event to its request; needed for a time bias.
        context_RCD : Tensor ``[R, C, D]``, optional
            Contextual tokens; needed where the configuration has any.

        Returns
        -------
        HSTUState, ``R`` rows
        """
        tokens, age = self._sequence(history, age_ms, context_RCD)
        plan = plan_sequences(self.rule, tokens.offsets, history.lengths, age, tokens.values.dtype)
        x_ND = tokens.values
        kept: list[tuple[Tensor, Tensor]] = []
        *most, last = self._layers
        for layer in most:
            made = layer.project(x_ND)
            kept.append((made.key, made.value))
            pooled_NA, _ = layer.attend(made.query, made.key, made.value, plan)
            x_ND = layer.finish(x_ND, made.gate, pooled_NA)
        kept.append(last.keys_values(x_ND))
        if not torch.is_grad_enabled():
            # Slices of a wider product would keep all of it alive in a cache.
            kept = [(key.contiguous(), value.contiguous()) for key, value in kept]
        keys, values = zip(*kept, strict=True)
        return HSTUState(
            tuple(tokens.with_values(key) for key in keys),
            tuple(tokens.with_values(value) for value in values),
            None if age is None else tokens.with_values(age),
        )

    def cross(self, state: HSTUState, candidate_ID: Tensor, request_of: Tensor) -> Tensor:
        """Pass 2: score candidates against what is kept of their requests.

        Parameters
        ----------
        state : HSTUState, ``R`` rows
            From :meth:`encode`; rows may have been selected, concatenated or cached.
        candidate_ID : Tensor ``[I, D]``
            Candidates.
        request_of : Tensor ``[I]`` int64
            Row of each candidate's request, in any order.

        Returns
        -------
        Tensor ``[I, D]``
        """
        offsets = state.keys[0].offsets
        age = None if state.age is None else state.age.values
        x_ID = candidate_ID
        plan = plan_crossing(self.rule, offsets, request_of, age, state.keys[0].values.dtype)
        share_I1 = self._share(offsets.diff(), request_of)
        for layer, key, value in zip(self._layers, state.keys, state.values, strict=True):
            made = layer.project(x_ID)
            pooled_IA, total_Ih = layer.attend(made.query, key.values, value.values, plan)
            pooled_IA = layer.with_self(made, pooled_IA, total_Ih, share_I1.to(x_ID.dtype))
            x_ID = layer.finish(x_ID, made.gate, pooled_IA)
        return x_ID

    def forward(
        self,
        history: Jagged,
        candidate_ID: Tensor,
        request_of: Tensor,
        *,
        age_ms: Tensor | None = None,
        context_RCD: Tensor | None = None,
    ) -> Tensor:
        """Score candidates in two passes, ``[I, D]``; arguments as for the passes."""
        state = self.encode(history, age_ms=age_ms, context_RCD=context_RCD)
        return self.cross(state, candidate_ID, request_of)

    def masked(
        self,
        history: Jagged,
        candidate_ID: Tensor,
        request_of: Tensor,
        *,
        age_ms: Tensor | None = None,
        context_RCD: Tensor | None = None,
    ) -> Tensor:
        """Score candidates in one masked sequence per request; equal to :meth:`forward`."""
        order = torch.argsort(request_of, stable=True)
        count_R = torch.bincount(request_of, minlength=history.num_rows)
        candidates = Jagged.from_lengths(candidate_ID.index_select(0, order), count_R)
        tokens, age = self._sequence(history, age_ms, context_RCD, candidates)
        x_ND = self._whole(tokens, history.lengths, age)
        rows = ranges(tokens.offsets[1:] - count_R, count_R)
        return x_ND.index_select(0, rows).index_select(0, torch.argsort(order))

    def tiled(
        self,
        history: Jagged,
        candidate_ID: Tensor,
        request_of: Tensor,
        *,
        age_ms: Tensor | None = None,
        context_RCD: Tensor | None = None,
    ) -> Tensor:
        """Score each candidate in a sequence of its own, as impression-level training does.

        Equal to :meth:`forward`; context and history are repeated for every candidate.
        """
        rows_I = history.select(request_of)
        if age_ms is not None:
            age_ms = history.with_values(age_ms).select(request_of).values
        if context_RCD is not None:
            context_RCD = context_RCD.index_select(0, request_of)
        one_each = Jagged.from_lengths(candidate_ID, torch.ones_like(request_of))
        tokens, age = self._sequence(rows_I, age_ms, context_RCD, one_each)
        x_ND = self._whole(tokens, rows_I.lengths, age)
        return x_ND.index_select(0, tokens.offsets[1:] - 1)

    @property
    def _layers(self) -> list[HSTULayer]:
        return [layer for layer in self.layers if isinstance(layer, HSTULayer)]

    def _whole(self, tokens: Jagged, num_events: Tensor, age: Tensor | None) -> Tensor:
        """Run all layers on whole sequences, ``[N, D]``."""
        x_ND = tokens.values
        plan: Sequence[Group] = plan_sequences(
            self.rule, tokens.offsets, num_events, age, x_ND.dtype
        )
        for layer in self._layers:
            made = layer.project(x_ND)
            pooled_NA, _ = layer.attend(made.query, made.key, made.value, plan)
            x_ND = layer.finish(x_ND, made.gate, pooled_NA)
        return x_ND

    def _sequence(
        self,
        history: Jagged,
        age_ms: Tensor | None,
        context_RCD: Tensor | None,
        candidates: Jagged | None = None,
    ) -> tuple[Jagged, Tensor | None]:
        """Return context, history and candidates of each row in a row, and ages of the tokens."""
        C = self.config.num_context
        assert (0 if context_RCD is None else context_RCD.shape[1]) == C, "contextual tokens"
        assert not self.config.time_buckets or age_ms is not None, "a time bias needs ages"
        parts = [history]
        if C and context_RCD is not None:
            count_R = torch.full_like(history.lengths, C)
            parts.insert(0, Jagged.from_lengths(context_RCD.flatten(0, 1), count_R))
        if candidates is not None:
            parts.append(candidates)
        tokens = join_rows(parts)
        if not self.config.time_buckets or age_ms is None:
            return tokens, None
        age = seconds(age_ms)
        zeros = age.new_zeros(tokens.values.shape[0])
        ages = [part.with_values(zeros[: part.values.shape[0]]) for part in parts]
        ages[1 if C else 0] = history.with_values(age)
        return tokens, join_rows(ages).values

    def _share(self, num_kept: Tensor, request_of: Tensor) -> Tensor:
        """Return one over the normaliser of each candidate, ``[I, 1]``."""
        if self.rule.length is not None:
            share_R = torch.full_like(num_kept, 1.0 / self.rule.length, dtype=torch.float64)
        else:
            num_events = num_kept - self.rule.num_context
            share_R = 1.0 / self.rule.num_visible(num_events).to(torch.float64)
        return share_R.index_select(0, request_of).unsqueeze(1)


def _check(config: HSTUStack.Config) -> None:
    for name in ("width", "num_layers", "num_heads", "length", "chunk", "cells"):
        value = getattr(config, name)
        if not value > 0:
            raise InputError(f"hstu: {name} is {value}; expected a number above 0")
    for name in ("num_context", "position_buckets", "time_buckets"):
        value = getattr(config, name)
        if value < 0:
            raise InputError(f"hstu: {name} is {value}; expected 0 or more")
    for name in ("query_width", "value_width", "window"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"hstu: {name} is {value}; expected a number above 0, or none")
