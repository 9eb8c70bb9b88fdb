from __future__ import annotations

from pathlib import Path

from prerank.training.metrics_log import MetricsLog, read_metrics


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    MetricsLog(path).append(1, loss=0.5)
    MetricsLog(path).append(2, loss=float("nan"), kind="train")
    assert read_metrics(path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None, "kind": "train"},
    ]


def test_cut_drops_later_steps_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    for step in (5, 5, 10, 15):
        log.append(step, x=1)
    with path.open("ab") as file:
        file.write(b'not json\n{"step": 7, "x"')
    log.cut_after(10)
    assert [line["step"] for line in read_metrics(path)] == [5, 5, 10]
    log.append(11, x=2)
    assert [line["step"] for line in read_metrics(path)] == [5, 5, 10, 11]
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    log = MetricsLog(None)
    log.append(1, x=1)
    log.cut_after(0)
    log.sync()
    assert not list(tmp_path.iterdir())
