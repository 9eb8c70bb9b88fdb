"""MovieLens: slates, histories and parts against loops over the plain file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prerank.adapters.movielens import import_movielens, slate_starts
from prerank.adapters.report import ImportReport
from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions.flatten import to_impressions

Sample = Callable[[Path], None]
Rating = tuple[int, int, int, int]


def _read(path: Path, users: set[int]) -> dict[int, list[Rating]]:
    """Ratings of some users as (time in s, line, item, stars), sorted."""
    with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as file:
        text = file.read().decode()
    by_user: dict[int, list[Rating]] = {}
    for line, row in enumerate(text.splitlines()):
        user = int(row.partition("::")[0])
        if user not in users:
            continue
        _, item, stars, time = map(int, row.split("::"))
        by_user.setdefault(user, []).append((time, line, item, stars))
    for ratings in by_user.values():
        ratings.sort()
    return by_user


def _slates(ratings: list[Rating], size: int) -> list[list[Rating]]:
    """Fill a slate moment by moment; one moment is never parted."""
    moments: dict[int, list[Rating]] = {}
    for rating in ratings:
        moments.setdefault(rating[0], []).append(rating)
    slates: list[list[Rating]] = [[]]
    for moment in moments.values():
        if slates[-1] and len(slates[-1]) + len(moment) > size:
            slates.append([])
        slates[-1] += moment
    return slates


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1), st.integers(1, 5))
def test_slates_are_what_a_loop_finds(rows: list[tuple[int, int]], size: int) -> None:
    rows.sort()
    user, time = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    expected: list[int] = []
    for u in sorted(set(user.tolist())):
        mine = [(t, i, 0, 0) for i, (v, t) in enumerate(rows) if v == u]
        expected += [slate[0][1] for slate in _slates(mine, size)]
    assert slate_starts(user, time, size).tolist() == expected


def _check_against_the_file(log_path: Path, ratings: Path, size: int, users: set[int]) -> None:
    log = open_log(log_path)
    flat = pa.concat_tables(to_impressions(log))
    parts = {}
    for name in log.parts:
        parts |= dict.fromkeys(log[name].rows.within(0, log.num_requests).tolist(), name)
    tables = [pq.read_table(path) for path in sorted((log_path / "requests").iterdir())]
    requests = pa.concat_tables(tables)
    raw_item, raw_user = log.vocabulary("item").values, log.vocabulary("user").values
    user_of = raw_user.take(requests["user"].combine_chunks()).to_pylist()
    stars_of = log.vocabulary("rating").values
    candidates: dict[int, list[tuple[int, float]]] = {}
    for request, item, label in zip(
        *(flat[name].to_pylist() for name in ("request_id", "item", "label.rating")), strict=True
    ):
        candidates.setdefault(request, []).append((item, label))
    rows_of: dict[int, list[int]] = {}
    for row, user in enumerate(user_of):
        rows_of.setdefault(user, []).append(row)
    past_item, past_time, past_stars = (
        requests[f"history.rated.{name}"] for name in ("item", "time", "rating")
    )
    for user, mine in _read(ratings, users).items():
        slates = _slates(mine, size)
        assert len(rows_of[user]) == len(slates)
        seen: list[Rating] = []
        for row, slate in zip(rows_of[user], slates, strict=True):
            assert candidates[row] == [(item, stars) for _, _, item, stars in slate]
            assert requests["time"][row].as_py() == slate[0][0] * 1000
            assert raw_item.take(past_item[row].values).to_pylist() == [r[2] for r in seen[-100:]]
            assert past_time[row].as_py() == [r[0] * 1000 for r in seen[-100:]]
            stars = stars_of.take(past_stars[row].values).to_pylist()
            assert stars == [r[3] for r in seen[-100:]]
            assert all(r[0] < slate[0][0] for r in seen)
            seen += slate
        order = [("train", "valid", "test").index(parts[row]) for row in rows_of[user]]
        held = max(1, len(slates) // 10)
        assert order == sorted(order)
        assert order[0] == 0
        assert order.count(2) == min(held, len(slates) - 1)
        assert order.count(1) == min(held, len(slates) - 1 - order.count(2))


@pytest.mark.parametrize("size", [1, 4, 10])
def test_a_small_file_comes_out_as_it_went_in(
    size: int, samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["movielens"](tmp_path)
    report = import_movielens(tmp_path, tmp_path / "log", slate=size)
    _check_against_the_file(tmp_path / "log", tmp_path / "ratings.dat", size, set(range(1, 10)))
    assert report.counts["items_without_row"] == 0
    assert report.counts["users_without_row"] == 1
    assert report.num_items == 61


def test_features_of_users_and_movies(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["movielens"](tmp_path)
    import_movielens(tmp_path, tmp_path / "log")
    rows = pa.concat_tables(to_impressions(open_log(tmp_path / "log"))).to_pylist()
    for row in rows:
        user, known = row["user"], row["user"] < 9
        assert row["user.gender"] == ("FM"[user % 2] if known else None)
        assert row["user.age"] == (25 + 10 * (user % 3) if known else None)
        assert row["user.occupation"] == (user if known else None)
        assert row["user.zip3"] == (f"0{user}1" if known else None)
        assert row["item.year"] == 1920 + row["item"]
        assert row["item.genres"] == ["Comedy", "Sci-Fi"]
        assert row["stage"] == "exposed"
    assert "rank.exposed" not in rows[0]


def test_a_rating_of_an_unlisted_movie_is_kept_and_counted(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["movielens"](tmp_path)
    with (tmp_path / "ratings.dat").open("a") as file:
        file.write("1::999::5::978400000\n")
    report = import_movielens(tmp_path, tmp_path / "log")
    assert report.counts["items_without_row"] == 1
    assert report.num_items == 62


def test_an_item_rated_twice_in_a_slate_is_merged(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["movielens"](tmp_path)
    (tmp_path / "ratings.dat").write_text("1::1::2::100\n1::1::4::101\n1::2::3::102\n")
    report = import_movielens(tmp_path, tmp_path / "log")
    assert report.counts["merged_ratings"] == 1
    (flat,) = to_impressions(open_log(tmp_path / "log"))
    assert flat["label.rating"].to_pylist() == [4.0, 3.0]


def test_half_stars_stay_half_stars(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["movielens"](tmp_path)
    (tmp_path / "ratings.dat").write_text("1::1::2.5::100\n1::2::4::200\n")
    import_movielens(tmp_path, tmp_path / "log", slate=1)
    assert open_log(tmp_path / "log").vocabulary("rating").values.to_pylist()[2:] == ["2.5"]


def test_atomic_files_go_by_their_header(write_atomic: Sample, tmp_path: Path) -> None:
    write_atomic(tmp_path)
    report = import_movielens(tmp_path, tmp_path / "log")
    rows = pa.concat_tables(to_impressions(open_log(tmp_path / "log"))).to_pylist()
    lines = (tmp_path / "ml-100k.inter").read_text().splitlines()[1:]
    assert sorted((r["item"], r["user"], str(int(r["label.rating"]))) for r in rows) == sorted(
        tuple(line.split("\t")[:3]) for line in lines
    )
    assert report.counts["items_without_year"] == 8
    third = next(r for r in rows if r["item"] == "03")
    assert (third["item.year"], third["item.genres"]) == (1995.0, [])
    assert rows[0]["user.zip3"] == f"0{rows[0]['user'][1]}1"


def test_atomic_files_may_come_without_items_and_users(
    write_atomic: Sample, tmp_path: Path
) -> None:
    write_atomic(tmp_path)
    for name in ("ml-100k.item", "ml-100k.user"):
        (tmp_path / name).unlink()
    report = import_movielens(tmp_path, tmp_path / "log")
    assert report.counts["items_without_row"] == report.num_items == 9
    assert report.counts["users_without_row"] == report.num_users == 7


def test_a_header_without_a_needed_column_is_refused(write_atomic: Sample, tmp_path: Path) -> None:
    write_atomic(tmp_path)
    path = tmp_path / "ml-100k.inter"
    path.write_text(path.read_text().replace("timestamp", "timestmap"))
    with pytest.raises(InputError, match=r"inter:1: no column 'timestamp'; did you mean 'timest"):
        import_movielens(tmp_path, tmp_path / "log")


@pytest.mark.parametrize("option", ["slate", "max_history"])
def test_an_impossible_option_is_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"movielens: {option} is 0; expected 1 or more"):
        import_movielens(tmp_path, tmp_path / "log", **{option: 0})


@pytest.fixture(scope="module")
def ml1m(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImportReport]:
    out = tmp_path_factory.mktemp("ml1m") / "log"
    return out, import_movielens(real_data / "ml1m", out)


def test_the_real_million_counts_what_the_file_holds(
    ml1m: tuple[Path, ImportReport], real_data: Path
) -> None:
    _, report = ml1m
    assert (report.num_candidates, report.num_users, report.num_items) == (910_242, 5_433, 3_883)
    assert report.counts == {
        "ratings": 910_242,
        "merged_ratings": 0,
        "items_without_row": 0,
        "items_without_year": 0,
        "users_without_row": 0,
    }


def test_the_real_million_comes_out_as_it_went_in(
    ml1m: tuple[Path, ImportReport], real_data: Path
) -> None:
    some = {*range(1, 6041, 60)}
    _check_against_the_file(ml1m[0], real_data / "ml1m" / "ratings.dat.zst", 10, some)


def test_no_user_of_the_real_million_is_tested_before_trained(
    ml1m: tuple[Path, ImportReport],
) -> None:
    log = open_log(ml1m[0])
    times, users = log.request_times()
    last: dict[int, int] = {}
    for name in ("train", "valid", "test"):
        rows = log[name].rows.within(0, log.num_requests)
        before = dict(last)
        for user, time in zip(users[rows].tolist(), times[rows].tolist(), strict=True):
            assert time > before.get(user, -1)
            last[user] = max(last.get(user, -1), time)
        assert name != "train" or len(last) == 5_433


def test_the_real_atomic_files(real_data: Path, tmp_path: Path) -> None:
    report = import_movielens(real_data / "ml100k", tmp_path / "log")
    assert (report.num_candidates, report.num_users, report.num_items) == (100_000, 943, 1_682)
    assert report.counts["users_without_row"] == report.counts["items_without_row"] == 0
