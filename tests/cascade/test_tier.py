"""How much a tier forwards, and how it fuses tasks."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prerank.batch import Scores
from prerank.cascade import Tier
from prerank.errors import InputError


def test_shares_round_up_but_not_on_noise(planted: Any) -> None:
    sizes = torch.tensor([0, 1, 3, 10, 11, 100, 5000])
    forwarded = Tier(planted(0), forward=0.3).num_forwarded(sizes)
    assert forwarded.tolist() == [0, 1, 1, 3, 4, 30, 1500]
    assert 0.07 * 100 > 7  # the noise
    assert Tier(planted(0), forward=0.07).num_forwarded(torch.tensor([100])).item() == 7


@given(
    share=st.decimals("0.0001", "1", places=4).map(str),
    sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=20),
)
def test_shares_equal_exact_arithmetic(planted: Any, share: str, sizes: list[int]) -> None:
    forwarded = Tier(planted(0), forward=float(share)).num_forwarded(torch.tensor(sizes))
    assert forwarded.tolist() == [math.ceil(Fraction(share) * size) for size in sizes]


def test_counts_do_not_exceed_the_request(planted: Any) -> None:
    sizes = torch.tensor([0, 1, 7, 8])
    assert Tier(planted(0), forward=7).num_forwarded(sizes).tolist() == [0, 1, 7, 7]
    # One candidate, and all of them: an int is a count, a float a share.
    assert Tier(planted(0), forward=1).num_forwarded(sizes).tolist() == [0, 1, 1, 1]
    assert Tier(planted(0), forward=1.0).num_forwarded(sizes).tolist() == [0, 1, 7, 8]


def test_value_weighs_probabilities_of_tasks(planted: Any) -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0], [-4.0, 0.5]])
    model = planted(0, 1)
    assert Tier(model).order_value(Scores(logits)).tolist() == [2.0, 0.0, -4.0]
    value = Tier(model, value={"buy": 5.0, "click": 0.5}).order_value(Scores(logits))
    expected = [
        sum(w / (1 + math.exp(-x)) for w, x in zip((0.5, 5.0), row, strict=True))
        for row in logits.tolist()
    ]
    torch.testing.assert_close(value, torch.tensor(expected).double())
    only = Tier(model, value={"buy": 1.0}).order_value(Scores(logits))
    assert only.argsort().tolist() == logits[:, 1].argsort().tolist()


def test_near_certain_candidates_stay_apart(planted: Any) -> None:
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0], [30.0, 0.0]])
    assert len(set(logits[:, 0].sigmoid().tolist())) == 1  # float32 cannot tell
    value = Tier(planted(0, 1), value={"click": 1.0}).order_value(Scores(logits))
    assert value.argsort().tolist() == [0, 1, 2]


@pytest.mark.parametrize("forward", [0, -1, 0.0, 1.5, -0.1, float("nan"), True, "0.3", 2.0])
def test_impossible_amounts_are_refused(planted: Any, forward: Any) -> None:
    with pytest.raises(InputError, match=r"tier: forward is .*; expected a share in \(0, 1\]"):
        Tier(planted(0), forward=forward)


def test_impossible_values_are_refused(planted: Any) -> None:
    with pytest.raises(InputError, match=r"task 'clik', which the model lacks; did you mean 'cli"):
        Tier(planted(0), value={"clik": 1.0})
    with pytest.raises(InputError, match="task 'buy' by nan"):
        Tier(planted(0), value={"click": 1.0, "buy": float("nan")})
    with pytest.raises(InputError, match="every task by 0"):
        Tier(planted(0), value={"click": 0.0})
