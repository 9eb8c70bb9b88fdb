"""Conformal levels: the lowest that keeps the bound, and coverage in repeated draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.cascade import Gap, Mass, Rule, Share, Threshold
from prerank.cascade.ladder import Ladder, sort_within
from prerank.cascade.promise import certify, losses
from prerank.errors import InputError

FAMILIES = {
    "share": Share(share=0.0),
    "threshold": Threshold(score=0.0),
    "mass": Mass(mass=0.0),
    "gap": Gap(within=0.0, place=3),
}


def draw(
    rng: np.random.Generator, num: int, m: int, noise: Any = 1.0, size: int = 25
) -> tuple[Ladder, torch.Tensor]:
    """Requests of a light model that is a noisy ranker: its ladder, and the ranker's first ``m``.

    ``noise`` may be one number per request.
    """
    ranker = rng.normal(size=(num, size))
    light = ranker + np.broadcast_to(np.asarray(noise), (num,))[:, None] * rng.normal(
        size=(num, size)
    )
    needed = np.zeros((num, size), dtype=bool)
    np.put_along_axis(needed, np.argsort(-ranker, axis=1)[:, :m], True, axis=1)
    order = np.argsort(-light, axis=1)
    value = np.take_along_axis(light, order, axis=1)
    offsets = torch.arange(0, num * size + 1, size)
    ladder = Ladder.of(torch.from_numpy(value.ravel()), offsets)
    return ladder, torch.from_numpy(np.take_along_axis(needed, order, axis=1).ravel())


def mean_loss(rule: Rule, sample: tuple[Ladder, torch.Tensor]) -> float:
    return float(losses(rule, *sample).nanmean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("m", "epsilon"), [(1, 0.1), (5, 0.2)])
def test_expected_loss_is_at_most_epsilon_and_not_much_less(
    family: str, m: int, epsilon: float
) -> None:
    """200 draws of 40 calibration requests: within [epsilon - 2 / (n + 1), epsilon]."""
    rng, num, found = np.random.default_rng(7), 40, []
    for _ in range(200):
        rule = certify(FAMILIES[family], *draw(rng, num, m), epsilon=epsilon, top_m=m)
        found.append(mean_loss(rule, draw(rng, 40, m)))
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) <= epsilon + 2.5 * error
    assert np.mean(found) >= epsilon - 2 / (num + 1) - 0.25 / 25 - 2.5 * error


def test_without_the_correction_it_fails() -> None:
    """Taking the level whose plain mean is at most epsilon loses more (n = 20: 3 of 21)."""
    rng, corrected, plain = np.random.default_rng(3), [], []
    for _ in range(300):
        ladder, needed = draw(rng, 20, 1)
        rule = certify(Share(share=0.0), ladder, needed, epsilon=0.1, top_m=1)
        reach = Threshold(score=0.0).reach(ladder)[needed].sort(descending=True).values
        naive = Threshold(score=-float(reach[2]))  # two of twenty reach further
        assert mean_loss(naive, (ladder, needed)) == pytest.approx(0.1)
        test = draw(rng, 60, 1)
        corrected.append(mean_loss(rule, test))
        plain.append(mean_loss(naive, test))
    assert np.mean(corrected) <= 0.1 + 2 * np.std(corrected) / np.sqrt(300)
    assert np.mean(plain) - 4 * np.std(plain) / np.sqrt(300) > 0.1
    assert np.mean(plain) == pytest.approx(3 / 21, abs=0.02)


def test_under_drift_it_fails() -> None:
    rng, same, drifted = np.random.default_rng(5), [], []
    for _ in range(60):
        rule = certify(Mass(mass=0.0), *draw(rng, 200, 5), epsilon=0.1, top_m=5)
        same.append(mean_loss(rule, draw(rng, 100, 5)))
        # A month later the light model is staler.
        drifted.append(mean_loss(rule, draw(rng, 100, 5, noise=2.0)))
    assert np.mean(same) < 0.1 + 2 * np.std(same) / np.sqrt(60)
    assert np.mean(drifted) > 0.15


def test_with_few_users_requests_are_no_units() -> None:
    """A tenth of the users is hard to serve; 12 users with 30 requests each calibrate."""
    rng, by_request, by_user = np.random.default_rng(11), [], []
    for _ in range(150):
        user = np.repeat(np.arange(12), 30)
        noise = np.where(rng.random(12) < 0.1, 30.0, 0.1)[user]
        ladder, needed = draw(rng, 360, 3, noise=noise)
        options: Any = {"epsilon": 0.1, "top_m": 3}
        requests = certify(Share(share=0.0), ladder, needed, **options)
        users = certify(Share(share=0.0), ladder, needed, user=torch.from_numpy(user), **options)
        assert users.promise is not None
        assert users.promise.num_units == 12
        new = draw(rng, 200, 3, noise=np.where(rng.random(200) < 0.1, 30.0, 0.1))
        by_request.append(mean_loss(requests, new))
        by_user.append(mean_loss(users, new))
    assert np.mean(by_user) <= 0.1
    assert np.mean(by_request) > np.mean(by_user)


@st.composite
def samples(draw: Any) -> Any:
    lengths = draw(st.lists(st.integers(0, 6), min_size=4, max_size=10))
    num = sum(lengths)
    value = draw(st.lists(st.integers(-5, 5), min_size=num, max_size=num))
    needed = draw(st.lists(st.booleans(), min_size=num, max_size=num))
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    values = torch.tensor(value, dtype=torch.float64)
    order = sort_within(values, offsets, descending=True)
    return Ladder.of(values[order], offsets), torch.tensor(needed, dtype=torch.bool)


@given(
    sample=samples(),
    epsilon=st.sampled_from([0.3, 0.5, 0.8]),
    family=st.sampled_from(sorted(FAMILIES)),
    at_least=st.integers(0, 2),
    clustered=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_level_is_the_lowest_that_keeps_the_bound(
    sample: Any, epsilon: float, family: str, at_least: int, clustered: bool
) -> None:
    ladder, needed = sample
    values = {**FAMILIES}[family]
    rule = type(values)(**{**_fields(values), "at_least": at_least})
    user = torch.arange(ladder.num_requests) // 2 if clustered else None

    def bound(candidate: Rule) -> float:
        loss = losses(candidate, ladder, needed).numpy()
        who = np.arange(len(loss)) if user is None else user.numpy()
        means = [np.nanmean(loss[who == u]) for u in set(who[~np.isnan(loss)])]
        n = len(means)
        return (n * np.mean(means) + 1) / (n + 1) if n else 1.0

    best = rule.with_level(1e6)
    if bound(best) > epsilon:
        with pytest.raises(InputError, match="too few for epsilon"):
            certify(rule, ladder, needed, epsilon=epsilon, top_m=1, user=user)
        return
    found = certify(rule, ladder, needed, epsilon=epsilon, top_m=1, user=user)
    assert bound(found) <= epsilon + 1e-9
    levels = [float(x) for x in rule.reach(ladder)] + [-1e6]
    for level in levels:
        lower = rule.with_level(level + 1e-9 * (1 + abs(level)))
        if (lower.count(ladder) < found.count(ladder)).any():
            # Every lower level that forwards less to anyone breaks the bound, or loses nothing.
            fewer = bound(lower)
            assert fewer > epsilon - 1e-9 or fewer == pytest.approx(bound(found))


def _fields(rule: Rule) -> dict[str, Any]:
    return {f: getattr(rule, f) for f in rule.__struct_fields__}


def test_what_cannot_be_promised_is_refused() -> None:
    rng = np.random.default_rng(0)
    ladder, needed = draw(rng, 18, 1)
    with pytest.raises(InputError, match=r"18 units are too few for epsilon 0\.05; .* least 19"):
        certify(Share(share=0.0), ladder, needed, epsilon=0.05, top_m=1)
    with pytest.raises(InputError, match=r"at_most 1 loses more than 0\.2 at every level"):
        certify(Share(share=0.0, at_most=1), ladder, needed, epsilon=0.2, top_m=1)
    with pytest.raises(InputError, match="epsilon is 1"):
        certify(Share(share=0.0), ladder, needed, epsilon=1.0, top_m=1)


def test_requests_that_the_ranker_never_saw_do_not_count() -> None:
    rng = np.random.default_rng(1)
    ladder, needed = draw(rng, 60, 2)
    blank = needed & (ladder.request % 2 == 0)
    half = torch.arange(30) * 2
    alone_ladder, alone_needed = _requests(ladder, needed, half)
    one = certify(Mass(mass=0.0), ladder, blank, epsilon=0.1, top_m=2)
    two = certify(Mass(mass=0.0), alone_ladder, alone_needed, epsilon=0.1, top_m=2)
    assert one == two
    assert losses(one, ladder, blank)[1::2].isnan().all()


def _requests(ladder: Ladder, needed: Any, rows: Any) -> Any:
    chosen = torch.isin(ladder.request, rows)
    offsets = torch.arange(0, int(chosen.sum()) + 1, 25)
    return Ladder.of(ladder.value[chosen], offsets), needed[chosen]
