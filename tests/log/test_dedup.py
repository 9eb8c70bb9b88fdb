"""De-duplication of batches and columns: against plain Python, there and back, controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prerank import models, objectives
from prerank.batch import RequestBatch
from prerank.jagged import Jagged
from prerank.log import Log, dedup
from prerank.log.dedup import as_impressions, dedup_columns, dedup_impressions
from prerank.log.format.columns import Columns, Group
from prerank.schema import Schema


def leaves(tree: Any) -> list[Tensor]:
    """All tensors of a batch, jagged ones as values and offsets."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Jagged):
        return [tree.values, tree.offsets]
    children: Any = tree
    if dataclasses.is_dataclass(tree):
        children = [getattr(tree, f.name) for f in dataclasses.fields(tree)]
    elif isinstance(tree, dict):
        children = [tree[name] for name in sorted(tree)]
    return [leaf for child in children for leaf in leaves(child)]


def same(a: RequestBatch, b: RequestBatch) -> bool:
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return all(x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs)


def with_candidates(batch: RequestBatch) -> RequestBatch:
    return batch.select(batch.inputs.offsets.diff().nonzero().squeeze(1))


def permuted(batch: RequestBatch, seed: int = 0) -> RequestBatch:
    order = np.random.default_rng(seed).permutation(batch.num_requests)
    return batch.select(torch.from_numpy(order))


Make = Callable[..., RequestBatch]


def test_an_impression_level_batch_goes_back_to_its_requests(
    any_schema: Schema, make_batch: Make
) -> None:
    batch = with_candidates(make_batch(any_schema, seed=3))
    flat = as_impressions(batch)
    assert flat.num_requests == flat.num_candidates == batch.num_candidates
    assert same(dedup_impressions(flat), batch)


def test_a_request_without_candidates_leaves_nothing(schemas: Any, make_batch: Make) -> None:
    batch = make_batch(schemas["rich"])
    assert int(batch.inputs.offsets.diff()[1]) == 0
    merged = dedup_impressions(as_impressions(batch))
    assert merged.num_requests == batch.num_requests - 1
    assert same(merged, with_candidates(batch))
    assert dedup_impressions(batch) is batch


@given(seed=st.integers(0, 10**6), requests=st.integers(1, 9), per_request=st.integers(1, 5))
def test_rows_in_any_order_give_the_same_requests(
    schemas: Any, make_batch: Make, seed: int, requests: int, per_request: int
) -> None:
    schema = schemas["rich"]
    batch = make_batch(schema, num_requests=requests, max_candidates=per_request, seed=seed)
    flat = permuted(as_impressions(batch), seed)
    merged = dedup_impressions(flat)
    # Requests stand in order of appearance; candidates of one in order of appearance.
    row = flat.evidence.row.tolist()
    appearance = list(dict.fromkeys(row))
    assert merged.evidence.row.tolist() == appearance
    expected = batch.select(torch.tensor(appearance, dtype=torch.int64))
    items = [
        sorted(part.tolist())
        for part in torch.tensor_split(merged.evidence.item, merged.inputs.offsets[1:-1])
    ]
    wanted = [
        sorted(part.tolist())
        for part in torch.tensor_split(expected.evidence.item, expected.inputs.offsets[1:-1])
    ]
    assert items == wanted
    # Exactly: putting the rows of each request together is what merging does.
    grouped = sorted(range(len(row)), key=lambda k: appearance.index(row[k]))
    together = flat.select(torch.tensor(grouped, dtype=torch.int64))
    assert torch.equal(together.evidence.weight, merged.evidence.weight)
    assert torch.equal(together.inputs.item_of, merged.inputs.item_of)
    assert same(dedup_impressions(together), merged)


@pytest.mark.parametrize("name", sorted(models.TABLE))
def test_logits_loss_and_gradients_are_equal(name: str, schemas: Any, make_batch: Make) -> None:
    schema = schemas["rich"]
    batch = with_candidates(make_batch(schema, num_requests=6, seed=5))
    flat = as_impressions(batch)
    torch.manual_seed(0)
    model = models.get(name).Config().build(schema).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
    objective = objectives.BCE.Config().build(schema)
    found = []
    for each in (batch, flat, dedup_impressions(flat)):
        model.zero_grad()
        scores = model(each.inputs)
        loss = sum(objective({"model": scores}, each).values())
        loss.backward()
        gradients = {
            key: p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
            for key, p in model.named_parameters()
            if p.grad is not None
        }
        found.append((scores.logits.detach(), loss.detach(), gradients))
    for logits, loss, gradients in found[1:]:
        torch.testing.assert_close(logits, found[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss, found[0][1], rtol=1e-12, atol=1e-12)
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][2][key], rtol=1e-12, atol=1e-12)


def test_a_mean_of_request_means_is_not_the_impression_level_loss(
    schemas: Any, make_batch: Make
) -> None:
    batch = with_candidates(make_batch(schemas["rich"], num_requests=6, seed=5))
    flat = as_impressions(batch)

    def mean_of_means(b: RequestBatch) -> Tensor:
        parts = torch.tensor_split(b.evidence.weight, b.inputs.offsets[1:-1])
        return torch.stack([part.mean() for part in parts]).mean()

    assert abs(mean_of_means(batch) - mean_of_means(flat)) > 1e-3
    assert torch.isclose(batch.evidence.weight.mean(), flat.evidence.weight.mean())


REQUEST_SIDE = [
    "user.categorical", "user.dense", "user.multi", "user.vectors",
    "context.categorical", "context.dense",
    "views.item_of", "views.age_ms", "views.categorical", "views.dense", "buys.item_of",
    "evidence.user", "evidence.time",
]  # fmt: skip


@pytest.mark.parametrize("place", REQUEST_SIDE)
def test_a_row_that_differs_anywhere_stays_apart(
    place: str, schemas: Any, make_batch: Make
) -> None:
    batch = make_batch(schemas["rich"], num_requests=1, max_candidates=1, seed=2)
    four = batch.select(torch.zeros(4, dtype=torch.int64))
    assert dedup_impressions(four).num_requests == 1
    owner, name = place.split(".")
    inputs, evidence = four.inputs, four.evidence
    holder: Any = {"user": inputs.user, "context": inputs.context, "evidence": evidence}.get(owner)
    holder = inputs.history[owner] if holder is None else holder
    value = getattr(holder, name)
    value = value[0] if isinstance(value, tuple) else value
    values = value.values if isinstance(value, Jagged) else value
    at = int(value.offsets[2]) if isinstance(value, Jagged) else 2
    if isinstance(value, Jagged) and at == int(value.offsets[3]):
        pytest.skip("this draw has no such value")
    values.view(values.shape[0], -1)[at, 0] += 1
    merged = dedup_impressions(four)
    assert merged.evidence.row.tolist() == [0, 0]
    assert merged.inputs.offsets.tolist() == [0, 3, 4]


def test_a_history_that_is_a_prefix_stays_apart(schemas: Any, make_batch: Make) -> None:
    batch = make_batch(schemas["history"], num_requests=1, max_candidates=1, seed=2)
    two = batch.select(torch.zeros(2, dtype=torch.int64))
    (history,) = two.inputs.history.values()
    ends = history.item_of.offsets
    cut = torch.cat([ends[:2], ends[2:] - 1])
    shorter = dataclasses.replace(
        history,
        **{
            f.name: Jagged(getattr(history, f.name).values[:-1], cut)
            for f in dataclasses.fields(history)
        },
    )
    inputs = dataclasses.replace(two.inputs, history=dict.fromkeys(two.inputs.history, shorter))
    assert dedup_impressions(RequestBatch(inputs, two.evidence)).num_requests == 2


def test_a_key_keeps_equal_rows_apart_and_never_joins_unequal_ones(
    schemas: Any, make_batch: Make
) -> None:
    batch = with_candidates(make_batch(schemas["rich"], num_requests=5, seed=1))
    twice = batch.select(torch.arange(batch.num_requests).repeat(2))
    key = torch.arange(2 * batch.num_requests) // batch.num_requests
    assert dedup_impressions(twice).num_requests == batch.num_requests
    assert dedup_impressions(twice, key).num_requests == 2 * batch.num_requests
    assert dedup_impressions(twice, torch.zeros_like(key)).num_requests == batch.num_requests


def test_equal_hashes_do_not_merge_rows(
    schemas: Any, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_for_all(*keys: Any) -> np.ndarray[Any, Any]:
        return np.zeros(np.broadcast_shapes(*(np.shape(k) for k in keys)), dtype=np.uint64)

    batch = with_candidates(make_batch(schemas["rich"], num_requests=9, seed=4))
    monkeypatch.setattr(dedup, "hash64", one_for_all)
    assert same(dedup_impressions(as_impressions(batch)), batch)


def _columns(rows: list[tuple[int, list[int], list[int]]]) -> Columns:
    """Rows of (user, history, candidates)."""

    def group(lists: list[list[int]]) -> Group:
        ends = np.cumsum([0, *map(len, lists)])
        return Group(ends, {"item": np.array([x for one in lists for x in one], dtype=np.int32)})

    user = np.array([r[0] for r in rows], dtype=np.int32)
    score = np.where(user == 0, np.nan, user).astype(np.float32)
    return Columns(
        {"row": np.arange(len(rows)), "user": user, "score": score},
        {"history.h": group([r[1] for r in rows]), "candidates": group([r[2] for r in rows])},
    )


LISTS = st.lists(st.integers(0, 2), max_size=3)


@given(st.lists(st.tuples(st.integers(0, 2), LISTS, LISTS), max_size=30))
def test_columns_merge_as_a_dictionary_would(rows: list[tuple[int, list[int], list[int]]]) -> None:
    wanted: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for user, history, candidates in rows:
        wanted.setdefault((user, tuple(history)), []).extend(candidates)
    merged = dedup_columns(_columns(rows))
    history, candidates = merged.groups["history.h"], merged.candidates
    found = [
        (
            (int(user), tuple(history.slice(r, r + 1).values["item"].tolist())),
            candidates.slice(r, r + 1).values["item"].tolist(),
        )
        for r, user in enumerate(merged.scalars["user"])
    ]
    assert found == list(wanted.items())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_a_deduplicated_part_reads_the_same_candidates_in_fewer_requests(
    flat_log: Log, shuffle: bool, batch_size: int
) -> None:
    plain, merged = flat_log.all(), flat_log.all().deduplicated()
    assert merged.num_batches(batch_size) == plain.num_batches(batch_size)
    options = {"shuffle": shuffle, "seed": 1, "epoch": 2, "with_ids": True}
    whole = list(merged.columns(batch_size, **options))
    assert len(whole) == merged.num_batches(batch_size)
    for columns in whole:
        assert dedup_columns(columns) is columns

    def pairs(batches: list[Columns]) -> list[tuple[int, int, int, float]]:
        return sorted(
            (int(user), int(time), int(item), float(weight))
            for c in batches
            for user, time, item, weight in zip(
                np.repeat(c.scalars["user"], np.diff(c.candidates.offsets)),
                np.repeat(c.scalars["time"], np.diff(c.candidates.offsets)),
                c.candidates.values["item"],
                c.candidates.values["weight"],
                strict=True,
            )
        )

    assert pairs(whole) == pairs(list(plain.columns(batch_size, with_ids=True)))
    sizes = [int(c.candidates.offsets[-1]) for c in whole]
    assert set(sizes[:-1]) <= {batch_size}
    if batch_size == 100:
        assert sum(c.num_requests for c in whole) < plain.num_requests
    for start in range(len(whole) + 1):
        rest = list(merged.columns(batch_size, start=start, **options))
        assert [c.scalars["row"].tolist() for c in rest] == [
            c.scalars["row"].tolist() for c in whole[start:]
        ]


def test_rows_of_a_moment_meet_in_shuffled_batches(flat_log: Log) -> None:
    part = flat_log.all().deduplicated()
    whole = [c.scalars["row"] for c in part.columns(10**6, shuffle=True)]
    cut = [c.scalars["row"] for c in part.columns(8, shuffle=True)]
    # Only a request that a batch's end cuts in two is there twice.
    assert sum(map(len, cut)) - sum(map(len, whole)) < len(cut)
    other = next(part.columns(10**6, shuffle=True, epoch=1)).scalars["row"]
    assert other.tolist() != whole[0].tolist()
    assert sorted(other) == sorted(whole[0])


@pytest.fixture(scope="module")
def flat_log(make_log: Callable[..., Log], make_rows: Callable[..., Any], make_items: Any) -> Log:
    """One row per candidate of 25 requests, in a random order, row groups of four."""
    flat = []
    for row in make_rows(25, seed=7):
        for k in range(len(row["candidates.item"])):
            one = dict(row)
            for name, value in row.items():
                if name.startswith(("candidates.", "labels.")):
                    one[name] = [value[k]]
            flat.append(one)
    flat.sort(key=lambda row: row["time"])  # stable: rows of a request stay together
    return make_log(flat, make_items(7), group=8)
