"""Training on requests beside training on impressions: an HSTU stack, the same weights, all ways.

An update reads ``num_candidates`` impressions, ``K`` of each request. ``tiled`` is impression-level
training: history and candidate of every impression in a row of their own. ``masked`` has one
sequence per request, ``two_pass`` computes the history and scores candidates against it.
``two_pass/impressions`` runs the two passes with one request per impression: it is to tiled rows
what a good kernel brings without requests, and to ``two_pass`` what requests bring alone.

Cost model (ROO, arXiv 2508.05640, formula re-stated from public summaries; predicted here from two
measured times): with ``u`` the time of the history and ``c`` the time of a candidate,
``S(K) = K (u + c) / (u + K c)``. By tokens alone it is ``K (N + 1) / (N + K)``.

Shapes: ``R`` requests, ``N`` events of each, ``K`` impressions of each, ``I`` impressions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prerank.bench.machine import describe_machine
from prerank.jagged import Jagged
from prerank.nn import FusedTables, HSTUStack

__all__ = ["WAYS", "Net", "Step", "bench_roo", "make_step"]

WAYS = ("tiled", "masked", "two_pass", "two_pass/impressions")
"""Ways to train on the same impressions."""
_BY_IMPRESSION = ("tiled", "two_pass/impressions")
_NUM_ITEMS = 10_000
_EQUAL = (24, 6, 12)  # events, impressions per request, requests of the check in float64


@dataclass(frozen=True, slots=True)
class Step:
    """The impressions of one update: past items, candidate items and labels.

    Parameters
    ----------
    history : Jagged of int64, ``R`` rows
        Past items.
    items, request_of : Tensor ``[I]`` int64
        Candidates and their requests.
    target : Tensor ``[I]``
        Labels.
    """

    history: Jagged
    items: Tensor
    request_of: Tensor
    target: Tensor

    @property
    def impressions(self) -> Step:
        """The same with a request for every impression."""
        own = torch.arange(self.items.numel())
        return Step(self.history.select(self.request_of), self.items, own, self.target)

    @property
    def speed_up_by_tokens(self) -> float:
        """Tokens of tiled rows over tokens of requests."""
        lengths = self.history.lengths
        tiled = int(lengths[self.request_of].sum()) + self.items.numel()
        return tiled / (int(lengths.sum()) + self.items.numel())


def make_step(lengths: Tensor, counts: Tensor, *, seed: int = 0) -> Step:
    """Draw an update of requests with so many events ``[R]`` and impressions ``[R]``."""
    g = torch.Generator().manual_seed(seed)
    num = int(counts.sum())
    history = torch.randint(2, _NUM_ITEMS, (int(lengths.sum()),), generator=g)
    return Step(
        Jagged.from_lengths(history, lengths),
        torch.randint(2, _NUM_ITEMS, (num,), generator=g),
        torch.arange(lengths.numel()).repeat_interleave(counts),
        torch.randint(0, 2, (num,), generator=g).float(),
    )


class Net(nn.Module):
    """Items from a table, an HSTU stack, one logit.

    Examples
    --------
    >>> net = Net(HSTUStack.Config(width=8))
    >>> step = make_step(torch.tensor([3, 5]), torch.tensor([2, 1]))
    >>> losses = [net.loss(step, way) for way in WAYS]
    >>> all(torch.allclose(loss, losses[0]) for loss in losses)
    True
    """

    def __init__(self, config: HSTUStack.Config) -> None:
        super().__init__()
        tables = FusedTables.Config(dim=config.width, init_std=1.0)
        self.tables = tables.build({"item": _NUM_ITEMS})
        self.stack = config.build()
        self.head = nn.Linear(config.width, 1)

    def tokens(self, ids: Tensor) -> Tensor:
        """Look up items ``[N]``: tokens ``[N, D]``."""
        found: Tensor = self.tables(ids.unsqueeze(1), torch.tensor([0])).squeeze(1)
        return found

    def past(self, step: Step) -> Jagged:
        """Return the history's tokens."""
        return step.history.with_values(self.tokens(step.history.values))

    def entropy(self, read_ID: Tensor, step: Step) -> Tensor:
        """Return the mean cross-entropy of the impressions."""
        logit_I = self.head(read_ID).squeeze(1)
        return F.binary_cross_entropy_with_logits(logit_I, step.target.to(logit_I.dtype))

    def loss(self, step: Step, way: str) -> Tensor:
        """Return the loss of an update, computed in one of the ways."""
        step = step.impressions if way in _BY_IMPRESSION else step
        forward = {"tiled": self.stack.tiled, "masked": self.stack.masked}.get(way, self.stack)
        read_ID = forward(self.past(step), self.tokens(step.items), step.request_of)
        return self.entropy(read_ID, step)


def bench_roo(
    *,
    lengths: Sequence[int] = (64, 256, 512),
    impressions: Sequence[int] = (1, 2, 4, 8, 16, 32),
    num_candidates: int = 32,
    large: int = 256,
    repeats: int = 7,
    config: HSTUStack.Config | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time updates on requests and on impressions, forward and backward, side by side.

    Parameters
    ----------
    lengths : sequence of int
        Events ``N`` of a request.
    impressions : sequence of int
        Impressions ``K`` of a request, at most ``num_candidates``.
    num_candidates, large : int
        Impressions of an update, and of a second, larger one of at most 256 events a request,
        also with lengths and impressions mixed; 0: none.
    repeats : int
        Rounds; the ways take turns and medians of CPU time are reported.
    config : HSTUStack.Config, optional
        The stack; default two layers of width 64 with two heads and no biases.
    say : callable
        Told of progress.

    Returns
    -------
    dict
        ``machine``; ``rows`` (a way at a shape: CPU ms, operations, impressions/s); ``costs`` of
        history and candidate; ``memory`` (MiB kept for the backward pass); ``equal`` (largest
        difference of loss and gradients in float64); ``ratios``: ``roo/nN/kK`` is tiled over
        two-pass, with ``/masked``, ``/impressions`` (requests alone), ``/tokens`` and ``/model``
        (the two predictions).
    """
    torch.manual_seed(0)
    config = config or HSTUStack.Config()
    net = Net(config)
    result: dict[str, Any] = {"machine": describe_machine(), "rows": [], "ratios": {}}
    result["equal"] = _largest_difference(config)
    result["costs"] = []
    for N in lengths:
        say(f"{N} events")
        cost = _costs(net, N, num_candidates, repeats)
        result["costs"].append(cost)
        steps = {f"k{K}": make_step(*_same(max(1, num_candidates // K), N, K)) for K in impressions}
        if N <= 256 and large:
            for K in impressions:
                if K in (8, 32):
                    steps[f"k{K}/step{large}"] = make_step(*_same(large // K, N, K))
            steps[f"k8/mixed{large}"] = _mixed(large // 8, N)
        times = _times(net, steps, repeats)
        for name, step in steps.items():
            K = int(name.split("/")[0][1:])
            found = {way: float(np.median(times[name, way])) for way in WAYS}
            for way, seconds in found.items():
                result["rows"].append(
                    {
                        "events": N,
                        "impressions": name[1:],
                        "way": way,
                        "ms": 1e3 * seconds,
                        "impressions_per_s": step.items.numel() / seconds,
                        "gflop": _flops(net, step, way) / 1e9,
                    }
                )
            key, two_pass = f"roo/n{N}/{name}", found["two_pass"]
            u, c = cost["history_ms"], cost["candidate_ms"]
            result["ratios"] |= {
                key: found["tiled"] / two_pass,
                f"{key}/masked": found["tiled"] / found["masked"],
                f"{key}/impressions": found["two_pass/impressions"] / two_pass,
                f"{key}/tokens": step.speed_up_by_tokens,
                f"{key}/model": K * (u + c) / (u + K * c),
            }
    result["memory"] = _memory(net, max(lengths))
    return result


def _same(num: int, events: int, impressions: int) -> tuple[Tensor, Tensor]:
    return torch.full((num,), events), torch.full((num,), impressions)


def _mixed(num: int, events: int) -> Step:
    """Draw requests of all lengths up to twice the mean and 1 to 15 impressions, 8 on average."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 2 * events, (num,), generator=g)
    counts = torch.randint(1, 16, (num,), generator=g)
    return make_step(lengths, counts)


def _update(net: Net, loss: Callable[[], Tensor]) -> float:
    """Run forward and backward once and return its CPU seconds."""
    net.zero_grad(set_to_none=True)
    start = time.process_time()
    loss().backward()  # type: ignore[no-untyped-call]
    return time.process_time() - start


def _loss(net: Net, step: Step, way: str) -> Callable[[], Tensor]:
    return lambda: net.loss(step, way)


def _times(net: Net, steps: Mapping[str, Step], repeats: int) -> dict[tuple[str, str], list[float]]:
    """Time all ways on all updates, in turns.

    Rows of impressions have one shape whatever requests they come from, so they are timed once per
    number of impressions.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    of = {(n, w): n for n in steps for w in WAYS}
    first: dict[int, str] = {}
    for name, step in steps.items():
        same = first.setdefault(step.items.numel(), name) if "mixed" not in name else name
        of |= {(name, way): same for way in _BY_IMPRESSION}
    for turn in range(repeats + 1):
        for (name, way), timed in of.items():
            if name == timed:
                found = _update(net, _loss(net, steps[name], way))
                if turn:  # the first one warms up
                    seconds.setdefault((name, way), []).append(found)
    return {(name, way): seconds[timed, way] for (name, way), timed in of.items()}


def _costs(net: Net, N: int, num: int, repeats: int) -> dict[str, Any]:
    """Measure a history's cost and a candidate's, each on its own, in ms: ``num`` requests of 8."""
    step = make_step(*_same(num, N, 8))
    with torch.no_grad():
        state = net.stack.encode(net.past(step))
    leaves = [j.values.requires_grad_() for j in (*state.keys, *state.values)]

    def history() -> Tensor:
        kept = net.stack.encode(net.past(step))
        return torch.stack([j.values.mean() for j in (*kept.keys, *kept.values)]).sum()

    def candidate() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        read_ID = net.stack.cross(state, net.tokens(step.items), step.request_of)
        return net.entropy(read_ID, step)

    seconds = {
        (loss, count): [_update(net, loss) for _ in range(repeats + 1)][1:]
        for loss, count in ((history, num), (candidate, 8 * num))
    }
    u, c = (1e3 * float(np.median(s)) / count for (_, count), s in seconds.items())
    return {"events": N, "history_ms": u, "candidate_ms": c, "limit": 1 + u / c}


def _flops(net: Net, step: Step, way: str) -> float:
    with FlopCounterMode(display=False) as counter:
        _update(net, _loss(net, step, way))
    return float(counter.get_total_flops())


def _largest_difference(config: HSTUStack.Config) -> dict[str, float]:
    """Return the largest difference of loss and of any gradient to tiled rows, in float64."""
    torch.manual_seed(1)
    net = Net(config).double()
    N, K, R = _EQUAL
    g = torch.Generator().manual_seed(2)
    lengths = torch.randint(0, 2 * N, (R,), generator=g)
    counts = torch.randint(0, 2 * K, (R,), generator=g)
    step = make_step(lengths, counts)
    found = {}
    for way in WAYS:
        net.zero_grad(set_to_none=True)
        loss = net.loss(step, way)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad.to_dense().flatten() for p in net.parameters() if p.grad is not None]
        found[way] = torch.cat([loss.detach().view(1), *grads])
    tiled = found.pop("tiled")
    return {way: float((values - tiled).abs().max()) for way, values in found.items()}


def _memory(net: Net, N: int) -> list[dict[str, Any]]:
    """Return what one request of so many events keeps for its backward pass, by candidates."""
    rows: list[dict[str, Any]] = []
    for K in (1, 8, 32, 128):
        step = make_step(*_same(1, N, K))

        def history(step: Step = step) -> Tensor:
            return net.stack.encode(net.past(step)).keys[-1].values.sum()

        row: dict[str, Any] = {"events": N, "impressions": K}
        row["history_mib"] = _kept_mib(net, history)
        for way in WAYS[:3]:
            row[f"{way}_mib"] = _kept_mib(net, _loss(net, step, way))
        rows.append(row)
    return rows


def _kept_mib(net: Net, forward: Callable[[], Tensor]) -> float:
    """Return MiB of the distinct tensors that a forward pass keeps for its backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        at = x.untyped_storage().data_ptr()
        if at not in weights:
            kept[at] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    assert out.requires_grad
    return sum(x.untyped_storage().nbytes() for x in kept.values()) / 2**20
