"""Attention within one candidate, against loops over candidates, heads and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prerank.batch import Features, Pairs
from prerank.errors import InputError
from prerank.jagged import Jagged
from prerank.nn import HistoryAttention, RowKind, TokenAttention

NONE = Features(torch.zeros(0, 0, dtype=torch.int64), (), torch.zeros(0, 0), ())
TOKENS: dict[str, tuple[RowKind, int]] = {
    "user": ("request", 3),
    "nothing": ("request", 0),
    "context": ("request", 2),
    "item": ("item", 4),
    "product": ("candidate", 5),
}
ROWS = {"request": 3, "item": 6, "candidate": 9}


def made(width: int = 6, num_heads: int = 2) -> tuple[TokenAttention, dict[str, Tensor], Pairs]:
    torch.manual_seed(0)
    attention = TokenAttention(TOKENS, width, num_heads).double()
    x = {name: torch.randn(ROWS[kind], size).double() for name, (kind, size) in TOKENS.items()}
    pairs = Pairs(torch.randint(3, (9,)), torch.randint(6, (9,)), NONE, NONE)
    return attention, x, pairs


def attended(attention: TokenAttention, x: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
    kinds: tuple[RowKind, ...] = ("request", "item", "candidate")
    projected = [
        attention.project({name: x[name] for name, (kind, _) in TOKENS.items() if kind == wanted})
        for wanted in kinds
    ]
    return attention(*projected, pairs)


def softmax_by_hand(logits: list[Tensor]) -> list[Tensor]:
    total = sum(torch.exp(x) for x in logits)
    return [torch.exp(x) / total for x in logits]


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_tokens_equal_a_loop(num_heads: int) -> None:
    attention, x, pairs = made(num_heads=num_heads)
    d = 6 // num_heads
    out = attended(attention, x, pairs)
    for i in range(9):
        rows = {"request": pairs.request_of[i], "item": pairs.item_of[i], "candidate": i}
        names = [name for name, (_, size) in TOKENS.items() if size]
        qkv = {n: attention.projections[n](x[n][rows[TOKENS[n][0]]]) for n in names}
        expected = []
        for head in range(num_heads):
            own = {n: qkv[n][3 * d * head : 3 * d * (head + 1)].split(d) for n in names}
            for f in names:
                logits = [own[f][0] @ own[g][1] / math.sqrt(d) for g in names]
                weights = softmax_by_hand(logits)
                expected.append(sum(w * own[g][2] for w, g in zip(weights, names, strict=True)))
        torch.testing.assert_close(out[i], torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_a_candidate_sees_its_own_tokens_only() -> None:
    attention, x, pairs = made()
    before = attended(attention, x, pairs)
    other = dict(x, product=x["product"].clone())
    other["product"][4] += 1.0
    after = attended(attention, other, pairs)
    same = torch.arange(9) != 4
    assert torch.equal(after[same], before[same])
    assert not torch.equal(after[4], before[4])


def test_huge_logits_stay_numbers() -> None:
    """exp of them would overflow; the weights are then those of a maximum."""
    attention, x, pairs = made()
    with torch.no_grad():
        for p in attention.parameters():
            p.mul_(1e3)
    out = attended(attention.float(), {n: v.float() for n, v in x.items()}, pairs)
    assert torch.isfinite(out).all()


def test_all_gradients_are_those_of_the_formula() -> None:
    attention, x, pairs = made()
    leaves = [x["user"].requires_grad_(), x["item"].requires_grad_(), x["product"].requires_grad_()]

    def run(user: Tensor, item: Tensor, product: Tensor) -> Tensor:
        return attended(attention, dict(x, user=user, item=item, product=product), pairs)

    assert torch.autograd.gradcheck(run, leaves)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="width 6 does not divide into 4 heads"):
        TokenAttention(TOKENS, 6, 4)
    with pytest.raises(InputError, match="width 5 does not divide into 2 heads"):
        HistoryAttention(3, 5, 2)


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    num_candidates=st.integers(0, 7),
)
def test_history_equals_a_loop(lengths: list[int], seed: int, num_candidates: int) -> None:
    """Requests in any order, some without candidates, some without events."""
    torch.manual_seed(seed)
    attention = HistoryAttention(3, 4, 2).double()
    events = Jagged.from_lengths(torch.randn(sum(lengths), 3).double(), torch.tensor(lengths))
    request_of = torch.randint(len(lengths), (num_candidates,))
    query = torch.randn(num_candidates, 4).double()
    out = attention(query, attention.project(events), request_of)
    assert out.shape == (num_candidates, 4)
    for i in range(num_candidates):
        own = events.select(request_of[i : i + 1]).values
        rows = [attention.none, *(attention.key_value(event) for event in own)]
        expected = []
        for head in (slice(0, 2), slice(2, 4)):
            keys, values = [r[:4][head] for r in rows], [r[4:][head] for r in rows]
            weights = softmax_by_hand([query[i][head] @ key / math.sqrt(2) for key in keys])
            expected.append(sum(w * v for w, v in zip(weights, values, strict=True)))
        torch.testing.assert_close(out[i], torch.cat(expected), rtol=1e-11, atol=1e-11)


def test_no_event_gives_the_learned_one() -> None:
    attention = HistoryAttention(3, 4, 2)
    events = attention.project(Jagged.from_lengths(torch.zeros(0, 3), torch.tensor([0])))
    out = attention(torch.randn(2, 4), events, torch.tensor([0, 0]))
    torch.testing.assert_close(out, attention.none[4:].expand(2, 4))
