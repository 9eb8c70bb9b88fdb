from __future__ import annotations

import pytest
import torch
from torch import nn

from prerank.errors import InputError
from prerank.training.combine import Sum


def test_gradient_of_the_weighted_sum() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    rule = Sum.Config(weights={"b": 3.0}).build()
    total = rule({"a": w.sum(), "b": (w * w).sum()}, [w])
    assert total.item() == pytest.approx(3 + 3 * 5)
    assert not total.requires_grad
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx([1 + 3 * 2, 1 + 3 * 4])


def test_a_weight_of_no_part_is_refused() -> None:
    rule = Sum.Config(weights={"bce/clik": 1.0}).build()
    with pytest.raises(InputError, match="did you mean 'bce/click'"):
        rule.total({"bce/click": torch.tensor(1.0)})


def test_parts_that_depend_on_nothing() -> None:
    w = nn.Parameter(torch.ones(1))
    assert Sum()({"a": torch.tensor(0.0)}, [w]) == 0
    assert w.grad is None
