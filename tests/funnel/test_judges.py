"""Adversary and ladder: their arithmetic, and controls where the answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from prerank.batch import POSITIVE
from prerank.errors import InputError
from prerank.funnel import (
    AdversaryConfig,
    LadderConfig,
    difficulty_ladder,
    realness_report,
)
from prerank.funnel.adversary import _matched
from prerank.funnel.ladder import _interval, _ladder, _source_aucs
from prerank.funnel.sampled import SampledPart
from prerank.log import Columns, Log, Part
from prerank.log.format.columns import CANDIDATES, Group
from prerank.training import FitConfig

Built = Callable[[str], tuple[Log, Log]]
QUICK = FitConfig(batch_size=32, epochs=2, min_count=1)


def test_report_of_a_funnel(built: Built) -> None:
    _, log = built("user")
    report = realness_report(log["train"], log["test"], AdversaryConfig(fit=QUICK))
    for name in ("auc", "survivors", "placebo", "auc_popularity", "auc_ranker", "auc_prerank"):
        assert 0 <= getattr(report, name) <= 1
    assert abs(report.placebo - 0.5) < 0.15  # about 60 against 60 candidates
    assert report.num_survivors <= report.num_real
    assert report.explanation


def test_a_leak_is_found(built: Built, monkeypatch: Any) -> None:
    _, log = built("user")
    config = AdversaryConfig(fit=FitConfig(batch_size=8, epochs=6, min_count=1))

    def leaky(self: Part, batch_size: int, **options: Any) -> Iterator[Columns]:
        for columns in original(self, batch_size, **options):
            group = columns.candidates
            values = dict(group.values)
            real, item = values["stage"] == 4, values["item"]
            values["item"] = np.where(real, 2 + item % 10, 12 + item % 60).astype(item.dtype)
            yield Columns(
                columns.scalars, {**columns.groups, CANDIDATES: Group(group.offsets, values)}
            )

    original = Part.columns
    monkeypatch.setattr(Part, "columns", leaky)
    report = realness_report(log["train"], log["test"], config)
    assert report.auc > 0.97
    assert report.survivors > 0.9


def test_only_a_funnel_is_judged(user_log: Log, built: Built) -> None:
    with pytest.raises(InputError, match="expected a fitted funnel"):
        realness_report(user_log["train"], user_log["test"])
    _, funnel = built("clock")
    with pytest.raises(InputError, match="was not made from"):
        difficulty_ladder(funnel, funnel)


def test_matched_compares_within_cells_only() -> None:
    """The score is the cell itself: no power within cells, though a lot across them."""
    draws = np.random.default_rng(0)
    place = draws.integers(0, 12, 600)
    real = draws.random(600) < (place // 4 + 1) / 4
    found = {"score": -(place // 4), "real": real, "place_rank": place, "place_prerank": place // 9}
    assert _matched(found, 4) == 0.5
    assert _matched(found, 100) < 0.4
    found["score"] = real + 0.0
    assert _matched(found, 4) == 1.0


def test_source_auc_counts_pairs() -> None:
    draws = np.random.default_rng(1)
    offsets = np.array([0, 12, 12, 30])
    score = draws.integers(0, 6, 30).astype(np.float32)
    source = draws.choice([POSITIVE, 0, 1, 2], 30)
    columns = Columns({"row": np.arange(3)}, {CANDIDATES: Group(offsets, {"item": np.arange(30)})})
    found = _source_aucs(columns, score, source, 4)
    for r, s in itertools.product(range(3), range(4)):
        at = slice(offsets[r], offsets[r + 1])
        positive, negative = score[at][source[at] == POSITIVE], score[at][source[at] == s]
        pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
        if pairs:
            assert found[r, s] == pytest.approx(np.mean(pairs), abs=1e-12)
        else:
            assert np.isnan(found[r, s])


def test_interval_resamples_users() -> None:
    """With one user per request the interval is the mean's own; copies of a user add nothing."""
    draws = np.random.default_rng(2)
    column = draws.random(200)
    one = _interval(np.arange(200), column, np.random.default_rng(0), 2000)
    error = column.std() / np.sqrt(200)
    assert one[0] == pytest.approx(column.mean())
    assert one[2] - one[1] == pytest.approx(2 * 1.96 * error, rel=0.1)
    again = _interval(
        np.repeat(np.arange(200), 5), np.repeat(column, 5), np.random.default_rng(0), 2000
    )
    assert again == pytest.approx(one)


def test_another_order_is_reported() -> None:
    names = ("random", "prerank", "rank", "exposed")
    user = np.arange(50)
    rising = np.tile([0.9, 0.8, 0.7, 0.6], (50, 1))
    config = LadderConfig(num_bootstrap=20)
    ladder = _ladder(user, rising, names, config)
    assert ladder.as_expected
    assert [rung.source for rung in ladder.rungs] == ["exposed", "rank", "prerank", "random"]
    assert ladder.steps["rank-exposed"][0] == pytest.approx(0.1)
    assert not _ladder(user, rising[:, ::-1], names, config).as_expected


def test_ladder_of_a_funnel(built: Built) -> None:
    source, log = built("user")
    config = LadderConfig(fit=QUICK, num_bootstrap=50)
    ladders = difficulty_ladder(source, log, config=config)
    assert set(ladders) == {"all", "survivors"}
    assert [r.source for r in ladders["all"].rungs] == ["exposed", "rank", "prerank", "random"]
    for rung in ladders["all"].rungs:
        assert 0 <= rung.low <= rung.auc <= rung.high <= 1


def test_sampled_negatives_are_fresh_known_and_never_shown(user_log: Log) -> None:
    popularity = np.ones(user_log.items.num_items, np.float32)
    popularity[:12] = 0
    rows = np.arange(0, 40, 2)
    options: dict[str, Any] = {"popularity": popularity, "num_negatives": 9, "seed": 3}
    part = SampledPart(user_log, rows, "some", **options)
    epochs = [Columns.cat(list(part.columns(7, epoch=e))) for e in (0, 1)]
    plain = Columns.cat(list(Part(user_log, part.rows, "some").columns(7)))
    for columns in epochs:
        assert columns.scalars["row"].tolist() == rows.tolist()
        for r in range(len(rows)):
            mine, theirs = (c.candidates.slice(r, r + 1).values for c in (columns, plain))
            sampled = mine["stage"] != 4
            assert mine["item"][~sampled].tolist() == theirs["item"].tolist()
            assert np.isnan(mine["labels.click"][sampled]).all()
            assert len(set(mine["item"].tolist())) == len(mine["item"])
            assert (mine["item"][sampled] >= 12).all()
    assert not np.array_equal(
        epochs[0].candidates.values["item"], epochs[1].candidates.values["item"]
    )
