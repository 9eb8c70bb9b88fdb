"""What each idea of the engine saves when 5,000 candidates are scored on one core.

===========  =====================================================================================
way          what is computed for one request
===========  =====================================================================================
tiled        the expressive model on every candidate, each with a copy of the request's encoded
             features (its pooled history too): both towers and the whole first layer per candidate
split        the same, the request's part once: towers of items and the split first layer
states       the same from stored item states: only the crossing is paid
cascadeN     the light model on all, the expressive one on N %; both from states
engine       cascade30 from raw values to the answer: encoding, a cached request state, the order
===========  =====================================================================================

All give the same logits (asserted), up to the precision they compute in. ``tiled`` leaves pooling
the history out of what is repeated, which flatters it.

Shapes: ``I`` candidates.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.batch import Inputs
from prerank.bench.machine import describe_machine
from prerank.bench.peaks import fastest
from prerank.bench.serve_world import (
    QUICK_WORLD,
    SERVE_WORLD,
    load_cascade,
    many_candidates,
    prepare_world,
)
from prerank.cascade import Cascade, Tier
from prerank.evaluation.cost import count_flops
from prerank.log.format.columns import CANDIDATES, Columns
from prerank.models import HAPExpressive
from prerank.serving.engine import Engine
from prerank.serving.export import export
from prerank.serving.messages import RankRequest
from prerank.serving.scoring import Dtype, HeldStates, run_score
from prerank.world import World

__all__ = ["engine_table"]

_SHARES = (0.1, 0.2, 0.3)
_TOP_TRUE, _KEPT, _COMPARED = 50, 500, 300
_SAME = 1e-3


class _One:
    """One request, ready for every way of scoring it; ``order`` comes from what a way returns."""

    def __init__(self, engines: Mapping[str, Engine], request: RankRequest) -> None:
        self.request = request
        self.engines = engines
        exact = engines["fp32"]
        self.model = exact.cascade.models[-1]
        assert isinstance(self.model, HAPExpressive)
        self.inputs = _inputs(exact, request)
        self.prepared: dict[str, Any] = {}
        for dtype, engine in engines.items():
            pipeline, view = engine.pipeline, engine._view
            one = pipeline._prepare(0, request, 0.0, view)
            pipeline._held([one], one.side, view)  # computes and keeps the request's states
            self.prepared[dtype] = one

    def tiled(self) -> Tensor:
        """Both towers and the whole first layer at ``I`` rows."""
        model, inputs = self.model, self.inputs
        assert isinstance(model, HAPExpressive)
        pairs, every = inputs.pairs, torch.arange(inputs.num_candidates)
        items_UE = model.encode_items(inputs.items)
        user_RE = model.encoders.user(inputs, items_UE)
        user_IE = user_RE.index_select(0, pairs.request_of)
        request = model._request_over(inputs, items_UE, user_IE, None)
        item = model._item(items_UE.index_select(0, pairs.item_of))
        context = pairs.context.select(pairs.request_of)
        tiled = dataclasses.replace(pairs, request_of=every, item_of=every, context=context)
        return model.score(request, item, tiled).logits[:, 0]

    def split(self) -> Tensor:
        """Run the model's own forward pass."""
        logits: Tensor = self.model(self.inputs).logits
        return logits[:, 0]

    def states(self, dtype: Dtype) -> Tensor:
        """From stored states, on all candidates."""
        held, side = self._held(dtype), self.prepared[dtype].side
        items, item_of = held.states[-1].gather(side.state_rows, None, _KINDS[dtype])
        pairs = dataclasses.replace(side.pairs[0], item_of=item_of)
        return run_score(held.models[-1], held.requests[-1], items, pairs, dtype)[:, 0]

    def cascade(self, dtype: Dtype, share: float) -> Tensor:
        """Minus the places that a cascade gives."""
        light, strong = self.engines[dtype].cascade.tiers
        cascade = Cascade([Tier(light.model, forward=share), Tier(strong.model)])
        held = self._held(dtype)
        return -cascade.rank([held.side.inputs()] * 2, states=held).position.float()

    def engine(self, dtype: Dtype) -> Tensor:
        """Minus the places of the engine's answer."""
        answer = self.engines[dtype].rank(self.request)
        place = {id_: k for k, id_ in enumerate(answer.ids)}
        return -torch.tensor([float(place[i]) for i in self.request.candidates.ids])

    def _held(self, dtype: Dtype) -> HeldStates:
        engine, one = self.engines[dtype], self.prepared[dtype]
        return engine.pipeline._held([one], one.side, engine._view)


_KINDS: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def engine_table(
    folder: Path,
    *,
    num_candidates: int = 5000,
    num_requests: int = 8,
    repeats: int = 7,
    quick: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time every way of scoring the same requests, one thread, in turns.

    Parameters
    ----------
    folder : Path
        Keeps the world, the trained models and the bundles.
    num_candidates, num_requests, repeats : int
        Random items of the catalogue for real requests of the last day; of each request the
        shortest of so many CPU times counts, and the median over requests is shown.
    quick : bool
        A tiny world, 100 candidates: for tests.
    say : callable
        Told what is being done.

    Returns
    -------
    dict
        ``machine``, ``peaks``, ``rows`` (``way``, ``dtype``, ``cpu_ms``, ``gflop``, ``of_peak``,
        ``agreement`` of the first 300 with the expressive model on all in fp32, ``recall`` of the
        50 truly best in the first 500), ``ratios`` under ``serve/c5000/``: ``split``,
        ``algebra`` (tiled over states), ``cascade10|20|30`` (states over cascade), ``bf16``
        (cascade30 in either) and ``total`` (tiled over cascade30 in the faster), all but ``bf16``
        and ``total`` in fp32.
    """
    if quick:
        num_candidates, num_requests, repeats = 100, 2, 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        log = prepare_world(folder, QUICK_WORLD if quick else SERVE_WORLD, say=say)
        engines = _engines(folder, log, say)
        requests = many_candidates(log, num_requests, num_candidates)
        return _measure(engines, requests, World.open(log.path), repeats, num_candidates, say)
    finally:
        torch.set_num_threads(threads)


def _engines(folder: Path, log: Any, say: Callable[[str], None]) -> dict[str, Engine]:
    engines: dict[str, Engine] = {}
    dtypes: tuple[Dtype, ...] = ("fp32", "bf16")
    for dtype in dtypes:
        path = folder / f"bundle-{dtype}"
        if not path.exists():
            say(f"exporting with {dtype} states")
            export(load_cascade(folder), path, log, dtype=dtype, num_checked=24)
        config = Engine.Config(dtype=dtype, min_agreement=0.0, cache_ttl_s=1e9)
        engines[dtype] = Engine.open(path, config)
    return engines


@torch.inference_mode()
def _measure(
    engines: Mapping[str, Engine],
    requests: Sequence[RankRequest],
    world: World,
    repeats: int,
    num_candidates: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    peaks = {"fp32": _peak(torch.float32), "bf16": _peak(torch.bfloat16)}
    ways = _ways()
    times: dict[str, list[float]] = {name: [] for name in ways}
    quality: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    gflop: dict[str, float] = {}
    for k, request in enumerate(requests):
        one = _One(engines, request)
        truth = world.utility([request.request_id], request.candidates.ids)
        reference = one.states("fp32")
        for name, (way, _) in ways.items():
            found = way(one)  # warms up, too
            if name in ("tiled", "split"):
                assert bool(((found - reference).abs() <= _SAME * (1 + reference.abs())).all())
            quality[name].append(_quality(found.numpy(), reference.numpy(), truth))
            if not k:
                gflop[name] = count_flops(functools.partial(way, one))[0] / 1e9
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(repeats):
            for name, (way, _) in ways.items():
                start = time.process_time()
                way(one)
                best[name] = min(best[name], time.process_time() - start)
        for name, seconds in best.items():
            times[name].append(seconds)
        say(f"request {k + 1} of {len(requests)}")
    rows = []
    for name, (_, dtype) in ways.items():
        seconds = float(np.median(times[name]))
        agreed, recall = np.mean(quality[name], axis=0).tolist()
        rows.append(
            {
                "way": name,
                "dtype": dtype,
                "cpu_ms": 1e3 * seconds,
                "gflop": gflop[name],
                "of_peak": gflop[name] / seconds / peaks[dtype],
                "agreement": agreed,
                "recall": recall,
            }
        )
    ms = {row["way"]: row["cpu_ms"] for row in rows}
    ratios = {
        "split": ms["tiled"] / ms["split"],
        "algebra": ms["tiled"] / ms["states"],
        **{f"cascade{s:.0%}"[:-1]: ms["states"] / ms[f"cascade{s:.0%}"[:-1]] for s in _SHARES},
        "bf16": ms["cascade30"] / ms["cascade30/bf16"],
        "total": ms["tiled"] / min(ms["cascade30"], ms["cascade30/bf16"]),
    }
    return {
        "machine": describe_machine(),
        "peaks": {f"gemm_{name}_gflops": value for name, value in peaks.items()},
        "candidates": num_candidates,
        "requests": len(requests),
        "repeats": repeats,
        "rows": rows,
        "ratios": {f"serve/c{num_candidates}/{name}": value for name, value in ratios.items()},
    }


def _ways() -> dict[str, tuple[Callable[[_One], Tensor], Dtype]]:
    def cascade(dtype: Dtype, share: float) -> Callable[[_One], Tensor]:
        return lambda one: one.cascade(dtype, share)

    ways: dict[str, tuple[Callable[[_One], Tensor], Dtype]] = {
        "tiled": (_One.tiled, "fp32"),
        "split": (_One.split, "fp32"),
        "states": (lambda one: one.states("fp32"), "fp32"),
    }
    ways |= {f"cascade{share:.0%}"[:-1]: (cascade("fp32", share), "fp32") for share in _SHARES}
    ways["engine"] = (lambda one: one.engine("fp32"), "fp32")
    ways["states/bf16"] = (lambda one: one.states("bf16"), "bf16")
    ways["cascade30/bf16"] = (cascade("bf16", 0.3), "bf16")
    ways["engine/bf16"] = (lambda one: one.engine("bf16"), "bf16")
    return ways


def _inputs(engine: Engine, request: RankRequest) -> Inputs:
    """Return the whole inputs of a request, as the trainer has them."""
    encoder, catalogue = engine.bundle.encoder, engine._view.catalogue
    one = engine.pipeline._prepare(0, request, 0.0, engine._view)
    times = [one.time]
    columns = encoder.request_side(
        [(request.user.id, request.user.features)],
        [request.history],
        times,
        catalogue.find_past,
    )
    rows = catalogue.find(request.candidates.ids)
    values = encoder.candidates(request.candidates.features, len(rows))
    none = columns.groups[CANDIDATES]
    group = type(none)(np.array([0, len(rows)], dtype=np.int64), {"item": rows, **values})
    context = encoder.candidate_side([request.context], times, group)
    whole = Columns({**columns.scalars, **context.scalars}, {**columns.groups, **context.groups})
    return catalogue.assemblers[0].inputs(whole)


def _quality(
    found: npt.NDArray[Any], reference: npt.NDArray[Any], truth: npt.NDArray[Any]
) -> tuple[float, float]:
    """Return agreement of the first places with a reference, and recall of the truly best."""
    order = np.argsort(-found, kind="stable")
    first = np.argsort(-reference, kind="stable")[:_COMPARED]
    best = np.argsort(-truth, kind="stable")[:_TOP_TRUE]
    agreed = len(np.intersect1d(order[:_COMPARED], first)) / len(first)
    return agreed, len(np.intersect1d(order[:_KEPT], best)) / len(best)


def _peak(dtype: torch.dtype, size: int = 1024) -> float:
    """Return GFLOP/s of square products, per second of CPU time."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / fastest(lambda: torch.mm(a, b)) / 1e9
