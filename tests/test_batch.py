from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prerank.batch import Evidence, Features, History, Inputs, RequestBatch, Rows, Scores
from prerank.jagged import Jagged, lengths_to_offsets


@dataclass(frozen=True, slots=True)
class Inner(Rows):
    vector: Tensor
    memory: Jagged


@dataclass(frozen=True, slots=True)
class State(Rows):
    """A tree of every kind of field."""

    inner: Inner
    pair: tuple[Tensor, Jagged]
    named: dict[str, Any]
    absent: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Nothing(Rows):
    absent: Tensor | None = None


def ragged(num_rows: int, start: int = 0) -> Jagged:
    lengths = torch.arange(num_rows) % 3
    return Jagged.from_lengths(torch.arange(float(lengths.sum())) + start, lengths)


def state(num_rows: int, start: int = 0) -> State:
    vector = torch.arange(2.0 * num_rows).view(num_rows, 2) + start
    inner = Inner(vector, ragged(num_rows, start))
    ids = torch.arange(num_rows) + start
    return State(inner, (ids, ragged(num_rows, start)), {"deep": inner, "ids": ids})


def plain(value: Any) -> Any:
    """The rows of a tree as plain lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Jagged):
        bounds = value.offsets.tolist()
        return [value.values[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    if isinstance(value, Rows):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return value


def picked(value: Any, index: list[int]) -> Any:
    """Select from plain lists, by a loop."""
    if isinstance(value, Tensor | Jagged):
        column = plain(value)
        return [column[i] for i in index]
    if isinstance(value, Rows):
        return {f.name: picked(getattr(value, f.name), index) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {k: picked(v, index) for k, v in value.items()}
    if isinstance(value, tuple):
        return [picked(v, index) for v in value]
    return value


@given(st.integers(1, 5), st.data())
def test_select_reaches_every_leaf(num_rows: int, data: Any) -> None:
    index = data.draw(st.lists(st.integers(0, num_rows - 1), max_size=6))
    tree = state(num_rows)
    selected = tree.select(torch.tensor(index, dtype=torch.int64))
    assert selected.num_rows == len(index)
    assert plain(selected) == picked(tree, index)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_cat_undoes_select(sizes: list[int]) -> None:
    tree = state(sum(sizes))
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = [tree.select(torch.arange(a, b)) for a, b in itertools.pairwise(bounds)]
    assert plain(State.cat(parts)) == plain(tree)


def test_nbytes_is_the_sum_of_the_leaves() -> None:
    inner = 3 * 2 * 4 + (3 * 4 + 4 * 8)
    pair = 3 * 8 + (3 * 4 + 4 * 8)
    assert state(3).nbytes == inner + pair + inner + 3 * 8


def test_to_converts_floats_at_any_depth_and_keeps_ids() -> None:
    tree = state(3).to(torch.float64)
    assert tree.named["deep"].memory.values.dtype == torch.float64
    assert tree.inner.vector.dtype == torch.float64
    assert tree.named["ids"].dtype == torch.int64
    assert tree.pair[1].offsets.dtype == torch.int64
    assert plain(tree) == plain(state(3))
    assert tree.to("cpu", torch.float16).inner.vector.dtype == torch.float16


def test_a_tree_without_leaves() -> None:
    nothing = Nothing()
    assert (nothing.num_rows, nothing.nbytes) == (0, 0)
    assert Nothing.cat([nothing.select(torch.tensor([])), nothing]) == nothing


def test_the_first_leaf_may_be_jagged() -> None:
    @dataclass(frozen=True, slots=True)
    class Memory(Rows):
        events: Jagged

    assert Memory(ragged(5)).num_rows == 5


# Three requests with 2, 0 and 3 candidates, over 5 items; histories of 1, 0 and 2 events.
NUM_CANDIDATES, NUM_EVENTS = [2, 0, 3], [1, 0, 2]
CANDIDATE_ITEMS, EVENT_ITEMS = [4, 1, 0, 1, 3], [2, 1, 0]


def features(start: int, num_rows: int) -> Features:
    ids = torch.arange(num_rows) + start
    tags = Jagged.from_lengths(ids.repeat_interleave(2), torch.full((num_rows,), 2))
    return Features(ids.view(-1, 1), (tags,), ids.view(-1, 1).float(), (ids.view(-1, 1).float(),))


@pytest.fixture
def batch() -> RequestBatch:
    lengths, events = torch.tensor(NUM_CANDIDATES), torch.tensor(NUM_EVENTS)
    offsets = lengths_to_offsets(lengths)
    history = History(
        item_of=Jagged.from_lengths(torch.tensor(EVENT_ITEMS), events),
        age_ms=Jagged.from_lengths(torch.tensor([10, 30, 20]), events),
        categorical=Jagged.from_lengths(torch.tensor([[1], [2], [3]]), events),
        dense=Jagged.from_lengths(torch.zeros(3, 0), events),
    )
    inputs = Inputs(
        user=features(100, 3),
        context=features(200, 3),
        history={"clicks": history},
        items=features(1000, 5),
        candidate=features(500, 5),
        offsets=offsets,
        request_of=torch.repeat_interleave(torch.arange(3), lengths),
        item_of=torch.tensor(CANDIDATE_ITEMS),
    )
    candidates = torch.arange(5)
    evidence = Evidence(
        row=torch.tensor([70, 71, 72]),
        user=torch.tensor([100, 101, 102]),
        time=torch.tensor([1, 2, 3]),
        stage=candidates,
        source=candidates - 2,
        engaged=candidates.float(),
        targets=candidates.float().view(-1, 1),
        item=torch.tensor(CANDIDATE_ITEMS) + 1000,
        channel=candidates,
        weight=candidates.float(),
        propensity=candidates.float(),
        sample_prob=candidates.float(),
        scored_online=candidates > 2,
        labels={"click": candidates.float()},
        ranks={"rank": candidates},
        scores={"teacher": candidates.float()},
    )
    return RequestBatch(inputs, evidence)


SELECTIONS: list[list[int]] = [[], [0], [1], [2, 0], [1, 1], [2, 1, 0, 2]]


@pytest.mark.parametrize("requests", SELECTIONS, ids=str)
def test_select_rebases_every_link(batch: RequestBatch, requests: list[int]) -> None:
    got = batch.select(torch.tensor(requests, dtype=torch.int64))
    bounds = batch.inputs.offsets.tolist()
    old = [i for r in requests for i in range(bounds[r], bounds[r + 1])]
    new_request = [n for n, r in enumerate(requests) for _ in range(NUM_CANDIDATES[r])]

    assert (got.num_requests, got.num_candidates) == (len(requests), len(old))
    assert got.inputs.request_of.tolist() == new_request
    assert got.inputs.offsets.diff().tolist() == [NUM_CANDIDATES[r] for r in requests]
    # What a candidate sees through its links is what it saw before.
    inputs = got.inputs
    seen_user = inputs.user.categorical[inputs.request_of, 0].tolist()
    assert seen_user == [100 + batch.inputs.request_of[i].item() for i in old]
    seen_item = inputs.items.categorical[inputs.item_of, 0].tolist()
    assert seen_item == [1000 + CANDIDATE_ITEMS[i] for i in old]
    assert seen_item == got.evidence.item.tolist()
    assert inputs.candidate.categorical[:, 0].tolist() == [500 + i for i in old]
    assert inputs.context.categorical[:, 0].tolist() == [200 + r for r in requests]
    events = [EVENT_ITEMS[:1], [], EVENT_ITEMS[1:]]
    assert plain(inputs.history["clicks"].item_of) == [events[r] for r in requests]
    assert inputs.items is batch.inputs.items


@pytest.mark.parametrize("requests", SELECTIONS, ids=str)
def test_select_takes_evidence_along(batch: RequestBatch, requests: list[int]) -> None:
    got = batch.select(torch.tensor(requests, dtype=torch.int64)).evidence
    bounds = batch.inputs.offsets.tolist()
    old = [i for r in requests for i in range(bounds[r], bounds[r + 1])]
    for f in dataclasses.fields(Evidence):
        before, after = getattr(batch.evidence, f.name), getattr(got, f.name)
        index = requests if f.name in ("row", "user", "time") else old
        assert plain(after) == picked(before, index), f.name


def test_selecting_twice_is_selecting_once(batch: RequestBatch) -> None:
    twice = batch.select(torch.tensor([2, 0, 1])).select(torch.tensor([1, 0]))
    once = batch.select(torch.tensor([0, 2]))
    assert twice.inputs.request_of.tolist() == once.inputs.request_of.tolist()
    assert plain(twice.inputs.user) == plain(once.inputs.user)
    assert twice.evidence.stage.tolist() == once.evidence.stage.tolist()


def test_pairs_hold_the_candidate_side_only(batch: RequestBatch) -> None:
    pairs = batch.inputs.pairs
    chosen = pairs.select(torch.tensor([4, 0]))
    assert chosen.request_of.tolist() == [2, 0]
    assert chosen.item_of.tolist() == [3, 4]
    assert chosen.candidate.categorical[:, 0].tolist() == [504, 500]
    assert chosen.context is pairs.context
    assert pairs.context.num_rows == batch.num_requests


def test_to_converts_floats_and_keeps_links(batch: RequestBatch) -> None:
    moved = batch.to("cpu", torch.float64)
    assert moved.inputs.user.dense.dtype == torch.float64
    assert moved.inputs.history["clicks"].dense.values.dtype == torch.float64
    assert moved.evidence.labels["click"].dtype == torch.float64
    for link in (moved.inputs.request_of, moved.inputs.item_of, moved.inputs.offsets):
        assert link.dtype == torch.int64
    assert moved.evidence.scored_online.dtype == torch.bool
    assert moved.evidence.ranks["rank"].dtype == torch.int64


def test_evidence_and_scores_have_no_shared_defaults(batch: RequestBatch) -> None:
    first, second = Scores(torch.zeros(1, 1)), Scores(torch.zeros(1, 1))
    assert first.extra == {}
    assert first.extra is not second.extra
    with pytest.raises(AttributeError):
        batch.inputs = batch.inputs  # type: ignore[misc]
