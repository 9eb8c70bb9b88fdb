"""Diagnosis of one batch: one forward pass, then one backward pass per source and side."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from prerank.batch import POSITIVE, RequestBatch, Scores
from prerank.models.base import Model
from prerank.objectives.base import Objective, local_weight
from prerank.training.diagnosis.gram import gram_matrices
from prerank.training.diagnosis.pulls import Pulls, split_pulls
from prerank.training.precision import Precision, run_model
from prerank.training.validate import MODEL

__all__ = ["diagnose"]


def diagnose(
    model: Model,
    objective: Objective,
    batch: RequestBatch,
    *,
    weights: Mapping[str, float] | None = None,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """Measure what each source of negatives does to a model on one batch.

    The model is run in eval mode (no dropout) and afterwards has the mode it had; neither weights,
    ``.grad`` nor random generators change. The loss of a process's own batch is differentiated,
    with no exchange between processes, and only what reaches parameters through the logits.

    Parameters
    ----------
    model : Model
        On the device of the batch.
    objective : Objective
        Any. Parts named after a source (``nce/rank``) are its contrast. Where the parts are not
        per source (``bce/engaged``) a source's contrast is the push on its candidates plus a share
        of the pull on positives, in proportion to its part of all ``|dL/ds|`` on negatives
        (inferred: near equilibrium push and pull balance).
    batch : RequestBatch
        Some requests.
    weights : mapping of str to float, optional
        Factors that a combine rule gives to parts (``nce/rank``) or sources (``rank``); default 1.
    precision : {"fp32", "bf16"}
        Of the forward pass.

    Returns
    -------
    dict of str to float
        With ``W`` = ``dense`` or ``table``, ``A`` a source, ``A:B`` two of them, the harder one
        first; keys of what does not exist in this batch are left out:

        ``requests/A``, ``negatives/A``
            How many the loss reaches.
        ``logit/A``, ``logit/positive``
            Mean score over all members, of the first task that the loss reads.
        ``per_sample/A``
            Mean ``|dL/ds|`` over the negatives reached.
        ``mass/A``
            Share of the sum of ``|dL/ds|`` over negatives.
        ``norm/W/contrast/A``, ``norm/W/negative/A``, ``norm/W/total``
            L2 norms.
        ``dominance/W/A``
            ``<g_A, g_total> / |g_total|^2`` of contrasts; over sources (and what no source
            causes) they add up to 1.
        ``cos/W/A:B``, ``similarity/W/A:B``
            Cosine and magnitude similarity of contrasts.

    Examples
    --------
    >>> import tempfile
    >>> import pyarrow as pa
    >>> from prerank.log import Transforms, open_log, write_log
    >>> from prerank.models.two_tower import TwoTower
    >>> from prerank.objectives.bce import BCE
    >>> from prerank.schema import Feature, Label, Schema
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> schema = Schema(features=(item,), labels=(Label(name="click"),))
    >>> requests = pa.table(
    ...     {
    ...         "request_id": ["a"],
    ...         "user": [1],
    ...         "time": [1_700_000_000_000],
    ...         "candidates.item": [[1, 2, 3]],
    ...         "candidates.stage": [["exposed", "exposed", "rank"]],
    ...         "labels.click": [[1.0, 0.0, None]],
    ...     }
    ... )
    >>> path = tempfile.mkdtemp() + "/log"
    >>> _ = write_log(path, schema, [requests])
    >>> part = open_log(path).all()
    >>> model = TwoTower.Config().build(part.log.schema)
    >>> model.transforms = Transforms.fit(part)
    >>> batch = next(iter(part.batches(model.transforms, 1)))
    >>> found = diagnose(model, BCE.Config().build(part.log.schema), batch)
    >>> found["negatives/exposed"], found["negatives/rank"], found["negatives/random"]
    (1.0, 1.0, 0.0)
    """
    source, names = batch.evidence.source, model.schema.source_names
    with _quiet(model, objective), torch.enable_grad():
        scores = run_model(model, batch.inputs, precision)
        leaf = scores.logits.detach().requires_grad_()
        of_leaf = {MODEL: Scores(leaf, scores.extra)}
        parts = objective(of_leaf, batch)
        negative_side = getattr(objective, "negative_side", None)
        # Its scalars sum several parts, so weights of parts cannot be put on them.
        sides = negative_side(of_leaf, batch) if negative_side and not weights else None
        pulls = split_pulls(parts, leaf, source, names, weights, sides)
        values = _at_scores(pulls, batch, leaf.detach(), names)
        if not pulls.sources:
            return values
        rows, mix = _rows(pulls)
        negative = [pulls.negative[name] for name in pulls.sources]
        products = gram_matrices(model, scores.logits, [*rows, *negative])
    for where, gram in zip(("dense", "table"), products, strict=True):
        mixed = mix @ gram.cpu()[: len(rows), : len(rows)] @ mix.T
        sides = gram.cpu().diagonal()[len(rows) :]
        values |= _geometry(mixed, sides, pulls.sources, where)
    return values


@contextlib.contextmanager
def _quiet(model: Model, objective: Objective) -> Iterator[None]:
    """Put the model into eval mode; let the objective divide by this batch alone and forget it."""
    was_training, normaliser = model.training, getattr(objective, "normaliser", None)
    model.eval()
    if normaliser is not None:
        objective.normaliser = local_weight
    try:
        with getattr(objective, "paused", contextlib.nullcontext)():
            yield
    finally:
        model.train(was_training)
        if normaliser is not None:
            objective.normaliser = normaliser


def _rows(pulls: Pulls) -> tuple[list[Tensor], Tensor]:
    """Return pulls to send back, and how contrasts (and a last row, the rest) are made of them."""
    idle = [own for name, own in pulls.own.items() if name not in pulls.sources]
    rows = [pulls.own[name] for name in pulls.sources]
    rows += [*pulls.positive.values(), torch.stack([pulls.other, *idle]).sum(0)]
    size = len(pulls.sources)
    mix = torch.eye(len(rows), dtype=torch.float64)
    for column, kind in enumerate(pulls.positive, start=size):
        share = pulls.shares[kind]
        if share:
            mix[column, column] = 0.0
            mix[:size, column] = torch.tensor(
                [share[name] for name in pulls.sources], dtype=torch.float64
            )
    return rows, mix


def _at_scores(
    pulls: Pulls, batch: RequestBatch, logits: Tensor, names: tuple[str, ...]
) -> dict[str, float]:
    """Return counts and everything that needs no parameters."""
    values: dict[str, float] = {}
    mass = {name: float(pull.abs().sum()) for name, pull in pulls.negative.items()}
    read = torch.stack([*pulls.negative.values()]).ne(0).any(0).any(0)
    column = logits[:, int(read.byte().argmax())]
    for code, name in [*enumerate(names), (POSITIVE, "positive")]:
        is_member = batch.evidence.source == code
        if bool(is_member.any()):
            values[f"logit/{name}"] = float(column[is_member].double().mean())
        if name not in mass:
            continue
        is_reached = (pulls.negative[name] != 0).any(1)
        number = int(is_reached.sum())
        requests = torch.unique(batch.inputs.request_of[is_reached]).numel()
        values[f"requests/{name}"] = float(requests)
        values[f"negatives/{name}"] = float(number)
        if number:
            values[f"per_sample/{name}"] = mass[name] / number
            values[f"mass/{name}"] = mass[name] / sum(mass.values())
    return values


def _geometry(
    gram: Tensor, negative: Tensor, sources: tuple[str, ...], where: str
) -> dict[str, float]:
    """Turn inner products into norms, angles and shares; the last rows are no sources."""
    values: dict[str, float] = {}
    with_total, total = gram.sum(1), float(gram.sum())
    # Products of contrasts that cancel may come out a rounding error below 0.
    norms = gram.diagonal().clamp(min=0.0).sqrt()
    if not bool(norms.any()):
        return values  # a model without tables, or without anything else
    values[f"norm/{where}/total"] = max(total, 0.0) ** 0.5
    for k, name in enumerate(sources):
        values[f"norm/{where}/contrast/{name}"] = float(norms[k])
        values[f"norm/{where}/negative/{name}"] = float(negative[k].clamp(min=0.0).sqrt())
        if total > 0:
            values[f"dominance/{where}/{name}"] = float(with_total[k]) / total
    for (a, first), (b, second) in itertools.combinations(enumerate(sources), 2):
        x, y = float(norms[a]), float(norms[b])
        if x > 0 and y > 0:
            cosine = float(gram[a, b]) / (x * y)
            values[f"cos/{where}/{first}:{second}"] = min(max(cosine, -1.0), 1.0)
            values[f"similarity/{where}/{first}:{second}"] = 2 * x * y / (x * x + y * y)
    return values
