from __future__ import annotations

from typing import Any

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


def test_a_cascade_is_also_compared_with_its_light_model() -> None:
    def d(value: float) -> dict[str, dict[str, float]]:
        return {"recall@2/T1": {"value": value, "low": value, "high": value, "p_holm": 0.01}}

    best = {"share": 0.3, "best - heavy": d(0.1), "best - first": d(-0.2)}
    shares = {"light -> heavy": {"best": {"recall@2/T1": best}}}
    shares["light -> heavy"]["best"]["recall@2/T1"]["best - all"] = d(0.1)
    text = claims.answers([{**_result(), "shares": shares}])
    assert "at 30 % recall@2/T1 +0.1000" in text
    assert "minus the light model alone recall@2/T1 -0.2000" in text
