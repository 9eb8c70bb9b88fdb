"""What figures show: the values they were given, where they belong, and nothing that is absent."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from prerank.report import (
    evaluation_figures,
    frontier_figure,
    metric_figure,
    recall_figure,
    save_figure,
    share_figure,
    snapshot_figure,
    source_figure,
    training_figure,
)
from prerank.training.diagnosis import summarise

SOURCES = ["exposed", "rank", "prerank", "random"]


def _texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def _marks(ax: Any) -> list[tuple[float, float]]:
    """Return the points that are drawn one by one."""
    found = [(line.get_xdata(), line.get_ydata()) for line in ax.lines]
    return [(float(x[0]), float(y[0])) for x, y in found if len(x) == 1]


def test_a_metric_shows_values_and_intervals_of_those_that_have_it(result: Any) -> None:
    ax = metric_figure(result, "gauc/T1").axes[0]
    assert _texts(ax.get_yticklabels()) == ["light", "random"]
    assert [x for x, _ in _marks(ax)] == pytest.approx([0.5, 0.6])
    assert list(ax.lines[0].get_xdata()) == pytest.approx([0.48, 0.52])
    assert "0.5000" in _texts(ax.texts)


def test_sources_stand_hardest_first(result: Any) -> None:
    ax = source_figure(result).axes[0]
    assert _texts(ax.get_xticklabels()) == SOURCES
    assert len(_marks(ax)) == 12
    assert _texts(ax.get_legend().get_texts()) == ["light", "cascade", "random"]
    found = {round(x): y for x, y in _marks(ax)[:4]}
    assert found[0] == pytest.approx(
        result["runs"]["light"]["metrics"]["auc/source:exposed"]["value"]
    )


def test_recall_is_drawn_around_the_quota_only_where_there_is_one(result: Any) -> None:
    ax = recall_figure(result, "T3").axes[0]
    assert _texts(ax.get_xticklabels()) == ["5 (half)", "10 (quota)", "20 (twice)"]
    assert recall_figure(result, "U") is None
    assert recall_figure({**result, "quota": None}, "T3") is None


def test_an_evaluation_gives_every_figure_it_has_values_for(result: Any, tmp_path: Path) -> None:
    names = {path.name for path in evaluation_figures(result, tmp_path)}
    stems = {"gauc-T1", "recall-20-T1", "auc-per-source"}
    stems |= {"recall-around-quota-T1", "recall-around-quota-T3"}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    chosen = evaluation_figures(result, tmp_path / "b", keys=["recall@5/T3", "absent/T1"])
    assert {"recall-5-T3.png"} <= {path.name for path in chosen}


def test_a_frontier_marks_what_is_efficient_and_names_every_point(points: Any) -> None:
    figure = frontier_figure(points, "recall@10/T1", seeds=3, baselines={"random": 0.01})
    ax = figure.axes[0]
    assert sorted(_texts(ax.texts)) == ["heavy", "light", "light -> 30 % heavy"]
    assert ax.get_xscale() == "log"
    assert "sd over 3 seeds" in figure.get_supxlabel()
    legend = _texts(ax.get_legend().get_texts())
    known = {"something cheaper is as good", "nothing cheaper is as good", "random: 0.0100"}
    assert set(legend) == known
    assert ax.get_ylim()[0] > 0.4  # what is out of sight does not squeeze the points
    efficient = ax.containers[1].lines[0]
    assert list(efficient.get_xdata()) == [100.0, 300.0]


def test_names_do_not_hide_each_other(points: Any) -> None:
    crowd = [{**p, "us": p["us"] + k, "name": f"{p['name']} {k}"} for p in points for k in (0, 3)]
    figure = frontier_figure(crowd, "recall@10/T1")
    figure.draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in figure.axes[0].texts]
    for a, b in itertools.combinations(boxes, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) < 3  # pixels


def test_recall_against_share_is_sorted_and_has_its_references() -> None:
    curve = [{"share": s, "mean": s, "sd": 0.1} for s in (1.0, 0.1, 0.3)]
    figure = share_figure({"a": curve}, "r", references={"heavy": 0.9}, quota_share=0.05)
    ax = figure.axes[0]
    assert list(ax.lines[0].get_xdata()) == [0.1, 0.3, 1.0]
    assert _texts(ax.get_legend().get_texts()) == ["a", "heavy"]
    assert _texts(ax.get_xticklabels()) == ["100 %", "30 %", "10 %"]
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.0)
    assert band[:, 1].max() == pytest.approx(1.1)


def test_a_training_has_a_line_per_source_pair_and_panel(lines: Any) -> None:
    figure = training_figure(lines, SOURCES)
    axes = figure.axes
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles[:2] == ["contrast norm, dense weights", "negative-side norm, dense weights"]
    assert [ax.get_yscale() for ax in axes] == ["log"] * 4 + ["linear"] * 2
    assert [len(legend.get_texts()) for legend in figure.legends] == [4, 6]
    smoothed = next(line for line in axes[5].lines if line.get_label() == "rank")
    assert smoothed.get_ydata() == pytest.approx(-smoothed.get_xdata() / 100)  # a straight line
    short = training_figure(lines[:3], SOURCES).axes[5].lines[1]
    assert list(short.get_xdata()) == [1, 11, 21]


def test_late_cosines_carry_their_caveat(lines: Any, tmp_path: Path) -> None:
    summary = msgspec.to_builtins(summarise([{**line, **_counts()} for line in lines]))
    for figure in (training_figure(lines, SOURCES), snapshot_figure(summary)):
        assert "partly arithmetic" in figure.get_supxlabel()
        assert all(path.stat().st_size > 5000 for path in save_figure(figure, tmp_path, "x"))


def _counts() -> dict[str, float]:
    return {f"negatives/{source}": 5.0 for source in reversed(SOURCES)}


def test_a_snapshot_shows_ratios_to_the_easiest_source(lines: Any) -> None:
    tail = [{**line, **_counts()} for line in lines[-4:]]
    found = summarise(
        [{k: v for k, v in line.items() if k not in ("step", "kind")} for line in tail]
    )
    figure = snapshot_figure(msgspec.to_builtins(found))
    norms, angles, logits = figure.axes
    assert norms.get_title(loc="left") == "gradient against 'random' (ratio)"
    assert _texts(norms.get_yticklabels()) == SOURCES[:-1]
    assert _texts(figure.legends[0].get_texts())[:2] == ["per sample", "contrast, dense"]
    drawn = sorted(x for x, _ in _marks(norms))
    assert drawn[0] == pytest.approx(found.ratios["per_sample/prerank:random"].mean)
    cosine = np.asarray(angles.images[0].get_array())
    assert cosine[1, 3] == pytest.approx(found.values["cos/dense/rank:random"].mean)
    assert sum(bool(re.search(r"\(\d+%\)", text)) for text in _texts(angles.texts)) == 6
    assert len(_marks(logits)) == 4  # no positive among these


def test_one_source_or_none_is_no_error() -> None:
    one = [{"negatives/rank": 2.0, "logit/rank": 1.0, "per_sample/rank": 0.5, "step": 1}]
    for lines in (one, []):
        values = [{k: v for k, v in line.items() if k != "step"} for line in lines]
        summary = msgspec.to_builtins(summarise(values))
        assert len(snapshot_figure(summary).axes) == 3
        assert len(training_figure(lines, summary["sources"]).axes) == 6
