"""Inverse norms and harmonised weights: what is measured, where weights go, what stays fixed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prerank.errors import InputError
from prerank.training.combine import Harmonised, InverseNorm, Sum, get
from prerank.training.combine.by_source import Meter

PULL = {"exposed": 8.0, "rank": 4.0, "prerank": 1.0, "random": 0.5}


def parts_of(w: Tensor, pull: dict[str, float] = PULL) -> dict[str, Tensor]:
    """Each source pulls its own element of w; half of it in each kind of part."""
    half = {name: x * w[k] / 2 for k, (name, x) in enumerate(pull.items())}
    return {f"{kind}/{name}": x for kind in ("nce", "bce") for name, x in half.items()}


def steps(rule: Any, num: int, pull: dict[str, float] = PULL, extra: Any = None) -> Tensor:
    """Return the gradient after some calls."""
    w = nn.Parameter(torch.ones(len(pull) + 1, dtype=torch.float64))
    for _ in range(num):
        w.grad = None
        logits = w * 1.0
        if hasattr(rule, "watch"):
            rule.watch(logits)
        parts = parts_of(logits, pull)
        if extra is not None:
            parts["bce/positive"] = extra * logits[-1]
        total = rule(parts, [w])
        assert total.item() == pytest.approx(sum(pull.values()) + (extra or 0.0))
    assert w.grad is not None
    return w.grad


@pytest.mark.parametrize("measure", ["dense", "logit"])
def test_inverse_norms_make_sources_equal(measure: str) -> None:
    rule = InverseNorm.Config(measure=measure, every=1).build()
    grad = steps(rule, 3)
    mean_inverse = sum(1 / x for x in PULL.values()) / 4
    assert grad[:4].tolist() == pytest.approx([1 / mean_inverse] * 4)
    assert sum(rule.weights.values()) == pytest.approx(4.0)


@pytest.mark.parametrize("measure", ["dense", "logit"])
@pytest.mark.parametrize("targets", [{}, {"exposed": 3.0, "random": 2.0}])
def test_harmonised_shares_reach_their_targets(measure: str, targets: dict[str, float]) -> None:
    rule = Harmonised.Config(measure=measure, targets=targets, rate=0.3).build()
    grad = steps(rule, 40)
    goal = torch.tensor([targets.get(name, 1.0) for name in PULL], dtype=torch.float64)
    torch.testing.assert_close(grad[:4] / grad[:4].sum(), goal / goal.sum(), rtol=1e-4, atol=0)
    assert sum(rule.weights.values()) / 4 == pytest.approx(1.0, abs=1e-12)
    said = rule.report()
    assert said["share/rank"] == pytest.approx(float((goal / goal.sum())[1]), rel=1e-4)
    assert said["weight/rank"] == rule.weights["rank"]


def test_a_rate_below_one_goes_part_of_the_way() -> None:
    """In logs: after one call, imbalance is what it was to the power of one minus rate."""
    grad = steps(Harmonised.Config(rate=0.25, limit=1e9).build(), 1)
    assert float(grad[0] / grad[3]) == pytest.approx((8.0 / 0.5) ** 0.75)
    assert float(steps(Sum(), 1)[0] / steps(Sum(), 1)[3]) == pytest.approx(16.0), "control"


def test_weights_are_limited() -> None:
    pull = {**PULL, "random": 1e-6}
    rule = Harmonised.Config(rate=1.0, limit=5.0, momentum=0.0).build()
    steps(rule, 30, pull)
    assert max(rule.weights.values()) / min(rule.weights.values()) == pytest.approx(5.0)
    assert sum(rule.weights.values()) == pytest.approx(4.0)


@pytest.mark.parametrize("kind", [InverseNorm, Harmonised])
def test_parts_that_are_no_source_keep_weight_one(kind: Any) -> None:
    grad = steps(kind.Config(measure="logit", every=1).build(), 5, extra=7.0)
    assert float(grad[4]) == 7.0
    moved = kind.Config(measure="logit", every=1, fixed=()).build()
    assert float(steps(moved, 5, extra=7.0)[4]) != 7.0


def test_measured_every_so_often_and_smoothed() -> None:
    meter = Meter("logit", every=3, momentum=0.75, fixed=())
    logits, seen = torch.ones(2, dtype=torch.float64, requires_grad=True), []
    for size in (4.0, 100.0, 100.0, 8.0, 100.0):
        sources = {"rank": size * logits[0] - 9 * logits[1], "random": logits.sum() * 0.0}
        meter.update(sources, [], logits)
        seen.append(meter.sizes["rank"])
    assert seen == [4.0, 4.0, 4.0, 5.0, 5.0], "neither pushes up nor other steps count"
    assert "random" not in meter.sizes, "nothing measured is not a size of 0"


def test_processes_measure_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, also one whose share has nothing of the source."""
    logits = torch.ones(1, dtype=torch.float64, requires_grad=True)
    exchanged = []

    def average(sizes: Tensor) -> Tensor:
        exchanged.append(sizes.tolist())
        return (sizes + 4.0) / 2

    monkeypatch.setattr("prerank.training.distributed.average", average)
    for part, expected in ((logits.sum() * 2, 3.0), (torch.tensor(0.0), 2.0)):
        meter = Meter("logit", every=1, momentum=0.0, fixed=())
        meter.update({"rank": part}, [], logits)
        assert meter.sizes == {"rank": expected}
    assert exchanged == [[2.0], [0.0]]


def test_shares_of_a_batch_push_as_much_as_the_whole() -> None:
    """The mean over processes of ``logit`` sizes, each divided by its part of the whole weight."""
    pull = torch.tensor([3.0, -1.0, 2.0, -5.0, 0.5, 4.0], dtype=torch.float64)

    def size(pull: Tensor, divisor: float) -> float:
        logits = torch.zeros_like(pull).requires_grad_()
        meter = Meter("logit", every=1, momentum=0.0, fixed=())
        meter.update({"rank": (pull * logits).sum() / divisor}, [], logits)
        return meter.sizes["rank"]

    whole = size(pull, 6.0)
    assert (size(pull[:2], 6.0 / 2) + size(pull[2:], 6.0 / 2)) / 2 == pytest.approx(whole)
    assert (size(pull[:2], 2.0) + size(pull[2:], 4.0)) / 2 != pytest.approx(whole), "control"


def test_dense_norms_leave_tables_out() -> None:
    table, layer = nn.Parameter(torch.ones(5, 2)), nn.Parameter(torch.ones(2))
    looked_up = F.embedding(torch.tensor([1, 1]), table, sparse=True)
    part = (looked_up @ layer).sum()
    meter = Meter("dense", every=1, momentum=0.0, fixed=())
    for _ in range(2):
        meter.update({"rank": part}, [table, layer], None)
        assert meter.sizes["rank"] == pytest.approx(math.hypot(2, 2))


@pytest.mark.parametrize("name", ["inverse_norm", "harmonised"])
def test_state_goes_on_bit_for_bit(name: str) -> None:
    config = get(name).Config(every=2, measure="logit")
    whole, first, second = config.build(), config.build(), config.build()
    expected = [steps(whole, 1, {k: x * (1 + n % 3) for k, x in PULL.items()}) for n in range(9)]
    for n in range(4):
        steps(first, 1, {k: x * (1 + n % 3) for k, x in PULL.items()})
    second.load_state(first.state_tensors())
    for n in range(4, 9):
        grad = steps(second, 1, {k: x * (1 + n % 3) for k, x in PULL.items()})
        assert torch.equal(grad, expected[n])
    assert not torch.equal(steps(config.build(), 1), expected[8]), "control: the state matters"


@pytest.mark.parametrize("name", ["inverse_norm", "harmonised"])
def test_nothing_to_learn(name: str) -> None:
    w, rule = nn.Parameter(torch.ones(1)), get(name)()
    rule.watch(torch.zeros(0, 1))
    assert rule({"nce/rank": torch.tensor(0.0)}, [w]) == 0
    assert w.grad is None
    assert rule.report() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"limit": 0.5}, "limit is 0.5"),
        ({"targets": {"rank": 0.0}}, "target of 'rank' is 0.0"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Harmonised.Config(**options).build()


def test_a_target_of_no_source_is_refused() -> None:
    rule = Harmonised.Config(targets={"expsed": 2.0}).build()
    with pytest.raises(InputError, match="did you mean 'exposed'"):
        steps(rule, 1)
