"""Off-policy estimates are unbiased in simulation and agree between two real policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prerank import metrics
from prerank.adapters import get
from prerank.log import open_log


class Bandit:
    """Requests with a few candidates; one is shown with a known probability."""

    def __init__(self, num_requests: int, seed: int, num_candidates: int = 5) -> None:
        rng = np.random.default_rng(seed)
        shape = (num_requests, num_candidates)
        self.offsets = np.arange(num_requests + 1) * num_candidates
        self.chance = rng.uniform(0.05, 0.9, shape)
        logits = rng.normal(size=shape)
        self.propensity = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        pick = (rng.random((num_requests, 1)) < self.propensity.cumsum(1)).argmax(1)
        self.shown = np.arange(num_candidates) == pick[:, None]
        self.reward = np.where(self.shown, rng.random(shape) < self.chance, np.nan)
        order = rng.normal(size=shape).argsort(1).argsort(1)
        self.target = (order < 2).astype(float)
        self.truth = (self.target * self.chance).sum(1).mean()


def _estimates(b: Bandit, predicted: np.ndarray) -> tuple[float, float]:
    weight = metrics.importance_weights(b.shown.ravel(), b.propensity.ravel(), b.target.ravel())
    inverse = metrics.ips(b.reward.ravel(), weight, b.offsets).mean()
    robust = metrics.doubly_robust(
        b.reward.ravel(), weight, b.target.ravel(), predicted.ravel(), b.offsets
    ).mean()
    return float(inverse), float(robust)


def test_ips_and_doubly_robust_are_unbiased_and_the_model_helps() -> None:
    gaps = []
    for seed in range(40):
        b = Bandit(2000, seed)
        inverse, robust = _estimates(b, b.chance)
        _, wrong = _estimates(b, np.full_like(b.chance, 0.9))
        gaps.append((inverse - b.truth, robust - b.truth, wrong - b.truth))
    error = np.array(gaps)
    standard = error.std(0, ddof=1) / np.sqrt(len(error))
    assert (np.abs(error.mean(0)) < 4 * standard).all(), "biased"
    assert error[:, 1].std() < 0.8 * error[:, 0].std(), "a right model must reduce the variance"


def test_wrong_propensities_bias_ips_but_not_a_right_model() -> None:
    inverse, robust = [], []
    for seed in range(20):
        b = Bandit(2000, seed)
        b.propensity = np.full_like(b.propensity, 1 / 5)  # the negative control: a lie
        i, r = _estimates(b, b.chance)
        inverse.append(abs(i - b.truth))
        robust.append(r - b.truth)
    assert abs(np.mean(robust)) < 4 * np.std(robust) / np.sqrt(20)
    assert np.mean(inverse) > 3 * abs(np.mean(robust))


def test_snips_is_a_weighted_mean_and_bounded() -> None:
    b = Bandit(500, 1)
    weight = metrics.importance_weights(b.shown.ravel(), b.propensity.ravel(), b.target.ravel())
    seen = weight > 0
    by_hand = np.average(b.reward.ravel()[seen], weights=weight[seen])
    assert metrics.snips(b.reward.ravel(), weight) == pytest.approx(by_hand, abs=1e-12)
    assert np.isnan(metrics.snips([1.0], [0.0]))


def test_the_logging_policy_itself_earns_what_was_seen() -> None:
    b = Bandit(300, 2)
    weight = metrics.importance_weights(b.shown.ravel(), b.propensity.ravel(), b.propensity.ravel())
    assert np.array_equal(weight, b.shown.ravel().astype(float))
    mean = np.nanmean(b.reward)
    assert metrics.ips(b.reward.ravel(), weight, b.offsets).mean() == pytest.approx(mean)


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_propensities_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
        metrics.importance_weights([True], [bad], [1.0])
    assert metrics.importance_weights([False], [bad], [1.0])[0] == 0


@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_a_thompson_log_predicts_the_random_policy(
    real_data: Path, tmp_path: Path, campaign: str
) -> None:
    """Open Bandit Data: the random policy's click rate, estimated from the other policy's log."""
    rates = {}
    for policy in ("random", "bts"):
        get("obd")(real_data / "obd", tmp_path / policy, policy=policy, campaign=campaign)
        log = open_log(tmp_path / policy)
        group = [c.candidates.values for c in log.all().columns(4096)]
        click = np.concatenate([g["labels.click"] for g in group]).astype(float)
        propensity = np.concatenate([g["propensity"] for g in group]).astype(float)
        rates[policy] = click, propensity
    click, propensity = rates["bts"]
    uniform = np.full(click.size, rates["random"][1].mean())
    weight = metrics.importance_weights(np.ones(click.size, bool), propensity, uniform)
    estimate = metrics.snips(click, weight)
    seen = rates["random"][0]
    # under 100 clicks a policy: agreement within the joint error, which is wide
    residual = weight * (click - estimate)
    error = np.hypot(residual.std() / weight.sum() * np.sqrt(click.size), seen.std() / 100)
    assert abs(estimate - seen.mean()) < 3 * error
