"""Models and features that know too much are named; honest ones are left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from prerank.errors import InputError
from prerank.evaluation import evaluate
from prerank.evaluation.collect import ModelScorer
from prerank.evaluation.studies.ablate import Permuted, ablate, feature_groups
from prerank.evaluation.studies.leaks import refuse_evidence_readers, undated_statistics
from prerank.evaluation.studies.opened import open_part, openings
from prerank.log import open_log
from prerank.schema import Feature
from prerank.world import WorldConfig, write_world

LEAKY = WorldConfig(
    seed=2,
    num_users=40,
    num_items=400,
    num_requests=300,
    num_days=4,
    num_retrieved=30,
    num_preranked=16,
    num_ranked=12,
    num_exposed=10,
    ctr=0.3,
    leak_click=6.0,
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any]) -> dict[str, Any]:
    """Models on a world whose retrieval score knows the click, and on the same world without."""
    made = {}
    for name, leak in (("leaky", 6.0), ("honest", 0.0)):
        folder = tmp_path_factory.mktemp(name)
        write_world(folder / "log", msgspec.structs.replace(LEAKY, leak_click=leak))
        log = open_log(folder / "log")
        made[name] = (log, train("mlp", log["train"]))
    return made


def test_the_probe_names_the_one_feature_that_knows_the_future(worlds: dict[str, Any]) -> None:
    for name, expected in (("leaky", ("candidate.retrieval_score",)), ("honest", ())):
        log, model = worlds[name]
        found = ablate(model, log["test"], num_resamples=20)
        assert found.suspects == expected
        assert set(found.groups) == set(feature_groups(log.schema))
    lost = ablate(worlds["leaky"][1], worlds["leaky"][0]["test"], num_resamples=200)
    assert lost.groups["candidate.retrieval_score"]["auc/T1"].low > 0.1
    assert lost.groups["all:candidate"]["auc/T1"].value > 0.1


def test_permuting_nothing_that_matters_changes_nothing(worlds: dict[str, Any]) -> None:
    """A group of no member, and the distribution of one that is permuted."""
    log, model = worlds["honest"]
    found = ablate(model, log["test"], groups={"none": ()}, num_resamples=5)
    assert all(d.value == 0 for d in found.groups["none"].values())
    columns = next(log["test"].columns(20))
    inputs = model.transforms.batch(columns, log).inputs
    names = tuple(feature_groups(log.schema))
    changed = Permuted(model, tuple(n for n in names if ":" not in n))._exchanged(inputs, 0)
    for owner in ("user", "context", "items", "candidate"):
        before, after = getattr(inputs, owner), getattr(changed, owner)
        assert torch.equal(before.categorical.sort(dim=0).values, after.categorical.sort(dim=0)[0])
        assert torch.equal(before.dense.sort(dim=0).values, after.dense.sort(dim=0).values)
    assert not torch.equal(inputs.user.categorical, changed.user.categorical)
    with pytest.raises(InputError, match=r"group 'g' names 'item\.itm', which the model does not"):
        ablate(model, log["test"], groups={"g": ("item.itm",)})


class Cheating(ModelScorer):
    """A model whose transforms put a label where an input belongs."""

    column = "labels.click"

    def __call__(self, columns: Any, log: Any, evidence: Any) -> np.ndarray:
        values = columns.candidates.values[self.column].astype(np.float64)
        return super().__call__(columns, log, evidence) + np.nan_to_num(values)[:, None]


@pytest.mark.parametrize("column", ["labels.click", "stage", "rank.prerank", "score.ranker"])
def test_evidence_wired_into_inputs_is_named(worlds: dict[str, Any], column: str) -> None:
    log, model = worlds["honest"]
    cheat = Cheating(model)
    cheat.column = column
    with pytest.raises(InputError, match=f"'cheat' reads '{column}', which is evidence"):
        evaluate({"cheat": cheat}, log["test"], baselines=(), num_resamples=2)
    refuse_evidence_readers({"honest": ModelScorer(model)}, log["test"])


def test_statistics_without_dates_are_named(worlds: dict[str, Any]) -> None:
    schema = worlds["honest"][0].schema
    assert undated_statistics(schema) == ()
    ctr = Feature(name="ctr", owner="item", kind="dense", tags=("statistic",))
    dated = Feature(
        name="rate", owner="candidate", kind="dense", of="item_stats", tags=("statistic",)
    )
    wider = msgspec.structs.replace(schema, features=(*schema.features, ctr, dated))
    assert undated_statistics(wider) == ("item.ctr",)


def test_opening_the_test_is_remembered(runs: Any, flat: Any) -> None:
    folder: Path = runs.paths()[0]
    assert open_part(folder, flat.log["valid"], {"k": 1}) == 0
    assert openings(folder) == []
    assert open_part(folder, flat.log["test"], {"k": 1}) == 1
    assert open_part(folder, flat.log["test"], {"k": 2}) == 2
    first, second = openings(folder)
    assert first.settings != second.settings
    assert (first.part, first.log_id) == ("test", flat.log.schema.lineage.log_id)
    (folder / "opened.json").write_text("[")
    with pytest.raises(InputError, match=r"opened\.json: damaged"):
        openings(folder)
    (folder / "opened.json").unlink()
