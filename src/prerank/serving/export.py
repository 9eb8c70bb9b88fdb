"""From trained models to a bundle: written whole, and only if it says what the models say."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import prerank
from prerank import models
from prerank.batch import Inputs
from prerank.cascade import Cascade, Tier
from prerank.errors import CheckFailedError, InputError
from prerank.evaluation.cascades import same_transforms
from prerank.evaluation.runs import CascadeFile, TierFile
from prerank.log import Log, Part, RowRanges, Transforms
from prerank.log.format.files import (
    ITEM_STATS,
    ITEMS,
    SCHEMA,
    VOCAB,
    read_table,
    write_json,
    write_table,
)
from prerank.models.base import Model
from prerank.schema import ITEM_STATS_FEATURE
from prerank.serving.bundle import (
    CASCADE,
    FORMAT,
    MANIFEST,
    MODEL,
    SELFTEST,
    STATES,
    TIERS,
    TRANSFORMS,
    WEIGHTS,
    Manifest,
    TierModel,
    TransformFile,
    as_map,
    open_bundle,
)
from prerank.serving.durable import describe_files, durable_folder
from prerank.serving.engine import Engine
from prerank.serving.replay import requests_of
from prerank.serving.selftest import Vector, Vectors, agreement, difference
from prerank.serving.states import ItemStates, StateType, compute_states, flatten, pack
from prerank.training.checkpoint import save_tensors
from prerank.training.run import describe_class

__all__ = ["PARITY", "export"]

PARITY = 1e-4
"""Largest ``|engine - model| / (1 + |model|)`` of a logit with states of fp32: sums in another
order; measured ones are about 1e-6."""

# How far beyond what was measured on the stored requests a lossy state may be at a self-test.
_SLACK = 2.0


def export(
    scorer: Model | Cascade,
    folder: str | Path,
    log: Log,
    *,
    dtype: StateType = "fp32",
    part: str | None = None,
    num_checked: int = 64,
    num_stored: int = 8,
    name: str = "",
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a bundle.

    Parameters
    ----------
    scorer : Model or Cascade
        Trained.
    folder : path
        To make; it appears only when it is whole and every tier's parity was checked.
    log : Log
        Whose items are the catalogue, and whose requests are the check.
    dtype : {"fp32", "bf16", "int8"}
        Of the stored item states; the loss of agreement is reported.
    part : str, optional
        Part that the checked requests come from; default: the last one of the log, or all.
    num_checked, num_stored : int
        Requests on which parity is checked; those of them stored for self-tests.
    name : str
        For people.
    say : callable, optional
        Told what is being done.

    Returns
    -------
    dict
        ``version``, ``bytes``, ``items``, ``tiers``, ``checked``: per tier ``parity`` (largest
        relative difference of a logit from the model's own forward pass with fp32 states), and
        with the stored states ``difference`` and ``agreement`` of the cascade's first 50.

    Raises
    ------
    InputError
        ``folder`` exists; a model without transforms; a log that lacks its features.
    CheckFailedError
        A tier says something else than its model.

    Examples
    --------
    >>> export(cascade, "bundle", prerank.open_log("logs/ml1m"))  # doctest: +SKIP
    """
    cascade = scorer if isinstance(scorer, Cascade) else Cascade([Tier(scorer)])
    sets, of = _transforms(cascade)
    _check_servable(cascade, log)
    tell = say or (lambda _: None)
    rows = _rows(log, part, num_checked)
    with durable_folder(Path(folder)) as out:
        tell(f"writing the catalogue: {log.items.num_items:,} items")
        _write_log(log, out, sets)
        for k, transforms in enumerate(sets):
            _write_transforms(out, k, transforms, log)
        tell("computing item states")
        packed = [
            _write_tier(out, k, model, of[k], sets[of[k]].assembler(log).item_features, dtype)
            for k, model in enumerate(cascade.models)
        ]
        files = [TierFile.of(f"{TIERS}/{k}", tier) for k, tier in enumerate(cascade.tiers)]
        write_json(CascadeFile(files, cascade.reserves), out / CASCADE)
        tell(f"checking parity on {len(rows)} requests")
        vectors = _vectors(cascade, log, rows)
        full = [v for v in vectors if v.logits[0]]
        stored = full[:: max(1, len(full) // max(1, num_stored))]
        manifest = _manifest(cascade, log, name, dtype)
        _seal(out, manifest, Vectors(stored[:num_stored], 1.0, 0.0))
        checked = _check(out, vectors, packed, dtype)
        bound = max(PARITY, _SLACK * checked["difference"])
        least = max(0.0, checked["least_agreement"] - 0.1)
        _seal(
            out,
            msgspec.structs.replace(manifest, checked=checked),
            Vectors(stored[:num_stored], bound, least),
        )
        version = open_bundle(out, check=False).version
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "version": version,
        "bytes": size,
        "items": log.items.num_items,
        "tiers": manifest.tiers,
        "dtype": dtype,
        "checked": checked,
    }


def _transforms(cascade: Cascade) -> tuple[list[Transforms], list[int]]:
    """Return distinct sets of transforms and which one each tier uses."""
    sets: list[Transforms] = []
    of: list[int] = []
    for k, model in enumerate(cascade.models):
        mine = model.transforms
        if mine is None:
            raise InputError(
                f"export: the model of tier {k} ({type(model).__name__}) has no transforms; train "
                "it or load its run"
            )
        found = next((j for j, other in enumerate(sets) if same_transforms(other, mine)), len(sets))
        if found == len(sets):
            sets.append(mine)
        of.append(found)
    return sets, of


def _check_servable(cascade: Cascade, log: Log) -> None:
    for k, tier in enumerate(cascade.tiers):
        if tier.router in ("random", "oracle") and tier.forward is not None:
            raise InputError(
                f"export: tier {k} routes by '{tier.router}', which only evaluation can; use score"
            )
    if "version" in log.schema.streams:
        raise InputError("export: a history stream is called 'version', which requests reserve")
    reserves = cascade.reserves
    if reserves is not None:
        for name, given in (("pinned", reserves.pinned), ("new", reserves.new_days)):
            if not given and any(rule.of == name for rule in reserves.rules):
                raise InputError(f"export: reserves have a rule of '{name}' but do not say which")


def _rows(log: Log, part: str | None, num: int) -> list[int]:
    chosen: Part = log.all() if part is None and not log.parts else log[part or log.parts[-1]]
    if not chosen.num_requests:
        raise InputError(f"{log.path}: part '{chosen.name}' has no request to check with")
    pairs = chosen.rows.pairs
    every = np.concatenate([np.arange(a, b) for a, b in pairs])
    return [int(r) for r in np.unique(every[np.linspace(0, len(every) - 1, num).astype(int)])]


def _write_log(log: Log, out: Path, sets: Sequence[Transforms]) -> None:
    write_json(log.schema, out / SCHEMA)
    write_table(read_table(log.path / ITEMS).slice(0, log.items.num_items), out / ITEMS)
    if any(f.of == ITEM_STATS_FEATURE for f in log.schema.features):
        name = f"{ITEM_STATS}/part-00000.parquet"
        (out / ITEM_STATS).mkdir()
        write_table(read_table(log.path / name), out / name)
    (out / VOCAB).mkdir()
    features = [f for s in sets for f in s.schema.features]
    is_read = any(f.owner == "user" and f.name == "user" for f in features)
    names = {
        f.vocab for f in log.schema.features if f.stored and f.kind in ("categorical", "multi")
    }
    for vocab in sorted((names | ({"user"} if is_read else set())) - {"item"}):
        log.vocabulary(vocab).save(out / VOCAB / f"{vocab}.parquet")


def _write_transforms(out: Path, k: int, transforms: Transforms, log: Log) -> None:
    folder = out / TRANSFORMS
    folder.mkdir(exist_ok=True)
    maps = transforms.assembler(log).maps
    sizes = {name: log.schema.size(name) for name in maps}
    save_tensors(
        {name: as_map(rows[: sizes[name]]) for name, rows in maps.items()},
        folder / f"{k}.safetensors",
    )
    write_json(
        TransformFile(transforms.schema, transforms.dense, transforms.max_history),
        folder / f"{k}.json",
    )


def _write_tier(
    out: Path, k: int, model: Model, transforms: int, features: Any, dtype: StateType
) -> Any:
    folder = out / TIERS / str(k)
    folder.mkdir(parents=True)
    described = describe_class(model, models.TABLE, "prerank.models")
    write_json(TierModel(described, transforms), folder / MODEL)
    save_tensors(model.state_dict(), folder / WEIGHTS)
    states = compute_states(model, features)
    save_tensors(pack(states, dtype), folder / STATES)
    return states


def _manifest(cascade: Cascade, log: Log, name: str, dtype: StateType) -> Manifest:
    return Manifest(
        kind="prerank-bundle",
        format=FORMAT,
        versions={
            "prerank": prerank.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        name=name,
        made_ms=int(time.time() * 1000),
        dtype=dtype,
        num_items=log.items.num_items,
        tiers=[tier.describe() for tier in cascade.tiers],
        checked={},
        files={},
    )


def _seal(out: Path, manifest: Manifest, vectors: Vectors) -> None:
    """Write what is written last."""
    write_json(vectors, out / SELFTEST)
    files = describe_files(out, but=(MANIFEST,))
    write_json(msgspec.structs.replace(manifest, files=files), out / MANIFEST)


@torch.inference_mode()
def _vectors(cascade: Cascade, log: Log, rows: list[int]) -> list[Vector]:
    """Return the requests and what the models' own forward pass and the cascade say of them."""
    part = Part(log, RowRanges.of(np.array(rows)), "checked")
    requests = requests_of(log, rows)
    found = []
    for columns, request in zip(part.columns(1), requests, strict=True):
        inputs: list[Inputs] = []
        for model in cascade.models:
            assert model.transforms is not None
            inputs.append(model.transforms.batch(columns, log).inputs)
        if not inputs[0].num_candidates:
            found.append(Vector(request, [[] for _ in inputs], []))
            continue
        logits = [
            model(own).logits.tolist() for model, own in zip(cascade.models, inputs, strict=True)
        ]
        order: list[Any] = []
        if cascade.reserves is None:
            position = cascade.rank(inputs).position
            placed = position.argsort()[int((position < 0).sum()) :]
            ids: Any = request.candidates.ids
            order = [ids[i] for i in placed.tolist()]
        found.append(Vector(request, logits, order))
    return found


def _check(
    out: Path, vectors: Sequence[Vector], states: Sequence[Any], dtype: StateType
) -> dict[str, Any]:
    """Compare the bundle with its models, with exact states and with those stored."""
    bundle, config = open_bundle(out, check=False), Engine.Config(dtype="fp32", cache_bytes=0)
    unpacked = [
        ItemStates(own.shape, flatten(rows))
        for own, rows in zip(bundle.states, states, strict=True)
    ]
    exact = Engine(bundle if dtype == "fp32" else replace(bundle, states=unpacked), config)
    parity = _differences(exact, vectors)
    for k, worst in enumerate(parity):
        if not worst <= PARITY:
            name = type(exact.cascade.models[k]).__name__
            raise CheckFailedError(
                f"export: tier {k} ({name}) differs from its model by {worst:.2g} (relative; at "
                f"most {PARITY:.0e}); its score depends on more than its states and pairs"
            )
    stored = Engine(bundle, config)
    shares = [agreement(stored.rank(v.request).ids, v.order) for v in vectors if v.order]
    return {
        "requests": len(vectors),
        "parity": parity,
        "difference": max(_differences(stored, vectors)),
        "agreement": float(np.mean(shares)) if shares else 1.0,
        "least_agreement": float(np.min(shares)) if shares else 1.0,
    }


def _differences(engine: Engine, vectors: Sequence[Vector]) -> list[float]:
    worst = [0.0] * len(engine.cascade.tiers)
    for vector in vectors:
        if not vector.logits[0]:
            continue
        pairs = zip(engine.scores(vector.request), vector.logits, strict=True)
        for k, (found, expected) in enumerate(pairs):
            worst[k] = max(worst[k], difference(found.numpy(), expected))
    return worst
