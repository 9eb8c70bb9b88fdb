"""KuaiRand, on small files to the published field list (the real files were not seen)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from prerank.adapters.kuairand import import_kuairand
from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions import to_impressions

Sample = Callable[[Path], None]


def _rows(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for name in ("log_standard_4_08_to_4_21_pure.csv", "log_random_4_22_to_5_08_pure.csv"):
        with (folder / name).open() as file:
            rows += csv.DictReader(file)
    return rows


def test_requests_are_user_tab_and_window(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["kuairand"](tmp_path)
    report = import_kuairand(tmp_path, tmp_path / "log")
    shown: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in _rows(tmp_path):
        shown[row["user_id"], row["tab"]].append(row)
    expected = set()
    for (user, tab), rows in shown.items():
        start, videos = -(10**9), {}
        for row in sorted(rows, key=lambda r: int(r["time_ms"])):
            if int(row["time_ms"]) >= start + 600_000:
                start, videos = int(row["time_ms"]), {}
            clicked = max(videos.get(row["video_id"], 0.0), float(row["is_click"]))
            videos[row["video_id"]] = clicked
            expected = {e for e in expected if e[:3] != (int(user), start, int(tab))}
            found = frozenset((int(v), c) for v, c in videos.items())
            expected.add((int(user), start, int(tab), found))
    flat = pa.concat_tables(to_impressions(open_log(tmp_path / "log")))
    names = ["request_id", "user", "time", "context.tab", "item", "label.click"]
    groups: dict[tuple[int, ...], set[tuple[int, float]]] = defaultdict(set)
    for request, user, time, tab, item, click in zip(
        *(flat[n].to_pylist() for n in names), strict=True
    ):
        groups[request, user, time, tab].add((item, click))
    assert {(*key[1:], frozenset(items)) for key, items in groups.items()} == expected
    assert (report.counts["standard"], report.counts["random"]) == (150, 150)
    assert report.counts["users_without_row"] == 1


def test_channels_say_how_a_video_was_chosen(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["kuairand"](tmp_path)
    for logs in ("both", "standard", "random"):
        import_kuairand(tmp_path, tmp_path / logs, logs=logs)
        flat = pa.concat_tables(to_impressions(open_log(tmp_path / logs)))
        channels = set(pc.unique(flat["channel"]).to_pylist())
        assert channels == ({"standard", "random"} if logs == "both" else {logs})


def test_features_of_users_and_videos(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["kuairand"](tmp_path)
    import_kuairand(tmp_path, tmp_path / "log")
    flat = pa.concat_tables(to_impressions(open_log(tmp_path / "log"))).to_pylist()
    for row in flat:
        missing = row["user"] == 0
        assert row["user.fans_user_num_range"] == (None if missing else "(0,11]")
        blank = row["item"] == 4
        assert row["item.tag"] == ([] if blank else [str(row["item"] % 4), "65"])
        assert row["item.video_duration"] == (None if blank else 1000.0 + row["item"])
        assert row["item.author_id"] == str(row["item"] % 3)


def test_logs_in_parts_are_read_together(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["kuairand"](tmp_path)
    whole = import_kuairand(tmp_path, tmp_path / "a")
    path = tmp_path / "log_standard_4_08_to_4_21_pure.csv"
    head, *lines = path.read_text().splitlines()
    path.unlink()
    for part, rows in (("part1", lines[:70]), ("part2", lines[70:])):
        name = f"log_standard_4_08_to_4_21_27k_{part}.csv"
        (tmp_path / name).write_text("\n".join([head, *rows, ""]))
    assert import_kuairand(tmp_path, tmp_path / "b") == whole


def test_absent_features_are_named_and_wrong_values_refused(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["kuairand"](tmp_path)
    path = tmp_path / "user_features_pure.csv"
    path.write_text(path.read_text().replace("is_live_streamer", "streamer"))
    report = import_kuairand(tmp_path, tmp_path / "log")
    assert report.notes[-1] == "absent columns: is_live_streamer"
    path = tmp_path / "log_random_4_22_to_5_08_pure.csv"
    lines = path.read_text().splitlines()
    lines[3] = ",".join([*lines[3].split(",")[:5], "2", *lines[3].split(",")[6:]])
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"pure\.csv:4: is_click is 2; expected 0 or 1"):
        import_kuairand(tmp_path, tmp_path / "b")
    with pytest.raises(InputError, match="logs is 'rand'; did you mean 'random'"):
        import_kuairand(tmp_path, tmp_path / "b", logs="rand")
