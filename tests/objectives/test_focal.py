from __future__ import annotations

import math

import pytest
import torch

from prerank.objectives.focal import focal_loss, focal_slope


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_equals_the_definition(gamma: float) -> None:
    odds = torch.linspace(-12, 12, 41, dtype=torch.float64).requires_grad_()
    loss = focal_loss(odds, gamma)
    for u, value in zip(odds.tolist(), loss.tolist(), strict=True):
        p = 1 / (1 + math.exp(u))
        assert value == pytest.approx((1 - p) ** gamma * -math.log(p), rel=1e-9)
    slope = torch.autograd.grad(loss.sum(), odds)[0]
    torch.testing.assert_close(focal_slope(odds.detach(), gamma), slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_extremes(gamma: float) -> None:
    odds = torch.tensor([-1000.0, 1000.0]).requires_grad_()
    loss = focal_loss(odds, gamma)
    assert loss.tolist() == [0.0, 1000.0]
    assert torch.autograd.grad(loss.sum(), odds)[0].tolist() == [0.0, 1.0]
    assert focal_slope(odds.detach(), gamma).tolist() == [0.0, 1.0]
