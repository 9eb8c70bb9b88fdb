"""What a cascade's routers and reserves read of a log, against its raw table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prerank.cascade import Cascade, Maximum, Minimum, Reserves, Tier
from prerank.errors import InputError
from prerank.evaluation import evaluate
from prerank.evaluation.cascades import CascadeScorer
from prerank.evaluation.collect import collect
from prerank.evaluation.runs import load_scorer

DAY = 86_400_000


def scored(flat: Any, cascade: Cascade, size: int = 64, seed: int = 0) -> tuple[Any, Any]:
    scorer = CascadeScorer(cascade, seed=seed)
    return collect(flat.log["test"], {"c": scorer}, batch_size=size).scores["c"][:, 0], scorer


def tiers(runs: Any, **rest: Any) -> list[Tier]:
    return [Tier(runs.two_tower, 0.5, **rest), Tier(runs.mlp)]


def blocks(flat: Any) -> Any:
    start = 0
    for row in flat.world.splits()["test"]:
        a, b = int(flat.offsets[row]), int(flat.offsets[row + 1])
        yield row, slice(a, b), slice(start, start + b - a)
        start += b - a


def test_channels_are_capped_and_reserved_by_name(flat: Any, runs: Any) -> None:
    k, most = 10, 4
    rules = Reserves(
        quota=k,
        minimum=(Minimum(of="channel", at_least=1, values=("fresh",)),),
        maximum=(Maximum(of="channel", at_most=most),),
    )
    plain, _ = scored(flat, Cascade(tiers(runs)))
    ruled, scorer = scored(flat, Cascade(tiers(runs), rules))
    channel = flat["candidates.channel"]
    moved = capped = 0
    for _, raw, mine in blocks(flat):
        names = channel[raw]
        first, old = (-ruled[mine]) < k, (-plain[mine]) < k
        moved += int((first & ~old).sum())
        found = {str(n): int((names[first] == n).sum()) for n in set(names) if n is not None}
        enough = sum(min(most, int((names == n).sum())) for n in found)
        enough += sum(n is None for n in names)
        if enough >= min(k, len(names)):
            assert all(n <= most for n in found.values())
        capped += sum(int((names[old] == n).sum()) > most for n in found)
        if "fresh" in set(names):
            assert found["fresh"] >= 1
    assert moved > 0
    assert capped > 0
    options: Any = {"baselines": (), "num_resamples": 2, "ks": (3,), "cost": False}
    result = evaluate({"c": Cascade(tiers(runs), rules)}, flat.log["test"], **options)
    lengths = np.diff(flat.offsets)[flat.world.splits()["test"]]
    report = result.to_json()["runs"]["c"]["tiers"]
    assert report["scored"] == [lengths.mean(), np.ceil(lengths * 0.5).mean()]
    assert list(report["reserves"]) == ["all", "minimum:channel=fresh", "maximum:channel"]
    assert report["reserves"]["all"]["promoted"] == moved / len(lengths)
    assert scorer.moves["all"][:2] == (moved, moved)


def test_new_and_pinned_items_are_found_in_the_log(flat: Any, runs: Any) -> None:
    ids = flat["candidates.item"]
    time = flat.table["time"].to_numpy()
    seen: dict[Any, int] = {}
    names = [n for n in flat.table.column_names if n.endswith(".item") and "history" in n]
    for row in np.argsort(time, kind="stable"):
        past = [item for name in names for item in flat.table[name][row].as_py() or []]
        for item in (*ids[flat.offsets[row] : flat.offsets[row + 1]], *past):
            seen.setdefault(item, int(time[row]))
    pinned = tuple(sorted(set(ids[flat.within("test")]))[:40])
    k = 6
    rules = Reserves(
        quota=k,
        minimum=(Minimum(of="pinned", at_least=2), Minimum(of="new", at_least=2)),
        pinned=tuple(p if isinstance(p, str) else int(p) for p in pinned),
        new_days=1.0,
    )
    ruled, scorer = scored(flat, Cascade(tiers(runs), rules))
    some = 0
    for row, raw, mine in blocks(flat):
        first = (-ruled[mine]) < k
        is_pinned = np.isin(ids[raw], pinned)
        is_new = np.array([time[row] - seen[i] < DAY for i in ids[raw]], dtype=bool)
        for mark in (is_pinned, is_new):
            assert mark[first].sum() >= min(2, mark.sum())
            some += int(mark.sum() > 0 and not mark.all())
    assert some > 50
    assert scorer.moves["minimum:pinned"][0] > 0
    assert scorer.moves["minimum:pinned"][2] == scorer.moves["minimum:new"][2] == 0


def test_rules_without_their_values_are_refused(flat: Any, runs: Any) -> None:
    for name, message in (
        ("pinned", "no item is pinned"),
        ("new", "give new_days"),
        ("autor", r"group 'autor' was not given and is no categorical feature"),
    ):
        rules = Reserves(quota=5, minimum=(Minimum(of=name, at_least=1),))
        with pytest.raises(InputError, match=message):
            scored(flat, Cascade(tiers(runs), rules))
    rules = Reserves(quota=5, minimum=(Minimum(of="channel", at_least=1, values=("frehs",)),))
    with pytest.raises(InputError, match=r"'frehs' is no value of 'channel'; .*'fresh'"):
        scored(flat, Cascade(tiers(runs), rules))
    rules = Reserves(quota=5, minimum=(Minimum(of="pinned", at_least=1),), pinned=(1.5,))
    with pytest.raises(InputError, match=r"pinned item 1\.5 is float"):
        scored(flat, Cascade(tiers(runs), rules))


def test_random_routing_depends_on_the_seed_and_not_on_batches(flat: Any, runs: Any) -> None:
    cascade = Cascade(tiers(runs, router="random"))
    first, scorer = scored(flat, cascade)
    again, _ = scored(flat, cascade, size=7)
    other, _ = scored(flat, cascade, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    lengths = np.diff(flat.offsets)[flat.world.splits()["test"]]
    assert scorer.num_requests == len(lengths)
    assert scorer.num_scored == [lengths.sum(), np.ceil(lengths * 0.5).sum()]


def test_the_oracle_forwards_what_came_furthest(flat: Any, runs: Any) -> None:
    cascade = Cascade([Tier(runs.two_tower, 8, router="oracle", tail="drop"), Tier(runs.mlp)])
    ruled, _ = scored(flat, cascade)
    for _, raw, mine in blocks(flat):
        kept = np.isfinite(ruled[mine])
        assert kept[flat.clicked[raw]].all() or flat.clicked[raw].sum() > 8
        if flat.shown[raw].sum() <= 8:
            assert kept[flat.shown[raw]].all()


def test_equal_transforms_are_applied_once(flat: Any, runs: Any, monkeypatch: Any) -> None:
    loaded = load_scorer(runs.paths()[0])  # the same run from its folder: other objects
    apart = CascadeScorer(Cascade(tiers(runs)))
    alike = CascadeScorer(Cascade([Tier(runs.two_tower, 0.5), Tier(loaded)]))
    assert apart._made_by == [0, 1]  # min_count and max_history differ
    assert alike._made_by == [0, 0]
    seen: list[Any] = []
    rank = Cascade.rank
    monkeypatch.setattr(
        Cascade, "rank", lambda self, inputs, **o: (seen.append(inputs), rank(self, inputs, **o))[1]
    )
    scores = collect(flat.log["test"], {"c": alike}).scores["c"]
    assert all(inputs[0] is inputs[1] for inputs in seen)
    # The same model twice orders as it does alone.
    alone = CascadeScorer(Cascade([Tier(runs.two_tower)]))
    np.testing.assert_array_equal(collect(flat.log["test"], {"c": alone}).scores["c"], scores)
