from __future__ import annotations

from typing import Any

import pytest

from prerank.bench.hap import claims
from prerank.bench.hap.page import page

_LATE = {
    "mixed_bce": 100.0,
    "mixed_nce": 12.0,
    "mixed_both": 20.0,
    "grouped_nce": 11.0,
    "ghcl": 9.0,
}


def _result() -> dict[str, Any]:
    def numbers(ratio: float) -> dict[str, float]:
        return {
            "norm/dense/negative/exposed": ratio,
            "norm/dense/negative/random": 1.0,
            "norm/table/contrast/exposed": 3.0,
            "norm/table/contrast/random": 2.0,
            "negatives/exposed": 560.0,
            "negatives/random": 270.4,
        }

    metrics = {"auc/macro": {"value": 0.9, "sd_seeds": None, "seeds": 1}}
    return {
        "set": {"name": "tiny", "what": "made up"},
        "requests": {"train": 1},
        "candidates_per_request": 3.0,
        "quota": 2,
        "top_m": 1,
        "lines": {"ghcl": {"what": "GHCL", "metrics": metrics}},
        "differences": {"H2": {}, "H3": {}, "H6a": {}},
        "shares": {},
        "gradients": {name: {"early": numbers(v), "late": numbers(v)} for name, v in _LATE.items()},
        "machine": {"cpu": "none", "torch": "0"},
    }


def test_grouping_is_compared_with_the_same_terms_mixed() -> None:
    text = claims.answers([_result()])
    # Against the largest mixed ratio, that of BCE, both would look halved.
    assert "grouped_nce against mixed_nce no, ghcl against mixed_both yes" in text


def test_gradient_norms_stand_beside_their_counts() -> None:
    text = page([_result()])
    row = next(line for line in text.splitlines() if line.startswith("| ghcl | late"))
    assert "560/-/-/270" in row
    assert "| 9.0 |" in row
    assert "| 1.5 |" in row


def d(value: float | None, p_holm: float | None = 0.01) -> dict[str, float | None]:
    return {"value": value, "low": value, "high": value, "p_holm": p_holm}


def test_a_cascade_is_also_compared_with_its_light_model() -> None:
    best = {"share": 0.3, "best - heavy": d(0.1), "best - first": d(-0.2), "best - all": d(0.1)}
    shares = {"light -> heavy": {"best": {"recall@2/T1": best}}}
    text = claims.answers([{**_result(), "shares": shares}])
    assert "at 30 % recall@2/T1 +0.1000" in text
    assert "minus the light model alone recall@2/T1 -0.2000" in text


def _hard(is_edge: bool, over_control: float) -> str:
    best = {"share": 1.0 if is_edge else 0.3, "is_edge": is_edge, "best - all": d(0.1)}
    again = "light -> heavy_hard - control: light -> light of another seed"
    result = {
        **_result(),
        "shares": {"light -> heavy_hard": {"best": {"recall@2/T3": best}}},
        "drops": {again: {"recall@2/T3": d(over_control)}},
    }
    return claims.answers([result])


def test_an_optimum_must_be_inside_and_fall_more_than_the_same_model() -> None:
    text = _hard(is_edge=False, over_control=0.05)
    assert "fall to 100 %: yes; falls more than in the same-model control: yes" in text
    assert "more than with all sources: not measured" in text
    assert "falls more than in the same-model control: no" in _hard(False, -0.05)
    text = _hard(is_edge=True, over_control=0.05)
    assert "fall to 100 %: no" in text
    assert "100 % (an edge of the grid)" in text


@pytest.mark.parametrize(("easy", "so"), [(0.004, "holds"), (0.006, "does not hold")])
def test_sizes_are_judged_by_the_rule_written_before(easy: float, so: str) -> None:
    gains = {"exposed": 0.02, "rank": 0.01, "prerank": easy, "random": -0.001}
    by = {f"auc/{source}": d(gain) for source, gain in gains.items()}
    result = {**_result(), "differences": {"H3": {"heavy - ghcl": by}}}
    assert f"By the rule written before, the claim {so}." in claims.answers([result])


@pytest.mark.parametrize("hard", [0.03, 0.01])
def test_grouping_must_help_most_on_the_hardest(hard: float) -> None:
    gains = {"exposed": hard, "rank": 0.02, "prerank": 0.02, "random": 0.02}
    by = {f"auc/{source}": d(gain) for source, gain in gains.items()}
    result = {**_result(), "differences": {"H2": {"ghcl - mixed_bce": by}}}
    so = "yes" if hard == 0.03 else "no"
    assert f"so most on the hardest: {so}" in claims.answers([result])


def test_what_is_not_defined_is_said_and_raises_nothing() -> None:
    none = d(None, None)
    by = dict.fromkeys(("auc/exposed", "auc/macro", "recall@2/T1", "recall@2/T3"), none)
    best = {"share": 0.3, "best - heavy": none, "best - all": none}
    curve = {"0.3": {"recall@2/T1": {"value": None}}}
    quarter = {"value": None, "low": None, "high": None}
    result = _result()
    result["lines"]["ghcl"]["metrics"]["recall@2/T1"] = {
        "value": None,
        "sd_seeds": None,
        "seeds": 1,
    }
    result |= {
        "differences": {
            "H2": {"ghcl - mixed_bce": by},
            "H3": {"heavy - ghcl": by},
            "H6a": {"harmonised - ghcl": by},
            "default": {"grouped_nce - ghcl": by},
        },
        "shares": {"light -> heavy_hard": {"best": {"recall@2/T1": best}, "curve": curve}},
        "drops": {"light -> heavy_hard - light -> heavy": by},
        "tiers": {"light -> heavy_hard - light -> heavy": by},
        "trunk": {"light -> heavy_shared - light -> heavy": by},
        "routers": {"0.1": {"values": {"score": {"recall@2/T1": None}}, "differences": {}}},
        "promises": [
            {
                "family": "softmax mass",
                "epsilon": 0.1,
                "loss": None,
                "low": None,
                "high": None,
                "share": 0.5,
                "scored_share": 1.0,
                "windows": [quarter],
                "seeds": 1,
                "asked": 1,
            }
        ],
        "budgets": [
            {
                "family": "softmax mass",
                "share": 0.1,
                "forwarded": 3.0,
                "loss": None,
                "fixed": None,
                "difference": none,
            }
        ],
        "rates": {"ghcl": {"0.001": None}},
        "costs": {
            "candidates": 600,
            "models": {"ghcl": {"us_per_request": 1.0, "us_per_item": 0.5}},
            "cascades": {
                name: {"0.3": {"us": us, "ratio": 0.6, "predicted": 0.5, "predicted_cached": 0.4}}
                for name, us in (("heavy", 2000.0), ("heavy_shared", 1500.0))
            },
        },
    }
    text = page([result])
    assert "1,500 us against 2,000 us a request, 0.75 of the time" in text
    assert "| light -> heavy_shared | 30 % | 1,500 | 0.60 | 0.50 | 0.40 |" in text
    assert "not defined" in text
    assert "None" not in text
    assert "nan" not in text.replace("dominance", "")


def _losses(**beaten: str) -> dict[str, Any]:
    """Return results in which a loss beats the one before it on a metric."""
    metrics = {"auc/macro": {"value": 0.9, "sd_seeds": None, "seeds": 1}}
    worth = {"ghcl": 0.5, "grouped_nce": 0.6}
    lines = {
        name: {
            "what": name,
            "metrics": {**metrics, "recall@2/T1": {"value": v, "sd_seeds": None, "seeds": 1}},
        }
        for name, v in worth.items()
    }
    gap = {key: d(0.1, 0.5) for key in ("recall@2/T1", "recall@1/T3:10")}
    gap |= {key: d(-0.1 if by == "ghcl" else 0.1) for key, by in beaten.items()}
    return {**_result(), "lines": lines, "differences": {"default": {"grouped_nce - ghcl": gap}}}


def test_the_default_is_what_nothing_beats_and_of_several_the_best_recall() -> None:
    text = claims.answers([_losses()])
    assert "Loss: **grouped_nce**" in text
    text = claims.answers([_losses(**{"auc/exposed": "ghcl"})])
    assert "Loss: **ghcl**" in text
    assert "grouped_nce is beaten by ghcl on auc/exposed" in text
    both = _losses(**{"auc/exposed": "ghcl", "recall@2/T1": "grouped_nce"})
    assert "Loss: a trade-off" in claims.answers([both])
    # Another metric than those of the rule decides nothing.
    assert "Loss: **grouped_nce**" in claims.answers([_losses(**{"recall@1/T3:10": "ghcl"})])


def test_the_share_is_told_as_a_multiple_of_the_quota() -> None:
    result = _losses()
    result["shares"] = {"light -> heavy": {"best": {"recall@2/T1": {"share": 0.5}}}}
    result["candidates_per_request"] = 12.0
    text = claims.answers([result])
    assert "3.0 to 3.0 times the quota" in text
    result["candidates_per_request"] = 3.0  # fewer than the quota go on
    assert "none is better than the light model alone" in claims.answers([result])
