"""A world, a light and an expressive model trained on it, and their bundle: made once, kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch

from prerank.cascade import Cascade, Tier
from prerank.log import Log, open_log
from prerank.models import HAPExpressive, HAPLight
from prerank.objectives import GHCL
from prerank.sampling import HAPSampler
from prerank.serving.messages import Candidates, RankRequest
from prerank.serving.replay import requests_of
from prerank.training import FitConfig, load_run
from prerank.training.fit import fit
from prerank.world import World, WorldConfig, write_world

__all__ = ["QUICK_WORLD", "SERVE_WORLD", "load_cascade", "many_candidates", "prepare_world"]

SERVE_WORLD = WorldConfig(
    num_items=8_000,
    num_users=2_000,
    num_requests=6_000,
    num_days=6,
    num_retrieved=200,
    num_preranked=80,
    num_ranked=40,
    num_pool=20,
    retrieval_score=False,
)
"""More items than the 5,000 candidates that are scored."""

QUICK_WORLD = WorldConfig(
    num_items=400,
    num_users=60,
    num_requests=240,
    num_days=4,
    num_retrieved=60,
    num_preranked=30,
    num_ranked=15,
    num_pool=5,
    retrieval_score=False,
)
"""Seconds to simulate and train on, for tests."""

_RUNS: dict[str, tuple[type[HAPLight] | type[HAPExpressive], float]] = {
    "light": (HAPLight, 3e-3),
    "expressive": (HAPExpressive, 1e-3),
}
"""Name of a run: its model and learning rate."""

_FIT = FitConfig(
    epochs=1, batch_size=64, table_lr=0.3, schedule="linear", clip_norm=10.0, max_history=50
)


def prepare_world(
    folder: Path, world: WorldConfig = SERVE_WORLD, *, say: Callable[[str], None] = print
) -> Log:
    """Simulate the world and train both models, unless the folder has them."""
    path = folder / "log"
    if not path.exists():
        say(f"simulating {world.num_requests:,} requests")
        write_world(path, world)
    log = open_log(path)
    train = log["train"]
    for name, (kind, rate) in _RUNS.items():
        if not (folder / name / "model.safetensors").is_file():
            say(f"training {name}")
            torch.manual_seed(0)
            fit(
                kind.Config.preset("study").build(log.schema),
                train,
                # On all sources: behind a light model that is better, as the HAP study says.
                GHCL.Config(bce=0.3).build(log.schema),
                valid=log["valid"],
                config=msgspec.structs.replace(_FIT, lr=rate),
                sampler=HAPSampler.Config().build(train),
                out=folder / name,
                progress=False,
            )
    return log


def load_cascade(folder: Path, forward: float = 0.3) -> Cascade:
    """Return the trained cascade."""
    light, expressive = (load_run(folder / name) for name in _RUNS)
    return Cascade([Tier(light, forward=forward), Tier(expressive)])


def many_candidates(
    log: Log, num_requests: int, num_candidates: int, *, seed: int = 0
) -> list[RankRequest]:
    """Return requests of the last part, each with random items of the catalogue as candidates.

    Real users, histories and contexts; so many candidates of one request no log of ours has.
    """
    rng = np.random.default_rng(seed)
    part = log[log.parts[-1]]
    rows = np.concatenate([np.arange(a, b) for a, b in part.rows.pairs])
    chosen = rows[np.linspace(0, len(rows) - 1, num_requests).astype(int)]
    ids = World.open(log.path).item_ids
    return [
        RankRequest(
            candidates=Candidates(ids=rng.permutation(ids)[:num_candidates].tolist()),
            request_id=request.request_id,
            time=request.time,
            user=request.user,
            context=request.context,
            history=request.history,
        )
        for request in requests_of(log, chosen.tolist())
    ]
