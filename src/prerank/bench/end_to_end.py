"""From Parquet to weights: training on request rows beside training on flat impressions.

Every way trains the same model from the same initial weights on the same impressions, as many per
update, with learning rates tuned alike, and is judged by the loss on the same validation requests.
The ways take turns, a few updates each, so that they share the machine's moods.
CPU time of everything counts: decoding, ordering, transforms, forward, backward, optimiser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prerank import models, objectives
from prerank.bench.layouts import Layout, request_bytes, write_layout
from prerank.bench.machine import describe_machine
from prerank.config import from_values
from prerank.log import Log, Part, RowRanges, Transforms, open_log
from prerank.models import Model
from prerank.training import FitConfig
from prerank.training.combine import Sum
from prerank.training.optim import build_optimisers
from prerank.training.validate import MODEL, validate

__all__ = ["PHASES", "WAYS", "bench_end_to_end", "impressions_to_loss"]

WAYS: dict[str, Layout] = {"requests": "requests", "deduped": "sorted", "impressions": "shuffled"}
"""Ways to train and the layout each reads.

``requests``: request rows. ``deduped``: flat rows, those of a request together, merged batch by
batch (RecD). ``impressions``: flat rows in random order, one request side for each.
"""
PHASES = ("read", "transform", "forward", "backward", "optimiser")

_CLOSE = 1.001  # of the best loss: the last bits of a flat course say nothing about speed
_END = object()
_TURN = 8192  # impressions of one way before it is the next one's turn
_TABLE_RATE = 50.0  # learning rate of tables over that of the dense part, as FitConfig has it


@dataclass(slots=True)
class _Course:
    """One training: losses on the way and CPU seconds by phase."""

    lr: float
    losses: list[tuple[int, float]] = field(default_factory=list)  # impressions, validation loss
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    num_impressions: int = 0
    num_requests: int = 0
    num_updates: int = 0

    @property
    def per_impression(self) -> float:
        """CPU seconds of everything per impression."""
        return sum(self.seconds.values()) / self.num_impressions

    @property
    def best(self) -> float:
        """Least validation loss."""
        return min(loss for _, loss in self.losses)

    @classmethod
    def mean(cls, courses: Sequence[_Course]) -> _Course:
        """Average losses over seeds, add up costs."""
        points = zip(*(course.losses for course in courses), strict=True)
        return cls(
            courses[0].lr,
            [(at[0][0], float(np.mean([loss for _, loss in at]))) for at in points],
            {phase: sum(course.seconds[phase] for course in courses) for phase in PHASES},
            sum(course.num_impressions for course in courses),
            sum(course.num_requests for course in courses),
            sum(course.num_updates for course in courses),
        )


def impressions_to_loss(losses: Sequence[tuple[int, float]], target: float) -> float | None:
    """Return after how many impressions the loss first was as low, or None.

    Between two evaluations the loss is taken to fall in a straight line.

    Examples
    --------
    >>> impressions_to_loss([(0, 0.7), (100, 0.5), (200, 0.6)], 0.6)
    50.0
    """
    before = losses[0]
    for at in losses:
        if at[1] <= target:
            fall = before[1] - at[1]
            share = (before[1] - target) / fall if fall > 0 else 1.0
            return before[0] + share * (at[0] - before[0])
        before = at
    return None


def bench_end_to_end(
    log: Log,
    folder: str | Path,
    *,
    model_names: Sequence[str] = ("hap_light", "din"),
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    per_request: Sequence[int] = (8, 16),
    impressions_per_update: int = 1024,
    epochs: int = 1,
    evaluations: int = 5,
    rates: Sequence[float] = (2e-3, 4e-3, 8e-3),
    num_requests: int | None = None,
    max_history: int = 100,
    ways: Sequence[str] = tuple(WAYS),
    seeds: Sequence[int] = (0, 1),
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train every model in every way and compare CPU time at equal validation loss.

    Parameters
    ----------
    log : Log
        With parts ``train`` and ``valid``; its candidates are thinned out to ``per_request``.
    folder : path
        Where the three layouts go; those of an earlier call are used again.
    model_names, configs
        Models by name, and values of their configurations that differ from the defaults.
    per_request : sequence of int
        Impressions of a request; one comparison each.
    impressions_per_update : int
        Candidates of an update in every way.
    epochs, evaluations : int
        Passes over the training part, evaluations per pass.
    rates : sequence of float
        Learning rates of the dense part to try in every way; tables learn 50 times as fast.
    num_requests : int, optional
        Train on the first so many requests only.
    max_history : int
        Events that are stored and read of every history.
    seeds : sequence of int
        Of weights and order; losses are averaged over them.
    say : callable
        Takes a line of progress now and then.

    Returns
    -------
    dict
        ``machine``; ``rows``: one per model, impressions per request, way, with the bytes read,
        the best learning rate and loss, CPU microseconds per impression by phase (medians over
        rates), impressions and CPU seconds to ``target``, 0.1 % above the best loss of the worst
        way; ``ratios``: CPU seconds of the other ways over ``requests``, ``end_to_end/din/k8/WAY``
        to equal loss and ``.../per_impression``; ``courses``: losses of every training.
    """
    found: dict[str, Any] = {"machine": describe_machine(), "rows": [], "ratios": {}, "courses": []}
    found |= {
        "impressions_per_update": impressions_per_update,
        "epochs": epochs,
        "seeds": list(seeds),
    }
    transforms: Transforms | None = None
    for k in per_request:
        parts = _parts(log, Path(folder), k, max_history, ways, num_requests)
        transforms = transforms or Transforms.fit(parts["requests"], max_history=max_history)
        for name in model_names:
            values = dict((configs or {}).get(name, {}))
            courses: dict[str, list[_Course]] = {way: [] for way in ways}
            for lr in rates:
                found_by: dict[str, list[_Course]] = {way: [] for way in ways}
                for seed in seeds:
                    racing = {}
                    for way in ways:
                        torch.manual_seed(seed)
                        model = _model(name, values, log)
                        model.transforms = transforms
                        size = impressions_per_update // (k if way == "requests" else 1)
                        part = parts[WAYS[way]]
                        part = part.deduplicated() if way == "deduped" else part
                        course = _Course(lr)
                        found_by[way].append(course)
                        options = (size, epochs, evaluations, seed)
                        racing[way] = _train(course, model, part, parts["valid"], *options)
                    _take_turns(racing)
                for way, runs in found_by.items():
                    mean = _Course.mean(runs)
                    courses[way].append(mean)
                    say(
                        f"{name} k={k} {way} lr={lr:g}: {1e6 * mean.per_impression:.1f} us per "
                        f"impression, best loss {mean.best:.4f}"
                    )
            rows = _rows(name, k, courses, {w: request_bytes(parts[WAYS[w]].log) for w in ways})
            found["rows"] += rows
            found["ratios"] |= _ratios(rows)
            for way, runs in courses.items():
                found["courses"] += [
                    {"model": name, "k": k, "way": way, "lr": run.lr, "losses": run.losses}
                    for run in runs
                ]
    return found


def _parts(
    log: Log, folder: Path, k: int, max_history: int, ways: Sequence[str], num: int | None
) -> dict[str, Part]:
    train = log["train"]
    rows = RowRanges.of(train.rows.within(0, log.num_requests)[:num])
    sources = {"train": Part(log, rows, "train"), "valid": log["valid"]}
    parts: dict[str, Part] = {}
    wanted = [(layout, layout, "train") for layout in {"requests", *(WAYS[way] for way in ways)}]
    for name, layout, part in [*wanted, ("valid", "requests", "valid")]:
        source = sources[part]
        out = folder / f"{name}-{source.num_requests}x{k}-{max_history}"
        if not out.is_dir():
            write_layout(source, out, layout, per_request=k, max_history=max_history)
        parts[name] = open_log(out).all()
    return parts


def _model(name: str, values: dict[str, Any], log: Log) -> Model:
    kind: Any = models.get(name)
    model: Model = from_values(kind.Config, values, where=f"end_to_end: {name}").build(log.schema)
    return model


def _take_turns(racing: dict[str, Iterator[None]]) -> None:
    while racing:
        ended = [way for way, turns in racing.items() if next(turns, _END) is _END]
        racing = {way: turns for way, turns in racing.items() if way not in ended}


def _train(
    course: _Course,
    model: Model,
    part: Part,
    valid: Part,
    batch_size: int,
    epochs: int,
    evaluations: int,
    seed: int,
) -> Iterator[None]:
    """Train and evaluate, a turn at a time; the clock stands still while evaluating."""
    assert model.transforms is not None
    lr, turns = course.lr, 1
    objective = objectives.BCE.Config().build(model.schema)
    optimisers = build_optimisers(model, FitConfig(lr=lr, table_lr=_TABLE_RATE * lr))
    assembler = model.transforms.assembler(part.log)
    num_batches = part.num_batches(batch_size)
    marks = {round(num_batches * (i + 1) / evaluations) for i in range(evaluations)}

    def evaluate() -> None:
        loss = validate(model, valid, objective, Sum(), batch_size=256)["loss"]
        course.losses.append((course.num_impressions, loss))

    evaluate()
    for epoch in range(epochs):
        batches = part.columns(batch_size, seed=seed, epoch=epoch, shuffle=True)
        for number in range(1, num_batches + 1):
            model.train()
            laps = [time.process_time()]
            columns = next(batches)
            laps.append(time.process_time())
            batch = assembler.batch(columns)
            laps.append(time.process_time())
            for optimiser in optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            loss = sum(objective({MODEL: model(batch.inputs)}, batch).values(), torch.zeros(()))
            laps.append(time.process_time())
            loss.backward()  # type: ignore[no-untyped-call]
            laps.append(time.process_time())
            for optimiser in optimisers.values():
                optimiser.step()
            laps.append(time.process_time())
            for phase, seconds in zip(PHASES, np.diff(laps), strict=True):
                course.seconds[phase] += float(seconds)
            course.num_impressions += batch.num_candidates
            course.num_requests += batch.num_requests
            course.num_updates += 1
            if number in marks:
                evaluate()
            if course.num_impressions >= turns * _TURN:
                turns += 1
                yield


def _rows(
    name: str, k: int, courses: Mapping[str, list[_Course]], num_bytes: Mapping[str, int]
) -> list[dict[str, Any]]:
    target = _CLOSE * max(min(run.best for run in runs) for runs in courses.values())
    rows = []
    for way, runs in courses.items():
        reached = {run.lr: impressions_to_loss(run.losses, target) for run in runs}
        lr = min(reached, key=lambda rate: reached[rate] or float("inf"))
        needed = reached[lr]
        assert needed is not None  # the target is a loss that every way has reached
        cost = {
            phase: float(np.median([r.seconds[phase] / r.num_impressions for r in runs]))
            for phase in PHASES
        }
        total = float(np.median([r.per_impression for r in runs]))
        rows.append(
            {
                "model": name,
                "k": k,
                "way": way,
                "log_mb": num_bytes[way] / 1e6,
                "rows_per_update": runs[0].num_requests / runs[0].num_updates,
                "us_per_impression": {phase: 1e6 * value for phase, value in cost.items()},
                "us": 1e6 * total,
                "lr": lr,
                "best_loss": min(run.best for run in runs),
                "target": target,
                "impressions_to_target": needed,
                "cpu_s_to_target": needed * total,
            }
        )
    return rows


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    base = next(row for row in rows if row["way"] == "requests")
    ratios: dict[str, float] = {}
    for row in rows:
        if row is not base:
            key = f"end_to_end/{row['model']}/k{row['k']}/{row['way']}"
            ratios[key] = row["cpu_s_to_target"] / base["cpu_s_to_target"]
            ratios[f"{key}/per_impression"] = row["us"] / base["us"]
    return ratios
