"""Folders of runs and cascades: loaded, named, refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prerank.cascade import Cascade, Tier
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
    for text in ("{", '{"tiers": [{"rum": "x"}]}', '{"tiers": [{"run": "x", "forward": "all"}]}'):
        (folder / "cascade.json").write_text(text)
        with pytest.raises(
            InputError, match=r"cascade\.json: not a cascade \(.*\); write it again"
        ):
            load_runs([folder], part)
