from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from prerank.bench.hap import grid
from prerank.bench.hap.answers import answers
from prerank.bench.hap.claims_short import in_short
from prerank.bench.hap.page import page
from prerank.bench.hap.sets import StudySet
from prerank.bench.hap.study import Study
from prerank.world import WorldConfig, write_world

_KEYS = ("auc/exposed", "auc/rank", "recall@2/T1", "recall@2/U")


def _d(value: float, p_holm: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "p_holm": p_holm}


def _result(name: str = "world", sign: float = 1.0, **values: Any) -> dict[str, Any]:
    metric = {"value": 0.9, "sd_seeds": None, "seeds": 1}
    lines = ("mixed_both", "ghcl", "heavy")
    best = {"share": 0.3, "best - all": _d(0.1), "best - first": _d(0.1), "best - heavy": _d(-0.1)}
    numbers = {"norm/dense/negative/exposed": 20.0, "norm/dense/negative/random": 1.0}
    return {
        "set": {"name": name, "what": "made up", **values},
        "requests": {"train": 1},
        "candidates_per_request": 3.0,
        "quota": 2,
        "top_m": 1,
        "lines": {line: {"what": line, "metrics": dict.fromkeys(_KEYS, metric)} for line in lines},
        "differences": {
            "H2": {"ghcl - mixed_both": {key: _d(sign * 0.1) for key in _KEYS}},
            "H3": {"heavy - ghcl": dict.fromkeys(_KEYS, _d(-0.2))},
        },
        "shares": {
            "light -> heavy": {
                "curve": {"0.3": dict.fromkeys(_KEYS, metric)},
                "best": {key: best for key in _KEYS if key.startswith("recall")},
            }
        },
        "gradients": {"mixed_both": {"early": numbers, "late": numbers}},
        "machine": {"cpu": "none", "torch": "0"},
    }


def _row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_short_answers_have_a_column_per_set() -> None:
    text = in_short([_result(), _result("mind", sign=-1.0)])
    assert _row(text, "1. Mixed losses") == ["yes (20.0 to 20.0)", "yes (20.0 to 20.0)"]
    assert _row(text, "2. GHCL against the mixed losses, source") == [
        "2 better, 0 worse of 2",
        "0 better, 2 worse of 2",
    ]
    assert _row(text, "the gain is largest on the hardest source") == ["yes", "no"]
    assert _row(text, "heavy against light, recalls") == ["0 better, 2 worse of 2"] * 2
    assert _row(text, "light -> heavy of all sources against heavy on all") == (
        ["0 better, 2 worse of 2"] * 2
    )
    assert "6d" not in text  # measured on no set


def test_what_is_not_significant_is_neither_better_nor_worse() -> None:
    result = _result()
    for by in result["differences"]["H3"].values():
        for row in by.values():
            row["p_holm"] = 0.5
    assert _row(in_short([result]), "heavy against light") == ["nothing significant of 2"]


def test_other_worlds_stand_beside_the_first_and_in_no_answer() -> None:
    other = _result("world_1", sign=-1.0, rates_of="world", lines=["mixed_both", "ghcl", "heavy"])
    text = page([_result(), other])
    answered = text.partition("## Answers")[2].partition("## world: all lines")[0]
    assert "world_1" not in answered
    assert "## world_1" not in text
    worlds = text.partition("## Other worlds")[2]
    assert "ghcl - mixed_both: same sign in all 2 worlds on 0 of 4 metrics" in worlds
    assert "heavy - ghcl: same sign in all 2 worlds on 4 of 4 metrics" in worlds
    assert _row(worlds, "ghcl - mixed_both | recall@2/U")[-1] == "no"
    assert "up to 1 seeds" in text  # three lines of three


def test_settings_of_a_sweep_stand_in_one_table() -> None:
    result = _result()
    metric = {"value": 0.9, "sd_seeds": None, "seeds": 1}
    for name in ("grouped_nce", "mixed_nce", "grouped_nce@tau0.1", "mixed_nce@tau0.1"):
        result["lines"][name] = {"what": name, "metrics": dict.fromkeys(_KEYS, metric)}
    result["differences"]["H2"]["grouped_nce - mixed_nce"] = dict.fromkeys(_KEYS, _d(0.3))
    result["differences"]["temperature"] = {
        "grouped_nce@tau0.1 - mixed_nce@tau0.1": dict.fromkeys(_KEYS, _d(0.4, 0.5))
    }
    table = page([result]).partition("### world: quotas and temperatures")[2].partition("###")[0]
    assert _row(table, "temperature 0.1")[:3] == [
        "grouped_nce - mixed_nce", "1", "+0.4000 [+0.3900, +0.4100]",
    ]  # fmt: skip
    assert _row(table, "temperature 1 ")[2].startswith("**+0.3000**")
    assert "quotas 10" not in table  # no sweep of them was trained


@pytest.mark.slow
def test_paper_sizes_are_judged_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "RATES", (0.001,))
    world = WorldConfig(
        num_users=40, num_items=500, num_requests=200, num_days=4, num_pool=20,
        num_retrieved=80, num_preranked=30, num_ranked=15, retrieval_score=False,
    )  # fmt: skip
    write_world(tmp_path / "log", world)
    small = StudySet(name="mind", what="tiny", num_valid=30, num_test=30, max_seeds=1)
    names = ("paper_light", "paper_heavy", "paper_heavy_hard")
    study = Study(small, tmp_path / "log", tmp_path / "out", only=names)
    assert study.run(say=print)
    result = msgspec.json.decode(msgspec.json.encode(answers(study, print)))
    dense = {name: result["lines"][name]["params_dense"] for name in names}
    assert 1.4e6 < dense["paper_light"] < 2.2e6
    assert dense["paper_heavy"] == dense["paper_heavy_hard"] > 5e6
    assert set(result["paper_shares"]) == {
        "paper_light -> paper_heavy", "paper_light -> paper_heavy_hard",
    }  # fmt: skip
    assert not any(name.startswith("paper") for name in result["shares"])
    assert result["costs"]["first"] == {"heavy": "ghcl", "paper_heavy": "paper_light"}
    text = page([result])
    assert "exploratory: paper sizes, one seed" in text
    assert "exploratory: forwarded share at paper sizes, one seed" in text
    assert _row(text, "paper_light -> paper_heavy | 30 %")
    assert "mind: trainings" in text
