"""The exact gradient identities of mixed and grouped InfoNCE, by autograd, to 1e-9."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from prerank.batch import Scores
from prerank.objectives.ghcl import GHCL

EXACT = {"rel": 1e-9, "abs": 1e-15}

# s+, s_hard, s_easy, hard, easy; easy share mixed and grouped, ratio mixed and grouped, Z_e / Z_h
TABLE = [
    (1, 0.8, -1.5, 10, 10, 9.1, 33.6, 10.0, 2.0, 0.198),
    (1, 0.8, -3.0, 10, 10, 2.2, 14.8, 44.7, 5.8, 0.129),
    (0, 1.5, -2.0, 10, 10, 2.9, 37.0, 33.1, 1.7, 0.051),
    (1, 1.0, -3.0, 5, 40, 12.8, 33.7, 54.6, 15.8, 0.289),
    (3, 0.8, -3.0, 10, 10, 2.2, 4.4, 44.7, 21.7, 0.486),
    (6, 0.8, -3.0, 10, 10, 2.2, 2.3, 44.7, 42.4, 0.949),
]


def gradient(reference: ModuleType, requests: Any, logits: list[float], **options: Any) -> Tensor:
    logit = torch.tensor(logits, dtype=torch.float64)[:, None].requires_grad_()
    objective = GHCL.Config(bce=0.0, **options).build(reference.SCHEMA)
    parts = objective({"m": Scores(logit)}, reference.batch_of(requests))
    return torch.autograd.grad(sum(parts.values()), logit)[0][:, 0]


@pytest.mark.parametrize("row", TABLE)
def test_every_row_of_the_numeric_table(reference: ModuleType, row: Any) -> None:
    s, hard, easy, num_hard, num_easy, *said = row
    request = [-1] + [reference.EXPOSED] * num_hard + [reference.RANDOM] * num_easy
    logits = [float(s)] + [hard] * num_hard + [easy] * num_easy
    mass = {"hard": num_hard * math.exp(hard), "easy": num_easy * math.exp(easy)}
    z = {name: math.exp(s) + m for name, m in mass.items()}
    z_all = math.exp(s) + sum(mass.values())
    found = []
    for grouping in ("mixed", "grouped"):
        grad = gradient(reference, [request], logits, grouping=grouping)
        g_hard, g_easy = grad[1 : 1 + num_hard], grad[1 + num_hard :]
        for name, g, x in (("hard", g_hard, hard), ("easy", g_easy, easy)):
            expected = math.exp(x) / (z_all if grouping == "mixed" else z[name])
            assert g.tolist() == pytest.approx([expected] * len(g), **EXACT)
        ratio = float(g_hard[0] / g_easy[0])
        correction = 1.0 if grouping == "mixed" else z["easy"] / z["hard"]
        assert ratio == pytest.approx(math.exp(hard - easy) * correction, **EXACT)
        found.append((100 * float(g_easy.sum() / (g_easy.sum() + g_hard.sum())), ratio))
    (share_mixed, ratio_mixed), (share_grouped, ratio_grouped) = found
    values = (share_mixed, share_grouped, ratio_mixed, ratio_grouped)
    assert values == pytest.approx(said[:4], abs=0.051)
    assert z["easy"] / z["hard"] == pytest.approx(said[4], abs=0.0006)


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_grouping_scales_a_source_by_one_factor(reference: ModuleType, tau: float) -> None:
    """Grouped over mixed is ``w_g Z / Z_g`` for every negative of a source, at least ``w_g``."""
    generator = torch.Generator().manual_seed(0)
    codes = [-1] + [k for k in range(4) for _ in range(3 + 2 * k)]
    logits = torch.randn(len(codes), generator=generator, dtype=torch.float64)
    weights = {name: 0.5 + k for k, name in enumerate(reference.NAMES)}
    args = reference, [codes], logits.tolist()
    grouped = gradient(*args, source_weights=weights, temperature=tau)
    mixed = gradient(*args, grouping="mixed", temperature=tau)
    e = torch.exp(logits / tau)
    for k, name in enumerate(reference.NAMES):
        mine = torch.tensor([code == k for code in codes])
        z_g = e[0] + e[mine].sum()
        assert (grouped / mixed)[mine].tolist() == pytest.approx(
            [float(weights[name] * e.sum() / z_g)] * int(mine.sum()), **EXACT
        )
    assert bool((grouped[1:] / mixed[1:] >= 0.5).all())


def test_several_positives_by_brute_force(reference: ModuleType) -> None:
    """The identities hold per positive: the gradient is the mean of theirs."""
    generator = torch.Generator().manual_seed(1)
    codes = [-1, 0, 0, 3, -1, 3, 2, -1, 1]
    logits = torch.randn(len(codes), generator=generator, dtype=torch.float64)
    e, negative = logits.exp(), [i for i, code in enumerate(codes) if code >= 0]
    for grouping in ("mixed", "grouped"):
        expected = torch.zeros(len(codes), dtype=torch.float64)
        for p in (i for i, code in enumerate(codes) if code == -1):
            groups = [negative]
            if grouping == "grouped":
                groups = [[n for n in negative if codes[n] == k] for k in range(4)]
            for group in groups:
                z = e[p] + e[group].sum()
                expected[group] += e[group] / z / 3
                expected[p] += (e[p] / z - 1) / 3
        found = gradient(reference, [codes], logits.tolist(), grouping=grouping)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_cross_entropy_gradient_is_the_sigmoid(reference: ModuleType) -> None:
    logits = torch.tensor([0.3, 1.2, -2.0, -0.5], dtype=torch.float64)[:, None].requires_grad_()
    objective = GHCL.Config(nce=0.0, grouping="mixed").build(reference.SCHEMA)
    parts = objective({"m": Scores(logits)}, reference.batch_of([[-1, 3, 0], [1]]))
    grad = torch.autograd.grad(sum(parts.values()), logits)[0][:, 0]
    expected = (torch.sigmoid(logits[:, 0].detach()) - torch.tensor([1.0, 0, 0, 0])) / 4
    assert grad.tolist() == pytest.approx(expected.tolist(), **EXACT)
