"""RecFlow, on small files to the published field list (the real files were not seen)."""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

from prerank.adapters.recflow import STAGES, import_recflow
from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions import to_impressions

Sample = Callable[[Path], None]

# Deepest first: the stage that each flag stands for.
DEEPEST = [
    ("realshow", "exposed"),
    ("rerank_pos", "rerank"),
    ("rerank_neg", "rank"),
    ("rank_pos", "rank"),
    ("rank_neg", "coarse"),
    ("coarse_neg", "prerank"),
    ("prerank_neg", "retrieval"),
]


def _day(folder: Path) -> Path:
    return folder / "all_stage" / "2024-01-13.csv"


def test_stages_ranks_and_labels(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["recflow"](tmp_path)
    import_recflow(tmp_path, tmp_path / "log")
    log = open_log(tmp_path / "log")
    with _day(tmp_path).open() as file:
        rows = {(int(r["request_id"]), int(r["video_id"])): r for r in csv.DictReader(file)}
    flat = pa.concat_tables(to_impressions(log)).to_pylist()
    assert len(flat) == len(rows)
    for found in flat:
        row = rows[found["request_id"], found["item"]]
        stage = next(word for flag, word in DEEPEST if row[flag] == "1")
        assert found["stage"] == stage
        ranked = STAGES.index(stage) >= STAGES.index("coarse")
        assert found["rank.rank"] == (int(row["rank_index"]) if ranked else None)
        reranked = row["realshow"] == "1" or row["rerank_pos"] == "1" or row["rerank_neg"] == "1"
        assert found["rank.rerank"] == (int(row["rerank_index"]) if reranked else None)
        shown = row["realshow"] == "1"
        for name in ("effective_view", "comment", "playing_time"):
            assert found[f"label.{name}"] == (float(row[name]) if shown else None)
        assert found["item.uploaded_ms"] == int(row["upload_timestamp"]) * 1000
        assert found["time"] == int(row["request_timestamp"])
    assert log.schema.stages == STAGES
    assert log.schema.source_names == ("random", "prerank", "coarse", "rank", "exposed")
    assert {row["stage"] for row in flat} == set(STAGES) - {"pool"}


def test_every_kind_of_file_gives_the_same_log(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["recflow"](tmp_path)
    reports = [import_recflow(tmp_path, tmp_path / "csv_log")]
    table = pv.read_csv(_day(tmp_path))
    # A table of frames has NaN where a stage did not score.
    blank = pa.array(
        np.where(table["rank_index"].to_numpy() == 0, np.nan, table["rank_index"].to_numpy())
    )
    for kind in ("feather", "parquet"):
        folder = tmp_path / kind / "all_stage"
        folder.mkdir(parents=True)
        path = folder / f"2024-01-13.{kind}"
        if kind == "feather":
            pf.write_feather(table, path)
        else:
            pq.write_table(table, path)
        reports.append(import_recflow(tmp_path / kind, tmp_path / f"{kind}_log"))
    assert reports[0] == reports[1] == reports[2]
    at = table.schema.get_field_index("rank_index")
    pf.write_feather(
        table.set_column(at, "rank_index", blank),
        tmp_path / "feather" / "all_stage" / "2024-01-13.feather",
    )
    assert import_recflow(tmp_path / "feather", tmp_path / "nan_log") == reports[0]


@pytest.mark.parametrize("kind", ["feather", "parquet", "csv", "csv.gz"])
def test_days_sorted_on_disk_give_the_same_log(
    kind: str, samples: dict[str, Sample], tmp_path: Path
) -> None:
    pytest.importorskip("duckdb")
    samples["recflow"](tmp_path)
    table = pv.read_csv(_day(tmp_path))
    folder = tmp_path / "src" / "all_stage"
    folder.mkdir(parents=True)
    half = table.num_rows // 2 // 12 * 12
    for day, rows in (("2024-01-13", table.slice(0, half)), ("2024-01-14", table.slice(half))):
        path = folder / f"{day}.{kind}"
        if kind == "feather":
            pf.write_feather(rows, str(path), chunksize=7)
        elif kind == "parquet":
            pq.write_table(rows, path, row_group_size=7)
        else:
            with pa.output_stream(
                str(path), compression="gzip" if kind == "csv.gz" else None
            ) as stream:
                pv.write_csv(rows, stream)
    inside = import_recflow(tmp_path / "src", tmp_path / "memory")
    outside = import_recflow(tmp_path / "src", tmp_path / "disk", memory_limit="200MB")
    first, second = (
        {
            p.relative_to(log): p.read_bytes()
            for p in log.rglob("*")
            if p.is_file() and p.name != "splits.json"
        }
        for log in (tmp_path / "memory", tmp_path / "disk")
    )
    assert first == second
    assert (inside.counts, inside.num_candidates) == (outside.counts, outside.num_candidates)
    assert sum(outside.parts.values()) == outside.num_requests
    if kind in ("feather", "parquet"):
        path = folder / f"2024-01-14.{kind}"
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match=rf"2024-01-14\.{kind}: cannot be read"):
            import_recflow(tmp_path / "src", tmp_path / "bad", memory_limit="200MB")
        assert not (tmp_path / "bad").exists()


def test_pickles_are_counted_and_never_opened(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["recflow"](tmp_path)
    for folder in ("seq_effective_50_dict", "request_id_dict"):
        (tmp_path / folder).mkdir()
        trap = tmp_path / folder / "2024-01-13.pkl"
        trap.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        trap.chmod(0)
    report = import_recflow(tmp_path, tmp_path / "log")
    assert report.counts["pickles_skipped"] == 2
    assert any("never read" in note for note in report.notes)


def test_days_are_chosen_and_one_day_stands_once(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["recflow"](tmp_path)
    later = tmp_path / "all_stage" / "2024-01-14.csv"
    later.write_text(_day(tmp_path).read_text().replace("170510", "170610"))
    text = later.read_text().splitlines()
    rows = [line.split(",") for line in text[1:]]
    later.write_text(
        "\n".join([text[0], *(",".join([str(int(r[0]) + 100), *r[1:]]) for r in rows)])
    )
    both = import_recflow(tmp_path, tmp_path / "a")
    one = import_recflow(tmp_path, tmp_path / "b", days=dt.date(2024, 1, 13))
    assert (both.num_requests, one.num_requests) == (60, 30)
    assert both.counts["days"] == 2
    pf.write_feather(pv.read_csv(later), later.with_suffix(".feather"))
    with pytest.raises(InputError, match=r"2024-01-14\.feather.*holds that day already|14\.csv"):
        import_recflow(tmp_path, tmp_path / "c")


def test_bad_rows_are_named(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["recflow"](tmp_path)
    with pytest.raises(InputError, match=r"csv:\d+: rank_index is below 1 .*first_rank"):
        import_recflow(tmp_path, tmp_path / "log", first_rank=1)
    path = _day(tmp_path)
    lines = path.read_text().splitlines()
    values = lines[4].split(",")
    lines[4] = ",".join([*values[:14], *["0"] * 7, *values[21:]])
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"2024-01-13\.csv:5: none of prerank_neg"):
        import_recflow(tmp_path, tmp_path / "log")
    pf.write_feather(pv.read_csv(path).drop_columns(["province"]), path.with_suffix(".feather"))
    path.unlink()
    with pytest.raises(InputError, match=r"2024-01-13\.feather: no column 'province'"):
        import_recflow(tmp_path, tmp_path / "log")
    path.with_suffix(".feather").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"2024-01-13\.feather: cannot be read"):
        import_recflow(tmp_path, tmp_path / "log")
