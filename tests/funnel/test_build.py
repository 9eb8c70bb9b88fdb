"""A whole build: what it logs and was fitted on, that it resumes, that realness moves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from prerank.errors import InputError
from prerank.evaluation import evaluate
from prerank.evaluation.baselines import make_baselines
from prerank.funnel import AdversaryConfig, FunnelConfig, build_funnel, realness_report, work_folder
from prerank.funnel import build as building
from prerank.funnel.exposures import Exposures, events_of, exposed_only, view_of
from prerank.funnel.plan import make_plan, user_fold
from prerank.funnel.serve import SCORES, Server
from prerank.log import Columns, Log, check_log, open_log
from prerank.log.format.columns import CANDIDATES, Group
from prerank.log.inputs.evidence import build_evidence
from prerank.training import FitConfig

Built = Callable[[str], tuple[Log, Log]]


def whole(log: Log) -> Columns:
    return Columns.cat(list(log.read(range(log.num_groups), with_ids=True)))


def real_of(log: Log) -> dict[tuple[Any, Any], float]:
    """Real items by request id and raw item, with their label."""
    columns = whole(log)
    shown = exposed_only(columns, log.schema)
    raw = np.array(log.items.ids.values.to_pylist(), dtype=object)
    ids = np.repeat(columns.scalars["request_id"], np.diff(shown.offsets))
    items = raw[shown.values["item"]]
    return dict(
        zip(zip(ids.tolist(), items, strict=True), shown.values["labels.click"], strict=True)
    )


@pytest.mark.parametrize("clock", ["user", "clock"])
def test_log_is_clean_and_keeps_what_really_happened(built: Built, clock: str) -> None:
    source, log = built(clock)
    report = check_log(log.path)
    assert report.ok
    assert not report.findings, report.findings
    theirs, ours = real_of(source), real_of(log)
    assert ours == {key: label for key, label in theirs.items() if key in ours}
    kept = {key[0] for key in ours}
    assert len(ours) == sum(key[0] in kept for key in theirs)
    assert (len(kept) == source.num_requests) == (clock == "user")
    columns = whole(log)
    stage = columns.candidates.values["stage"]
    label = columns.candidates.values["labels.click"]
    assert (np.isnan(label) == (stage < 4)).all()
    assert {f.name for f in log.schema.features} == {"user", "item", "half", "hour"}


@pytest.mark.parametrize("clock", ["user", "clock"])
def test_every_candidate_has_every_score_and_lists_have_their_quotas(
    built: Built, clock: str
) -> None:
    _, log = built(clock)
    columns = whole(log)
    values, offsets = columns.candidates.values, columns.candidates.offsets
    for name in SCORES:
        assert np.isfinite(values[f"score.{name}"]).all()
    first = log[log.parts[0]].rows.within(0, log.num_requests)
    for r in range(log.num_requests):
        at = slice(offsets[r], offsets[r + 1])
        stage = values["stage"][at]
        assert (stage > 0).sum() == 20
        assert (stage > 1).sum() == 12
        assert (stage > 2).sum() == 6
        assert (stage == 4).sum() == 4
        assert ((stage == 0).sum() > 0) == (r not in first)
        assert sorted(values["rank.rank"][at][stage > 1].tolist()) == list(range(12))
        listed = values["rank.retrieval"][at]
        assert sorted(listed[stage > 0].tolist()) == list(range(20))
        assert (listed[stage == 0] == -1).all()
        by_rank = values["score.retrieval"][at][stage > 0][np.argsort(listed[stage > 0])]
        assert (np.diff(by_rank) <= 0).all()
        online = values["scored_online"][at]
        assert (online == (stage > 1)).all()
        ranks = values["rank.prerank"][at][stage > 0]
        order = np.argsort(ranks)
        assert (np.diff(values["score.prerank"][at][stage > 0][order]) <= 0).all()
        assert (values["sample_prob"][at][stage > 0] == 1).all()


def test_evaluations_get_the_order_of_retrieval_of_every_candidate(built: Built) -> None:
    """By the score, which pool items have too, so that real items gain nothing by being listed."""
    _, log = built("user")
    options: dict[str, Any] = {"baselines": ["random", "retrieval"], "num_resamples": 2}
    result = evaluate({}, log["test"], cost=False, **options)
    assert 0 < result.value("retrieval", "recall@10/T1") <= 1
    scorer = make_baselines(["retrieval"], None, log, 0)["retrieval"]
    columns = next(log["test"].columns(16))
    evidence = build_evidence(columns, log.schema, log.schema)
    said = scorer(columns, log, evidence)[:, 0]
    np.testing.assert_array_equal(said, columns.candidates.values["score.retrieval"])


def test_splits_and_lineage_say_where_it_came_from(built: Built) -> None:
    source, log = built("user")
    assert log.parts == source.parts
    assert [log[p].num_requests for p in log.parts] == [source[p].num_requests for p in log.parts]
    lineage = log.schema.lineage
    assert (lineage.made_by, lineage.parent) == ("fitted funnel", source.schema.lineage.log_id)
    record = json.loads((log.path / "funnel.json").read_text())
    assert record["what"] == "fitted funnel"
    assert record["quotas"] == {"retrieval": 20, "prerank": 12, "rank": 6}
    assert {fit["name"] for fit in record["fits"]} == {"fold-0", "fold-1"}
    assert record["left_out"] == ["candidates.price"]
    assert 0 < record["rates"]["would_survive"] <= record["rates"]["within_rank"] <= 1


def test_a_user_is_served_by_models_of_other_users(user_log: Log, small: FunnelConfig) -> None:
    view = view_of(user_log)
    exposures = Exposures.read(view, max_history=50)
    plan = make_plan(view, exposures, small)
    train = set(user_log["train"].rows.within(0, user_log.num_requests).tolist())
    for row, k in enumerate(plan.stint_of):
        fitted = plan.stints[k].rows
        assert exposures.user[row] not in exposures.user[fitted]
        assert set(fitted.tolist()) <= train
        users, _ = events_of(exposures, fitted)
        assert exposures.user[row] not in users


def test_a_moment_is_served_by_models_of_the_past(clock_log: Log, small: FunnelConfig) -> None:
    view = view_of(clock_log)
    exposures = Exposures.read(view, max_history=50)
    plan = make_plan(view, exposures, small)
    assert plan.clock == "global"
    served = np.flatnonzero(plan.stint_of >= 0)
    assert len(served) < clock_log.num_requests
    for row in served:
        stint = plan.stints[plan.stint_of[row]]
        assert exposures.time[stint.rows].max() < exposures.time[row]
        assert stint.record["before_ms"] <= exposures.time[row]


def test_refits_in_time_want_parts_in_time(user_log: Log, small: FunnelConfig) -> None:
    config = msgspec.structs.replace(small, clock="global")
    exposures = Exposures.read(view_of(user_log), max_history=50)
    with pytest.raises(InputError, match=r"cut user by user .* data split .* --by time"):
        make_plan(user_log, exposures, config)


def test_requests_can_be_a_subset(user_log: Log, small: FunnelConfig, tmp_path: Path) -> None:
    config = msgspec.structs.replace(small, max_requests=30)
    report = build_funnel(user_log, tmp_path / "some", config)
    assert report.num_requests == 30
    assert check_log(tmp_path / "some").ok


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["fitting", "serving", "writing"])
def test_killed_build_goes_on_and_ends_the_same(
    built: Built, small: FunnelConfig, tmp_path: Path, moment: str, monkeypatch: Any
) -> None:
    source, expected = built("user")

    def kill(what: str, done: int, total: int) -> None:
        if what == moment and done >= total // 2 > 0:
            raise _Killed

    with pytest.raises(_Killed):
        build_funnel(source, tmp_path / "out", small, progress=kill)
    work = work_folder(tmp_path / "out")
    done = {p: p.stat().st_mtime_ns for p in (work / "shards").glob("*.parquet")}
    assert bool(done) == (moment != "fitting")
    fitted = (work / "fold-0-rank" / "model.safetensors").stat().st_mtime_ns
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="another log or of other options"):
        build_funnel(source, tmp_path / "out", msgspec.structs.replace(small, seed=5))
    saved = []
    original = building._save_shard
    monkeypatch.setattr(
        building, "_save_shard", lambda *args: (saved.append(args[2]), original(*args))
    )

    def look(what: str, done: int, total: int) -> None:
        if what == "writing":  # the models of before are the ones that served
            assert (work / "fold-0-rank" / "model.safetensors").stat().st_mtime_ns == fitted

    build_funnel(source, tmp_path / "out", small, progress=look)
    assert not set(saved) & set(done)
    assert not work.exists()
    again = open_log(tmp_path / "out")
    assert again.schema.lineage.log_id == expected.schema.lineage.log_id


def test_realness_changes_no_feature_and_no_score(
    user_log: Log, small: FunnelConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    """The same request with other items declared real: what both have is equal, bit for bit."""
    servers: list[Server] = []

    class Kept(Server):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            servers.append(self)

    monkeypatch.setattr(building, "Server", Kept)
    build_funnel(user_log, tmp_path / "out", small)
    server = servers[0]
    columns = next(iter(server.log["test"].columns(8)))
    mine = np.flatnonzero(user_fold(columns.scalars["user"], small.seed, small.folds) == 0)
    columns = columns.take(mine)
    alive = np.arange(server.log.items.num_items) >= 2
    no_pool = np.zeros(len(mine), np.bool_)
    first, _ = server.serve(columns, alive, no_pool)
    candidates = server.candidates(columns, alive, no_pool)
    # Declare four found items of each request real instead of those that were.
    decoys = []
    for r in range(len(mine)):
        at = slice(candidates.offsets[r], candidates.offsets[r + 1])
        found = candidates.item[at][~candidates.real[at]]
        decoys.append(np.sort(np.random.default_rng(r).choice(found, 4, replace=False)))
    old = exposed_only(columns, server.log.schema)
    values = {name: column[: 4 * len(mine)] for name, column in old.values.items()}
    values["item"] = np.concatenate(decoys).astype(np.int32)
    group = Group(np.arange(len(mine) + 1) * 4, values)
    other, _ = server.serve(
        Columns(columns.scalars, {**columns.groups, CANDIDATES: group}), alive, no_pool
    )
    num_common = num_switched = 0
    for r in range(len(mine)):
        rows = []
        for table in (first, other):
            scores = ("factors", "retrieval", "prerank", "ranker")
            names = ("channel", *(f"score.{name}" for name in scores), "stage")
            lists = [table[f"candidates.{n}"][r].as_py() for n in names]
            rows.append(
                dict(
                    zip(table["candidates.item"][r].as_py(), zip(*lists, strict=True), strict=True)
                )
            )
        common = rows[0].keys() & rows[1].keys()
        num_common += len(common)
        for item in common:
            assert rows[0][item][:5] == rows[1][item][:5]
            num_switched += (rows[0][item][5] == "exposed") != (rows[1][item][5] == "exposed")
    assert num_common > 10 * len(mine)
    assert num_switched > len(mine)


class Null(Server):
    """Declares real what the funnel itself would have kept, drawn blindly: nobody chose."""

    def serve(self, columns: Columns, alive: Any, with_pool: Any) -> Any:
        old = exposed_only(columns, self.log.schema)
        nobody = Group(np.zeros_like(old.offsets), {n: c[:0] for n, c in old.values.items()})
        natural, _ = super().serve(self.shown(columns, nobody), alive, with_pool)
        rows = []
        for r, row in enumerate(columns.scalars["row"]):
            stage = np.array(natural["candidates.stage"][r].as_py())
            raw = np.array(natural["candidates.item"][r].as_py())[stage == "rank"]
            drawn = np.random.default_rng(int(row)).permutation(raw)[:3]
            rows.append(self.log.items.ids.encode(pa.array(drawn)))
        item = np.concatenate(rows).astype(np.int32)
        values = {name: np.zeros(len(item), column.dtype) for name, column in old.values.items()}
        values |= {"item": item, "stage": np.full(len(item), 4, np.int8)}
        ends = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return super().serve(self.shown(columns, Group(ends, values)), alive, with_pool)

    @staticmethod
    def shown(columns: Columns, group: Group) -> Columns:
        return Columns(columns.scalars, {**columns.groups, CANDIDATES: group})


@pytest.mark.slow
def test_without_choice_nothing_tells_the_real_items_apart(
    user_log: Log, small: FunnelConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    """The adversary's null: exchangeable items, so every bit of power would be a leak."""
    monkeypatch.setattr(building, "Server", Null)
    build_funnel(user_log, tmp_path / "null", small)
    log = open_log(tmp_path / "null")
    config = AdversaryConfig(fit=FitConfig(batch_size=32, epochs=3, min_count=1))
    found = [
        realness_report(log["train"], log[part], config).survivors for part in ("valid", "test")
    ]
    # 2 parts of 24 requests with 3 against 3: the standard error of the mean AUC is about 0.034.
    assert abs(np.mean(found) - 0.5) < 0.1, found
