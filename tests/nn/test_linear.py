"""The split layer against nn.Linear on the concatenation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prerank.batch import Features, Pairs
from prerank.nn import RowKind, SplitLinear

NONE = Features(torch.zeros(0, 0, dtype=torch.int64), (), torch.zeros(0, 0), ())


def made(parts: dict[str, tuple[RowKind, int]], out: int, seed: int, R: int, U: int, I: int):  # noqa: E741
    torch.manual_seed(seed)
    layer = SplitLinear(parts, out).double()
    num_rows = {"request": R, "item": U, "candidate": I}
    x = {
        name: torch.randn(num_rows[kind], width, dtype=torch.float64, requires_grad=True)
        for name, (kind, width) in parts.items()
    }
    pairs = Pairs(torch.randint(R, (I,)), torch.randint(U, (I,)), NONE, NONE)
    return layer, x, pairs


def concatenated(layer: SplitLinear, x: dict[str, Tensor], pairs: Pairs) -> Tensor:
    index = {"request": pairs.request_of, "item": pairs.item_of, "candidate": slice(None)}
    return torch.cat([x[name][index[layer.kinds[name]]] for name in x], dim=1)


part = st.tuples(st.sampled_from(["request", "item", "candidate"]), st.integers(0, 4))


@given(
    parts=st.lists(part, min_size=1, max_size=5).filter(lambda p: any(w for _, w in p)),
    num_candidates=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_equals_linear_on_the_concatenation(
    parts: list[tuple[RowKind, int]], num_candidates: int, seed: int
) -> None:
    named = {f"p{k}": value for k, value in enumerate(parts)}
    layer, x, pairs = made(named, 3, seed, 2, 4, num_candidates)
    plain = nn.Linear(sum(w for _, w in parts), 3).double()
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    out, expected = layer(x, pairs), plain(concatenated(layer, x, pairs))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)

    weights = torch.randn_like(expected)
    grads = []
    for result in (out, expected):
        layer.zero_grad()
        inputs = [value for value in x.values() if value.numel()]
        grads.append(torch.autograd.grad((result * weights).sum(), inputs) if inputs else ())
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


PARTS: dict[str, tuple[RowKind, int]] = {
    "user": ("request", 32),
    "context": ("request", 8),
    "item": ("item", 16),
    "cross": ("candidate", 4),
}


def test_weight_gradients_equal_those_of_linear() -> None:
    layer, x, pairs = made(PARTS, 5, 0, 3, 6, 20)
    plain = nn.Linear(60, 5).double()
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    weights = torch.randn(20, 5, dtype=torch.float64)
    (layer(x, pairs) * weights).sum().backward()
    (plain(concatenated(layer, x, pairs)) * weights).sum().backward()
    joined = torch.cat([layer.weights[name].grad for name in PARTS], dim=1)
    torch.testing.assert_close(joined, plain.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad, rtol=1e-12, atol=1e-12)


def test_parts_computed_ahead_and_summed() -> None:
    layer, x, pairs = made(PARTS, 5, 0, 3, 6, 20)
    user = layer.project("user", x["user"]) + layer.project("context", x["context"])
    item = layer.project("item", x["item"])
    before = user.clone(), item.clone()
    out = layer.combine({"user": user, "item": item}, pairs, {"cross": x["cross"]})
    torch.testing.assert_close(out, layer(x, pairs), rtol=1e-12, atol=1e-12)
    assert torch.equal(user, before[0]), "a cached projection was overwritten"
    assert torch.equal(item, before[1]), "a cached projection was overwritten"


def test_each_part_is_paid_at_its_own_rows() -> None:
    R, U, I, H = 3, 6, 20, 5  # noqa: E741
    layer, x, pairs = made(PARTS, H, 0, R, U, I)
    with FlopCounterMode(display=False) as counter:
        layer(x, pairs)
    assert counter.get_total_flops() == 2 * H * (R * (32 + 8) + U * 16 + I * 4)


def test_initial_weights_are_those_of_linear() -> None:
    torch.manual_seed(0)
    layer = SplitLinear({"a": ("request", 300), "b": ("item", 100)}, 50)
    bound = 1 / 20.0
    for values in (layer.weights["a"], layer.weights["b"]):
        assert float(values.detach().abs().max()) <= bound
        assert abs(float(values.detach().std()) - bound / 3**0.5) < 0.002


def test_no_part_with_a_width_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="width 0"):
        SplitLinear({"user": ("request", 0)}, 3)


def test_tied_parts_act_on_their_sum() -> None:
    parts: dict[str, tuple[RowKind, int]] = {
        "user": ("request", 4),
        "context": ("request", 2),
        "item": ("item", 4),
        "cross": ("candidate", 4),
    }
    torch.manual_seed(0)
    layer = SplitLinear(parts, 5, tied={"item": "user", "cross": "user"}).double()
    assert set(layer.weights) == {"user", "context"}
    rows = {"request": 3, "item": 6, "candidate": 20}
    x = {name: torch.randn(rows[kind], width).double() for name, (kind, width) in parts.items()}
    pairs = Pairs(torch.randint(3, (20,)), torch.randint(6, (20,)), NONE, NONE)
    joined = x["user"][pairs.request_of] + x["item"][pairs.item_of] + x["cross"]
    expected = joined @ layer.weights["user"].T + layer.bias
    expected = expected + (x["context"] @ layer.weights["context"].T)[pairs.request_of]
    torch.testing.assert_close(layer(x, pairs), expected, rtol=1e-12, atol=1e-12)
