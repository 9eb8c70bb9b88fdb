"""Parts: row ranges are sets; both rules keep what belongs together together."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prerank.errors import InputError
from prerank.log import Log, RowRanges, open_log, split_log
from prerank.log.split import Splits, load_splits, save_splits

ROWS = st.lists(st.integers(0, 40), max_size=30)


def _ranges(rows: list[int]) -> RowRanges:
    return RowRanges.of(np.array(rows, dtype=np.int64))


@given(ROWS, st.integers(0, 45), st.integers(0, 45))
def test_row_ranges_are_sets_of_rows(rows: list[int], a: int, b: int) -> None:
    ranges, members = _ranges(rows), set(rows)
    start, stop = min(a, b), max(a, b)
    assert len(ranges) == len(members)
    assert ranges.within(0, 99).tolist() == sorted(members)
    assert ranges.within(start, stop).tolist() == sorted(m for m in members if start <= m < stop)
    probes = list(range(-2, 50))
    assert ranges.rank(probes).tolist() == [sum(m < p for m in members) for p in probes]
    assert all(lo < hi for lo, hi in ranges.pairs.tolist())
    assert all(p[1] < q[0] for p, q in itertools.pairwise(ranges.pairs))


@given(ROWS, ROWS)
def test_overlap_counts_the_intersection(left: list[int], right: list[int]) -> None:
    assert _ranges(left).overlap(_ranges(right)) == len(set(left) & set(right))


LOGS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25)
FRACTIONS = st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5)])


class _Times:
    """As much of a log as a split reads."""

    def __init__(self, path: Path, times: list[int], users: list[int]) -> None:
        self.path = path
        self.num_requests = len(times)
        self.times, self.users = np.array(times), np.array(users)

    def request_times(self) -> Any:
        return self.times, self.users


def _split(path: Path, times: list[int], users: list[int], **how: Any) -> dict[str, list[int]]:
    sizes = split_log(_Times(path, times, users), **how)  # type: ignore[arg-type]
    parts = {
        name: RowRanges(np.array(pairs, dtype=np.int64)).within(0, len(times)).tolist()
        for name, pairs in load_splits(path).parts.items()
    }
    assert sizes == {name: len(rows) for name, rows in parts.items()}
    return parts


def _by_share(rows: list[int], times: list[int], fractions: tuple[float, ...]) -> Iterator[int]:
    """The part of each row by its definition: the share of rows strictly earlier."""
    for row in rows:
        share = sum(times[other] < times[row] for other in rows) / len(rows)
        edge, part = fractions[0], 0
        while part < len(fractions) - 1 and share >= edge - 1e-9:
            part += 1
            edge += fractions[part]
        yield part


@pytest.mark.parametrize("by", ["time", "user-order"])
@given(steps=LOGS, fractions=FRACTIONS)
def test_parts_are_shares_of_strictly_earlier_requests(
    tmp_path_factory: pytest.TempPathFactory,
    by: str,
    steps: list[tuple[int, int]],
    fractions: tuple[float, ...],
) -> None:
    times = np.cumsum([max(step - 1, 0) for step, _ in steps]).tolist()
    users = [2 + user for _, user in steps]
    path = tmp_path_factory.getbasetemp()
    parts = _split(path, times, users, by=by, fractions=fractions)
    assert sorted(row for rows in parts.values() for row in rows) == list(range(len(times)))
    found = {row: k for k, rows in enumerate(parts.values()) for row in rows}
    groups: dict[int, list[int]] = defaultdict(list)
    for row, user in enumerate(users):
        groups[user if by == "user-order" else 0].append(row)
    for rows in groups.values():
        assert [found[r] for r in rows] == list(_by_share(rows, times, fractions))
        assert [found[r] for r in rows] == sorted(found[r] for r in rows)  # never back in time
        for r, s in itertools.pairwise(rows):
            assert times[r] < times[s] or found[r] == found[s]
        if fractions[0] > 0:  # the earliest request of each user trains
            assert found[rows[0]] == 0


def test_parts_of_a_real_log(rich_log: Log, copy_of: Callable[[Log], Path]) -> None:
    path = copy_of(rich_log)
    sizes = split_log(open_log(path), fractions=(0.5, 0.5), names=("a", "b"))
    log = open_log(path)
    assert log.parts == ("a", "b")
    assert sum(sizes.values()) == log.num_requests
    times, _ = log.request_times()
    a, b = (log[name].rows.within(0, 99) for name in log.parts)
    assert times[a].max() < times[b].min()
    assert load_splits(path).rule == "time (0.5, 0.5)"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"fractions": (0.8, 0.1)}, "must be as many"),
        ({"fractions": (0.8, 0.1, 0.2)}, "add up to 1"),
        ({"fractions": (1.2, -0.1, -0.1)}, "not negative"),
        ({"fractions": (), "names": ()}, "add up to 1"),
        ({"by": "day"}, "by 'day' .*expected 'time' or 'user-order'"),
        ({"names": ("a", "a", "b")}, "distinct names"),
    ],
)
def test_impossible_splits_are_refused(tmp_path: Path, how: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _split(tmp_path, [1, 2], [1, 1], **how)
    assert not (tmp_path / "splits.json").exists()


def test_saving_checks_the_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"part 'a' names rows 3 to 5, outside the log's 4"):
        save_splits(tmp_path, {"a": np.array([3, 4])}, 4, rule="x")
    with pytest.raises(InputError, match="part 'a' names rows -1 to 0"):
        save_splits(tmp_path, {"a": np.array([-1])}, 4, rule="x")
    with pytest.raises(InputError, match="parts 'a' and 'b' overlap in 2 requests"):
        save_splits(tmp_path, {"a": np.arange(3), "b": np.arange(1, 4)}, 4, rule="x")


@settings(max_examples=30)
@given(ROWS)
def test_saved_parts_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    path = tmp_path_factory.getbasetemp()
    save_splits(path, {"a": np.array(rows, dtype=np.int64)}, 99, rule="x")
    splits = load_splits(path)
    assert splits.rule == "x"
    assert RowRanges(splits.parts["a"]).within(0, 99).tolist() == sorted(set(rows))


def test_changed_parts_are_noticed_unless_the_digest_is_taken_out(
    rich_log: Log, copy_of: Callable[[Log], Path]
) -> None:
    path = copy_of(rich_log)
    file = path / "splits.json"
    file.write_text(file.read_text().replace("20", "19"))
    with pytest.raises(InputError, match=r"splits.json: the parts do not match .* data split LOG"):
        open_log(path)
    file.write_text('{"rule": "mine", "parts": {"train": [[0, 3], [5, 6]]}}')
    assert open_log(path)["train"].num_requests == 4
    for parts, says in (
        ("[[0, 31]]", "outside the log's 30 requests"),
        ("[[5, 3]]", "is not a list of ascending"),
        ("[[5, 6], [0, 3]]", "is not a list of ascending"),
        ("[[-1, 3]]", "Expected `int` >= 0"),
        ("[[0, 1e30]]", "Expected `int`"),
    ):
        file.write_text(f'{{"rule": "mine", "parts": {{"train": {parts}}}}}')
        with pytest.raises(InputError, match=says):
            open_log(path)


def test_a_log_without_the_file_has_no_parts(tmp_path: Path) -> None:
    assert load_splits(tmp_path) == Splits("none", {})
