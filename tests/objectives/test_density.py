"""Gradient-density weights against their definition, and what state they keep."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prerank.batch import Scores
from prerank.objectives.base import local_weight
from prerank.objectives.density import Density
from prerank.objectives.ghcl import GHCL

CODES = [[-1, 3, 3, 2, 0, 0, 0], [0, -1, 2, -1, 3, 1], [3, 0]]


def drawn(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    num = sum(map(len, CODES))
    return (3 * torch.randn(num, generator=generator, dtype=torch.float64)).requires_grad_()


def by_definition(norm: np.ndarray, num_bins: int) -> np.ndarray:
    """One over (density in the sample's bin, as a share, times the bins in use)."""
    count, _ = np.histogram(norm, bins=num_bins, range=(0, 1))
    place = np.minimum((norm * num_bins).astype(int), num_bins - 1)
    return len(norm) / (count[place] * (count > 0).sum())


def test_equals_numpys_histogram() -> None:
    norm = np.random.default_rng(0).beta(0.3, 2.0, 500)
    density = Density(num_bins=10, momentum=0.0)
    weight = density.weights(torch.from_numpy(norm), torch.ones(500), local_weight)
    np.testing.assert_allclose(weight.numpy(), by_definition(norm, 10), rtol=1e-12)
    assert weight.mean().item() == pytest.approx(1.0)
    edges = density.weights(torch.tensor([0.0, 1.0]), torch.ones(2), local_weight)
    assert edges.tolist() == [1.0, 1.0]


def test_momentum_smooths_over_updates() -> None:
    density, ones = Density(num_bins=2, momentum=0.75), torch.ones(4)
    low, high = torch.full((4,), 0.1), torch.full((4,), 0.9)
    density.weights(low, ones, local_weight)
    assert density.share.tolist() == [1.0, 0.0], "the first update is not mixed with zeros"
    density.weights(high, ones, local_weight)
    assert density.share.tolist() == [0.75, 0.25]
    density.weights(low[:0], ones[:0], local_weight)
    assert density.share.tolist() == [0.75, 0.25], "an empty update says nothing"
    density.weights(high, ones, local_weight, is_kept=False)
    assert density.share.tolist() == [0.75, 0.25]


def gradients(reference: ModuleType, logit: Tensor, **options: Any) -> Tensor:
    objective = GHCL.Config(density_momentum=0.0, **options).build(reference.SCHEMA)
    parts = objective({"m": Scores(logit[:, None])}, reference.batch_of(CODES))
    return torch.autograd.grad(sum(parts.values()), logit)[0]


@pytest.mark.parametrize("grouping", ["grouped", "mixed"])
def test_cross_entropy_gradients_are_weighted(reference: ModuleType, grouping: str) -> None:
    logit = drawn()
    source = reference.batch_of(CODES).evidence.source
    plain = gradients(reference, logit, nce=0.0, grouping=grouping)
    weighted = gradients(reference, logit, nce=0.0, grouping=grouping, density=6)
    norm = torch.sigmoid(torch.where(source == -1, -logit, logit)).detach().numpy()
    np.testing.assert_allclose((weighted / plain).numpy(), by_definition(norm, 6), rtol=1e-10)


@pytest.mark.parametrize("grouping", ["grouped", "mixed"])
def test_softmax_gradients_are_weighted_by_their_share(
    reference: ModuleType, grouping: str
) -> None:
    """Norms are shares of the denominator, averaged over the positives; the last request has none.

    The pull on positives is that of the weighted negatives: a request's gradients still sum to 0.
    """
    logit = drawn(1)
    plain = gradients(reference, logit, bce=0.0, grouping=grouping)
    weighted = gradients(reference, logit, bce=0.0, grouping=grouping, density=6)
    e, norm = logit.detach().exp(), torch.zeros(len(logit), dtype=torch.float64)
    starts = np.cumsum([0, *map(len, CODES)])
    flat = [code for codes in CODES for code in codes]
    for start, stop in pairwise(starts[:3]):
        mine = range(start, stop)
        positives = [i for i in mine if flat[i] == -1]
        for n in (i for i in mine if flat[i] >= 0):
            beside = [
                i for i in mine if flat[i] >= 0 and (grouping == "mixed" or flat[i] == flat[n])
            ]
            shares = [e[n] / (e[p] + e[beside].sum()) for p in positives]
            norm[n] = sum(shares) / len(shares)
    negative = torch.tensor([code >= 0 for code in flat])
    negative[starts[2] :] = False
    expected = by_definition(norm[negative].numpy(), 6)
    assert len(set(expected.tolist())) > 1
    np.testing.assert_allclose((weighted / plain)[negative].numpy(), expected, rtol=1e-10)
    for start, stop in pairwise(starts[:3]):
        assert weighted[start:stop].sum().item() == pytest.approx(0.0, abs=1e-14)
    assert bool((weighted[starts[2] :] == 0).all())


def test_only_training_updates_the_state(reference: ModuleType) -> None:
    """Neither validation, nor diagnosis, nor a pause; and state comes back bit for bit."""
    batch, logit = reference.batch_of(CODES), drawn()
    objective = GHCL.Config(density=5).build(reference.SCHEMA)
    scores = {"m": Scores(logit[:, None])}
    with torch.no_grad():
        plain = GHCL.Config().build(reference.SCHEMA)(scores, batch)
        assert objective(scores, batch) == plain, "validation reports the unweighted loss"
    objective.negative_side(scores, batch)
    with objective.paused():
        objective(scores, batch)
    assert all(bool((t == 0).all()) for t in objective.state_tensors().values())
    objective(scores, batch)
    saved = {name: t.clone() for name, t in objective.state_tensors().items()}
    assert sorted(saved) == ["density/bce", "density/nce"]
    assert all(t.sum().item() == pytest.approx(1.0) for t in saved.values())
    other = {"m": Scores(drawn(3)[:, None])}
    expected = objective(other, batch)
    again = GHCL.Config(density=5).build(reference.SCHEMA)
    again.load_state(saved)
    assert again(other, batch) == expected
    fresh = GHCL.Config(density=5).build(reference.SCHEMA)(other, batch)
    assert fresh != expected, "negative control: the state matters"
