"""What a cascade costs beside its second model on everything, measured on one request at a time.

Ways are timed in turn, round by round, in processor time of the one thread that computes, and
medians of the rounds' ratios are reported: what else the machine does falls on all of them alike.
The times include everything that a request needs without any cache: request and item states of
whatever is scored, scoring, ordering.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from prerank.batch import Inputs
from prerank.cascade import Cascade, Tier
from prerank.evaluation.cost import measure_cost
from prerank.evaluation.studies.frontier import tier_us
from prerank.evaluation.studies.points import num_forwarded
from prerank.log import Part
from prerank.models.base import Model
from prerank.training import load_run

__all__ = ["costs"]

_SECOND = {
    "heavy": "ghcl",
    "heavy_history": "ghcl",
    "heavy_shared": "ghcl",
    "paper_heavy": "paper_light",
}
"""Second line -> the first one before it."""
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
_ROUNDS = 25


def costs(finished: Mapping[str, Mapping[int, Path]], part: Part) -> dict[str, Any]:
    """Measure the cascades of the study.

    Parameters
    ----------
    finished : mapping of line to mapping of seed to folder
        Trainings; the first seed's models are timed.
    part : Part
        A request of the median number of candidates is taken from it.

    Returns
    -------
    dict
        ``candidates`` of the request; ``models``: cost of each; ``first``: by second line the
        first one; ``cascades``: by second line and share ``ratio`` (measured time over that of the
        second model on everything), ``predicted`` (from the models' measured times per request,
        item and candidate), ``predicted_cached`` (the same with item states at hand).
    """
    pairs = {b: a for b, a in _SECOND.items() if a in finished and b in finished}
    if not pairs:
        return {}
    names = dict.fromkeys((*pairs.values(), *pairs))
    models = {name: load_run(finished[name][min(finished[name])] / "run") for name in names}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = _one_request(next(iter(models.values())), part)
        found = {name: measure_cost(model, inputs) for name, model in models.items()}
        size = inputs.num_candidates
        cascades = {b: _beside(models[a], models[b], inputs) for b, a in pairs.items()}
        for name, by_share in cascades.items():
            for share, row in by_share.items():
                forwarded = int(num_forwarded(np.array([size]), float(share))[0])
                for key, cached in (("predicted", False), ("predicted_cached", True)):
                    first = tier_us(found[pairs[name]], size, cached=cached)
                    second = tier_us(found[name], forwarded, cached=cached)
                    row[key] = (first + second) / tier_us(found[name], size, cached=cached)
    finally:
        torch.set_num_threads(threads)
    return {
        "candidates": size,
        "models": {name: msgspec.to_builtins(cost) for name, cost in found.items()},
        "first": pairs,
        "cascades": cascades,
    }


def _one_request(model: Model, part: Part) -> Inputs:
    assert model.transforms is not None
    columns = next(part.columns(64))
    lengths = np.diff(columns.candidates.offsets)
    usual = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    return model.transforms.batch(columns.take(np.array([usual])), part.log).inputs


def _beside(light: Model, heavy: Model, inputs: Inputs) -> dict[str, dict[str, float]]:
    ways: dict[str, Callable[[], object]] = {}
    alone = Cascade([Tier(heavy)])
    ways["alone"] = lambda: alone.rank([inputs])
    for share in _SHARES:
        cascade = Cascade([Tier(light, forward=share), Tier(heavy)])
        ways[f"{share:g}"] = lambda cascade=cascade: cascade.rank([inputs, inputs])  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_ROUNDS + 3):
        for name, way in ways.items():
            began = time.thread_time()
            way()
            if number >= 3:  # the first rounds warm up
                times[name].append(time.thread_time() - began)
    whole = np.array(times["alone"])
    return {
        name: {
            "us": float(np.median(found) * 1e6),
            "ratio": float(np.median(np.array(found) / whole)),
        }
        for name, found in times.items()
        if name != "alone"
    }
