"""Items that come later: scored like any other, there after a restart, whole after a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from prerank.errors import InputError
from prerank.log import Log
from prerank.serving import segments
from prerank.serving.engine import Engine
from prerank.serving.errors import BadRequestError, UnknownFeatureError
from prerank.serving.messages import Candidates, NewItem, RankRequest
from prerank.serving.segments import compact, latest, locked

FP32 = Engine.Config(dtype="fp32")
FEATURES = {"category": "c1", "price": 12.0, "tags": ["t1"], "image": [1.0, 0.0, 2.0]}


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def request7(requests: list[RankRequest]) -> RankRequest:
    return msgspec.structs.replace(requests[7], history=requests[9].history, time=requests[9].time)


def only(request: RankRequest, ids: list[Any], **more: Any) -> RankRequest:
    return msgspec.structs.replace(request, candidates=Candidates(ids=ids, **more))


def stored(log: Log, row: int) -> dict[str, Any]:
    """Raw features of an item of the log."""
    from prerank.log.format.raw import raw_items

    values = raw_items(log).slice(row - 2, 1).to_pylist()[0]
    return {name: value for name, value in values.items() if name != "item_id"}


def logits(engine: Engine, request: RankRequest) -> list[np.ndarray]:
    return [scores.numpy() for scores in engine.scores(request)]


def test_an_added_item_scores_as_one_sent_with_the_request(
    copy: Path, request7: RankRequest
) -> None:
    engine = Engine.open(copy, FP32)
    sent = only(request7, [501], new=[NewItem(501, FEATURES)])
    expected = logits(engine, sent)
    version = engine.version
    assert engine.add_items([(501, FEATURES)]) == engine.version == f"{version}+1"
    asked = only(request7, [501])
    for again in (engine, Engine.open(copy, FP32)):  # here, and after a restart
        for a, b in zip(logits(again, asked), expected, strict=True):
            assert np.allclose(a, b, atol=1e-6)
        assert again.rank(asked).unknown == []
        assert again.self_test().ok
        assert again.stats().items_added == 1


def test_an_item_put_in_again_is_the_item_it_was(
    copy: Path, rich_log: Log, requests: list[RankRequest], engine: Engine
) -> None:
    """The same features: nothing changes, because it keeps its embedding, row and statistics."""
    changed = Engine.open(copy, FP32)
    ids = rich_log.items.ids.values.to_pylist()
    changed.add_items([(ids[row], stored(rich_log, row)) for row in (2, 9, 30)])
    changed.add_items([(777, FEATURES)])
    for request in requests[3:12]:
        for a, b in zip(logits(changed, request), logits(engine, request), strict=True):
            assert np.allclose(a, b, atol=1e-6)
    other = {**stored(rich_log, 9), "category": "c4", "price": 900.0}
    changed.add_items([(ids[9], other)])
    asked = only(requests[5], [ids[9]])
    assert not np.allclose(logits(changed, asked)[0], logits(engine, asked)[0], atol=1e-6)


def test_removed_items_are_unknown_as_candidates_but_not_in_histories(
    copy: Path, requests: list[RankRequest], engine: Engine
) -> None:
    changed = Engine.open(copy, FP32)
    request = max(requests, key=lambda r: len(r.candidates.ids))
    gone = [request.candidates.ids[0], request.history["views"][0]["item"]]  # type: ignore[index,call-overload]
    gone = list(dict.fromkeys(gone))
    changed.add_items(removed=gone)
    answer = changed.rank(request)
    assert request.candidates.ids[0] in answer.unknown
    assert answer.tier[-1] == -1
    rest = [i for i in request.candidates.ids if i not in gone]
    asked = only(request, rest)
    for a, b in zip(logits(changed, asked), logits(engine, asked), strict=True):
        assert np.allclose(a, b, atol=1e-6)
    assert changed.stats().items_removed == len(gone)
    changed.add_items(removed=gone)  # again does no harm
    changed.add_items([(gone[0], FEATURES)])
    assert changed.rank(request).unknown == (
        [] if len(gone) == 1 else [i for i in request.candidates.ids if i in gone[1:]]
    )


def test_statistics_hold_from_their_moment_on(copy: Path, requests: list[RankRequest]) -> None:
    engine = Engine.open(copy, FP32)
    request = requests[30]
    item, time = request.candidates.ids[0], request.time
    assert time is not None
    asked = only(request, [item])
    before = logits(engine, asked)
    values = {"impressions_1d": 5000.0, "engaged_rate_1d": 0.9}
    engine.add_items(stats=[(item, time, values)])
    assert all(np.array_equal(a, b) for a, b in zip(logits(engine, asked), before, strict=True))
    engine.add_items(stats=[(item, time - 1, {"impressions_1d": 1.0}), (item, time - 1, values)])
    after = logits(engine, asked)
    assert not np.allclose(after[0], before[0], atol=1e-6)
    again = Engine.open(copy, FP32)
    assert again.compact() == (2, 1)
    assert all(np.array_equal(a, b) for a, b in zip(logits(again, asked), after, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"items": [(5, {"colour": 1})]}, UnknownFeatureError, "'colour'"),
        ({"items": [("x", {})]}, BadRequestError, "item ids are int"),
        ({"items": [(5, {}), (5, {})]}, BadRequestError, "item 5 is given twice"),
        ({"items": [(5, {})], "removed": [5]}, BadRequestError, "item 5 is given twice"),
        ({"items": [(5, {"price": "much"})]}, BadRequestError, "items.price"),
        ({"removed": [-4]}, BadRequestError, "no item -4"),
        ({"stats": [(-4, 1, {})]}, BadRequestError, "no item -4"),
        ({"stats": [(3, 1, {"ctr": 1.0})]}, UnknownFeatureError, "'ctr'"),
        ({"stats": [(3, -1, {})]}, BadRequestError, "valid_from_ms"),
        ({"stats": [(3, 1, {"impressions_1d": float("inf")})]}, BadRequestError, "inf"),
    ],
)
def test_what_does_not_fit_is_not_written(
    change: dict[str, Any], error: type[InputError], says: str, bundle: Path, engine: Engine
) -> None:
    with pytest.raises(error, match=says.replace("(", r"\(")):
        engine.add_items(**change)
    assert latest(bundle) == 0


def test_another_process_takes_them_up(copy: Path, request7: RankRequest) -> None:
    writer, reader = Engine.open(copy, FP32), Engine.open(copy, FP32)
    assert not reader.refresh()
    writer.add_items([(501, FEATURES)])
    assert reader.rank(only(request7, [501])).unknown == [501]
    assert reader.refresh()
    assert reader.version == writer.version
    assert reader.rank(only(request7, [501])).unknown == []
    reader.add_items([(502, FEATURES)])  # numbers go on from what is there
    writer.refresh()
    assert writer.rank(only(request7, [501, 502])).unknown == []


def test_lost_foreign_or_altered_segments_are_refused(copy: Path, tmp_path: Path) -> None:
    engine = Engine.open(copy, FP32)
    for k in range(3):
        engine.add_items([(600 + k, FEATURES)])
    folder = copy / "segments"

    def refused(says: str) -> None:
        with pytest.raises(InputError, match=says) as caught:
            Engine.open(copy, FP32)
        assert "\n" not in str(caught.value)

    shutil.move(folder / "000002", tmp_path / "kept")
    refused("000002.*missing")
    shutil.move(tmp_path / "kept", folder / "000002")
    shutil.move(folder / "000001", tmp_path / "kept")
    refused("000001.*missing")
    shutil.move(tmp_path / "kept", folder / "000001")
    for name in ("content.json", "tier-0.safetensors", "segment.json"):
        path = folder / "000001" / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"1", b"2", 1) if name != "segment.json" else whole + b" ")
        refused("00000[12]")
        path.write_bytes(whole)
    header = json.loads((folder / "000003" / "segment.json").read_text())
    (folder / "000003" / "segment.json").write_text(json.dumps({**header, "bundle": "other"}))
    refused("belongs to bundle other")


@pytest.fixture
def die_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any], int], bool]]:
    """``die_at(work, n)``: do work in a process that is killed before its n-th step on the disk."""

    def run(work: Callable[[], Any], number: int) -> bool:
        child = os.fork()
        if child == 0:
            steps = 0

            def counted(function: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **options: Any) -> Any:
                    nonlocal steps
                    steps += 1
                    if steps == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **options)

                return call

            for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink"):
                setattr(os, name, counted(getattr(os, name)))
            segments.save_tensors = counted(segments.save_tensors)
            try:
                work()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)

    return run


def test_a_crash_at_any_step_leaves_the_old_items_or_the_new(
    copy: Path, request7: RankRequest, die_at: Callable[[Callable[[], Any], int], bool]
) -> None:
    engine = Engine.open(copy, FP32)
    engine.add_items([(501, FEATURES)])
    content = segments.Content([segments.AddedItem(502, FEATURES, 0)])
    _, added = segments.read_segments(copy, engine.bundle.version, 2)

    def write() -> None:
        with locked(copy):
            segments.append(copy, engine.bundle.version, content, added.states)

    step, seen = 1, set()
    while die_at(write, step):
        number, found = segments.read_segments(copy, engine.bundle.version, 2)
        assert [i.id for i in found.items] == ([501] if number == 1 else [501, 502])
        seen.add(number)
        shutil.rmtree(copy / "segments" / "000002", ignore_errors=True)
        step += 1
    assert seen == {1, 2}  # there was a step before the rename, and one after it
    assert step > 8
    assert segments.read_segments(copy, engine.bundle.version, 2)[0] == 2
    assert not list((copy / "segments").glob(".*.partial"))


def test_a_crash_while_compacting_loses_nothing(
    copy: Path, tmp_path: Path, die_at: Callable[[Callable[[], Any], int], bool]
) -> None:
    engine = Engine.open(copy, FP32)
    version = engine.bundle.version
    for k in range(3):
        engine.add_items([(600 + k, FEATURES)], removed=[600] if k == 2 else [])
    shutil.copytree(copy / "segments", tmp_path / "segments")

    def work() -> None:
        with locked(copy):
            compact(copy, version, 2)

    step = 1
    while True:
        died = die_at(work, step)
        _, found = segments.read_segments(copy, version, 2)
        assert [i.id for i in found.items] == [601, 602]
        assert found.removed == {600}
        with locked(copy):  # the next writer goes on
            segments.append(copy, version, segments.Content(removed=[601]), [])
        assert segments.read_segments(copy, version, 2)[1].removed == {600, 601}
        shutil.rmtree(copy / "segments")
        shutil.copytree(tmp_path / "segments", copy / "segments")
        if not died:
            break
        step += 1
    assert step > 10
