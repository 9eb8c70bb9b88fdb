"""Random schemas and request batches for tests, loaded by ``tests/conftest.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from prerank.batch import POSITIVE, UNKNOWN, Evidence, Features, History, Inputs, RequestBatch
from prerank.jagged import Jagged, lengths_to_offsets
from prerank.schema import Feature, Kind, Label, Owner, Schema, Task

__all__ = ["SCHEMAS", "make_batch"]

_LABELS = (Label(name="click"), Label(name="buy"))


def _feature(owner: Owner, name: str, kind: Kind, **options: Any) -> Feature:
    return Feature(name=name, owner=owner, kind=kind, **options)


_ITEM = (
    _feature("item", "item", "categorical"),
    _feature("item", "category", "categorical"),
)
# Even sizes: flipping the lowest bit of an id gives another id of the same vocabulary.
_SIZES = {"item": 30, "category": 8, "user": 12, "tag": 10, "device": 4, "route": 6, "action": 4}

SCHEMAS: dict[str, Schema] = {
    # Only item ids: no user feature, no history, no context.
    "bare": Schema(features=_ITEM[:1], labels=_LABELS, vocabularies=_SIZES),
    "no_history": Schema(
        features=(
            *_ITEM,
            _feature("user", "user", "categorical"),
            _feature("context", "device", "categorical"),
            _feature("candidate", "route", "categorical"),
        ),
        labels=_LABELS,
        vocabularies=_SIZES,
    ),
    # History is all that is known of a user; events have no features of their own.
    "history": Schema(features=_ITEM, streams=("items",), labels=_LABELS, vocabularies=_SIZES),
    "dense": Schema(
        features=(
            _feature("item", "price", "dense"),
            _feature("item", "image", "vector", dim=3),
            _feature("user", "age", "dense"),
            _feature("context", "load", "dense"),
            _feature("candidate", "ctr", "dense"),
        ),
        labels=_LABELS,
    ),
    # Every owner with every kind the batch can hold, two streams, two tasks.
    "rich": Schema(
        features=(
            *_ITEM,
            _feature("item", "tags", "multi", vocabulary="tag"),
            _feature("item", "price", "dense"),
            _feature("item", "image", "vector", dim=3),
            _feature("user", "user", "categorical"),
            _feature("user", "likes", "multi", vocabulary="tag"),
            _feature("user", "age", "dense"),
            _feature("user", "taste", "vector", dim=2),
            _feature("context", "device", "categorical"),
            _feature("context", "hour", "categorical", transforms=("hour",)),
            _feature("context", "load", "dense"),
            _feature("candidate", "route", "categorical"),
            _feature("candidate", "ctr", "dense"),
            _feature("history", "action", "categorical", stream="views"),
            _feature("history", "watch", "dense", stream="views"),
        ),
        streams=("views", "buys"),
        labels=_LABELS,
        tasks=(Task(name="click", positive="click"), Task(name="buy", positive="buy")),
        vocabularies=_SIZES,
    ),
}


def make_batch(
    schema: Schema,
    *,
    num_requests: int = 7,
    num_items: int = 25,
    max_candidates: int = 6,
    max_history: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> RequestBatch:
    """Draw a batch: request 1 has no candidate, request 2 no history, when there are that many.

    Lengths are 1 to the maximum otherwise. About half the targets are known; sources cover all
    groups of the schema, positives and unknown ones.
    """
    rng = np.random.default_rng(seed)
    candidates_R = rng.integers(1, max_candidates + 1, num_requests)
    candidates_R[1:2] = 0
    lengths_R = torch.from_numpy(candidates_R)
    num_candidates = int(candidates_R.sum())
    inputs = Inputs(
        user=_features(schema, "user", num_requests, rng, dtype),
        context=_features(schema, "context", num_requests, rng, dtype),
        history={
            stream: _history(schema, stream, num_requests, num_items, max_history, rng, dtype)
            for stream in schema.streams
        },
        items=_features(schema, "item", num_items, rng, dtype),
        candidate=_features(schema, "candidate", num_candidates, rng, dtype),
        offsets=lengths_to_offsets(lengths_R),
        request_of=torch.arange(num_requests).repeat_interleave(lengths_R),
        item_of=torch.from_numpy(rng.integers(0, num_items, num_candidates)),
    )
    return RequestBatch(inputs, _evidence(schema, num_requests, num_candidates, rng))


def _ids(size: int, shape: Any, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(0, size, shape))


def _dense(num_rows: int, width: int, rng: np.random.Generator, dtype: torch.dtype) -> Tensor:
    missing = rng.random((num_rows, width)) < 0.2
    values = np.where(missing, 0.0, rng.normal(size=(num_rows, width)))
    return torch.from_numpy(np.concatenate([values, missing], axis=1)).to(dtype)


def _features(
    schema: Schema,
    owner: Owner,
    num_rows: int,
    rng: np.random.Generator,
    dtype: torch.dtype,
    stream: str = "",
) -> Features:
    columns = [
        # The items of a batch are unique, as far as there are ids.
        torch.from_numpy(rng.permutation(schema.size(f.vocab))[:num_rows])
        if (owner, f.name) == ("item", "item") and num_rows <= schema.size(f.vocab)
        else _ids(schema.size(f.vocab), num_rows, rng)
        for f in schema.of(owner, "categorical", stream)
    ]
    multi = []
    for f in schema.of(owner, "multi", stream):
        lengths = torch.from_numpy(rng.integers(0, 4, num_rows))
        multi.append(
            Jagged.from_lengths(_ids(schema.size(f.vocab), int(lengths.sum()), rng), lengths)
        )
    return Features(
        categorical=torch.stack(columns, 1) if columns else torch.zeros(num_rows, 0).long(),
        multi=tuple(multi),
        dense=_dense(num_rows, len(schema.of(owner, "dense", stream)), rng, dtype),
        vectors=tuple(
            torch.from_numpy(rng.normal(size=(num_rows, f.dim))).to(dtype)
            for f in schema.of(owner, "vector", stream)
        ),
    )


def _history(
    schema: Schema,
    stream: str,
    num_requests: int,
    num_items: int,
    max_history: int,
    rng: np.random.Generator,
    dtype: torch.dtype,
) -> History:
    lengths_R = rng.integers(1, max_history + 1, num_requests)
    lengths_R[2:3] = 0
    num_events = int(lengths_R.sum())
    lengths = torch.from_numpy(lengths_R)
    events = _features(schema, "history", num_events, rng, dtype, stream)
    ages = [np.sort(rng.integers(1, 10**9, n))[::-1] for n in lengths_R]
    return History(
        item_of=Jagged.from_lengths(_ids(num_items, num_events, rng), lengths),
        age_ms=Jagged.from_lengths(torch.from_numpy(np.concatenate([*ages, [0]])[:-1]), lengths),
        categorical=Jagged.from_lengths(events.categorical, lengths),
        dense=Jagged.from_lengths(events.dense, lengths),
    )


def _evidence(
    schema: Schema, num_requests: int, num_candidates: int, rng: np.random.Generator
) -> Evidence:
    num_tasks = len(schema.task_names)
    source = rng.integers(UNKNOWN, len(schema.sources), num_candidates)
    targets = rng.integers(0, 2, (num_candidates, num_tasks)).astype(np.float32)
    targets[rng.random(targets.shape) < 0.5] = np.nan
    targets[source == UNKNOWN] = np.nan
    engaged = np.where(source == POSITIVE, 1.0, np.where(source == UNKNOWN, np.nan, 0.0))

    def floats(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, num_candidates).astype(np.float32))

    return Evidence(
        row=torch.arange(num_requests),
        user=_ids(12, num_requests, rng),
        time=torch.from_numpy(np.sort(rng.integers(10**12, 2 * 10**12, num_requests))),
        stage=_ids(len(schema.stages), num_candidates, rng),
        source=torch.from_numpy(source),
        engaged=torch.from_numpy(engaged.astype(np.float32)),
        targets=torch.from_numpy(targets),
        item=_ids(28, num_candidates, rng),
        channel=torch.from_numpy(rng.integers(-1, 3, num_candidates)),
        weight=floats(0.5, 2.0),
        propensity=floats(0.1, 1.0),
        sample_prob=floats(0.1, 1.0),
        scored_online=torch.from_numpy(rng.random(num_candidates) < 0.5),
        labels={
            label.name: torch.from_numpy(rng.integers(0, 2, num_candidates).astype(np.float32))
            for label in schema.labels
        },
        ranks={stage: _ids(50, num_candidates, rng) for stage in schema.ranks},
        scores={name: floats(-2.0, 2.0) for name in schema.scores},
    )
