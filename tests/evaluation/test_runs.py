"""Folders of runs and cascades: loaded, named, refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prerank.cascade import (
    Cascade,
    Gap,
    Margin,
    Mass,
    Maximum,
    Minimum,
    Reserves,
    Share,
    Threshold,
    Tier,
)
from prerank.cascade.rules import Budget, Promise
from prerank.errors import InputError
from prerank.evaluation import evaluate
from prerank.evaluation.runs import TierFile, load_runs, load_scorer, save_cascade
from prerank.models import Model


def test_a_run_equals_the_model_in_memory(flat: Any, runs: Any) -> None:
    loaded = load_runs(runs.paths(), flat.log["test"])
    assert list(loaded) == ["two_tower", "mlp"]
    for name, model in loaded.items():
        assert isinstance(model, Model)
        mine = getattr(runs, name).state_dict()
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, mine[key])


def test_a_cascade_folder_equals_the_cascade_in_memory(flat: Any, runs: Any) -> None:
    folder = runs.folder / "cascade"
    tiers = [TierFile("../two_tower", 0.3, {"engaged": 2.0}), TierFile("../mlp")]
    save_cascade(folder, tiers)
    loaded = load_runs([folder], flat.log["test"])
    cascade = loaded["cascade"]
    assert isinstance(cascade, Cascade)
    assert [(t.forward, dict(t.value)) for t in cascade.tiers] == [
        (0.3, {"engaged": 2.0}),
        (None, {}),
    ]
    memory = Cascade([Tier(runs.two_tower, forward=0.3, value={"engaged": 2.0}), Tier(runs.mlp)])
    options: Any = {"baselines": (), "num_resamples": 5, "ks": (3,)}
    scorers = {**loaded, "memory": memory}
    result = evaluate(scorers, flat.log["test"], **options)
    assert result.runs["cascade"] == result.runs["memory"]
    assert {"mrr/T1", "recall@3/T1"} <= set(result.runs["memory"].metrics)


@pytest.mark.parametrize("forward", [1, 1.0, 0.3, 50])
def test_shares_and_counts_survive_the_file(runs: Any, tmp_path: Path, forward: float) -> None:
    """1 is a count and 1.0 a share."""
    runs_of = [str(path) for path in runs.paths()]
    save_cascade(tmp_path / "c", [TierFile(runs_of[0], forward), TierFile(runs_of[1])])
    loaded = load_scorer(tmp_path / "c")
    assert isinstance(loaded, Cascade)
    found = loaded.tiers[0].forward
    assert (found, type(found)) == (forward, type(forward))


def test_rows_a_run_trained_on_are_refused(flat: Any, runs: Any) -> None:
    num = len(flat.world.splits()["train"])
    folder = runs.folder / "seen"
    save_cascade(folder, [TierFile("../mlp", 5), TierFile("../two_tower")])
    for path in (*runs.paths(), folder):
        with pytest.raises(
            InputError, match=rf"trained on {num} of the {num} requests of part 'tr"
        ):
            load_runs([path], flat.log["train"])
        with pytest.raises(
            InputError, match=rf"trained on {num} of the 320 requests of part 'all'"
        ):
            load_runs([path], flat.log.all())
        assert load_runs([path], flat.log["train"], allow_seen=True)
        assert load_runs([path], flat.log["valid"])


def test_rows_of_another_log_are_not_the_same_rows(two_tasks: Any, runs: Any) -> None:
    assert load_runs(runs.paths(), two_tasks.log["train"])


def test_names_are_last_components_or_whole_paths(flat: Any, runs: Any, tmp_path: Path) -> None:
    twin = tmp_path / "mlp"
    shutil.copytree(runs.folder / "mlp", twin)
    loaded = load_runs([runs.folder / "mlp", twin], flat.log["test"])
    assert list(loaded) == [str(runs.folder / "mlp"), str(twin)]
    with pytest.raises(InputError, match="given twice; name each run once"):
        load_runs([twin, twin], flat.log["test"])


def test_folders_that_hold_no_run_are_refused(flat: Any, runs: Any, tmp_path: Path) -> None:
    part = flat.log["test"]
    with pytest.raises(InputError, match=r"nothing: no run there \(run\.json is missing\)"):
        load_runs([tmp_path / "nothing"], part)
    folder = tmp_path / "cascade"
    mlp = str(runs.folder / "mlp")
    for tiers, message in (
        ([], r"cascade\.json: cascade: no tier"),
        ([TierFile(mlp, 0.3)], r"cascade\.json: cascade: the last tier forwards 0\.3"),
        ([TierFile(mlp, 0.3, {"clik": 1.0}), TierFile(mlp)], r"cascade\.json: tier: .*'clik'"),
        ([TierFile("../gone", 0.3), TierFile(mlp)], r"gone: no run there"),
        ([TierFile(str(folder), 2), TierFile(mlp)], r"cascade: no run there"),
    ):
        save_cascade(folder, tiers)
        with pytest.raises(InputError, match=message):
            load_runs([folder], part)
    run = f'"run": "{mlp}"'
    for text, message in (
        ("{", r"not a cascade \(.*\); write it again"),
        ("[]", r"not a cascade \(.*\); write it again"),
        ('{"tiers": [{"rum": "x"}]}', r"unknown key 'tiers\.0\.rum'; did you mean 'run'"),
        ('{"tiers": [{"run": "x", "forward": "all"}]}', r"'tiers\.0\.forward' is 'all'"),
        (f'{{"tiers": [{{{run}, "tial": "drop"}}]}}', r"'tiers\.0\.tial'; did you mean 'tail'"),
        (
            f'{{"tiers": [{{{run}, "forward": {{"rule": "mas", "mass": 0.9}}}}]}}',
            r"tier: rule 'mas' is not known; did you mean 'mass'",
        ),
        (
            f'{{"tiers": [{{{run}, "forward": {{"rule": "mass", "masss": 0.9}}}}]}}',
            r"tier: mass: unknown key 'masss'; did you mean 'mass'",
        ),
        (f'{{"tiers": [{{{run}, "router": "skore"}}]}}', r"router is 'skore'; did you mean 'score"),
        (
            f'{{"tiers": [{{{run}}}], "reserves": {{"quota": 5, "minimun": []}}}}',
            r"unknown key 'reserves\.minimun'; did you mean 'minimum'",
        ),
        (f'{{"tiers": [{{{run}}}], "reserves": {{"quota": 5}}}}', r"reserves: no rule"),
    ):
        (folder / "cascade.json").write_text(text)
        with pytest.raises(InputError, match=r"cascade\.json: .*" + message):
            load_runs([folder], part)


def test_every_rule_survives_the_file(runs: Any, tmp_path: Path) -> None:
    run, other = (str(path) for path in runs.paths())
    promise = Promise(epsilon=0.1, top_m=10, unit="user", num_units=90, risk=0.08, part="valid")
    budget = Budget(mean=12.0, realised=11.5, num_requests=80)
    for forward, rest in (
        (Threshold(score=-0.25, at_least=0, at_most=50), {"tail": "drop"}),
        (Mass(mass=0.9, temperature=2.0, promise=promise), {}),
        (Gap(within=0.5, place=3, budget=budget), {"router": "entropy", "merge": "front"}),
        (Share(share=0.3), {"router": "random"}),
        (Margin(within=0.125, at_most=7), {"router": "margin", "cut": 0.25}),
        (7, {"router": "margin", "cut": 4}),
    ):
        tier = Tier(runs.two_tower, forward, {"engaged": 2.0}, **rest)
        save_cascade(tmp_path / "c", [TierFile.of(run, tier), TierFile(other)])
        loaded = load_scorer(tmp_path / "c")
        assert isinstance(loaded, Cascade)
        found = loaded.tiers[0]
        for name in ("forward", "value", "router", "cut", "merge", "tail"):
            assert getattr(found, name) == getattr(tier, name)
    rules = Reserves(
        quota=9,
        minimum=(Minimum(of="pinned", at_least=2), Minimum(of="channel", at_least=1)),
        maximum=(Maximum(of="channel", at_most=5, values=("fresh",)),),
        pinned=("a", "b"),
    )
    save_cascade(tmp_path / "c", [TierFile(run, 5), TierFile(other)], rules)
    loaded = load_scorer(tmp_path / "c")
    assert isinstance(loaded, Cascade)
    assert loaded.reserves == rules


def test_old_files_keep_loading(runs: Any, tmp_path: Path) -> None:
    run, other = (str(path) for path in runs.paths())
    text = f'{{"tiers": [{{"run": "{run}", "forward": 0.3}}, {{"run": "{other}"}}]}}'
    (tmp_path / "cascade.json").write_text(text)
    loaded = load_scorer(tmp_path)
    assert isinstance(loaded, Cascade)
    assert loaded.describe() == "TwoTower -> 30 %, MLPPreranker"
    save_cascade(tmp_path / "again", [TierFile(run, 0.3), TierFile(other)])
    assert (tmp_path / "again" / "cascade.json").read_text().split() == (
        f'{{ "tiers": [ {{ "run": "{run}", "forward": 0.3 }}, {{ "run": "{other}" }} ] }}'.split()
    )
