"""A bundle on disk: all that an engine needs, and what proves that it is whole.

::

    BUNDLE/
      manifest.json         written last: versions, size and SHA-256 of every file, what was checked
      schema.json           of the log: features, stages, channels
      cascade.json          tiers with value, rule and reserves; ``run`` names the tier's folder
      vocab/NAME.parquet    raw values of categorical features
      items.parquet         raw ids and encoded features of the catalogue; item_stats/ beside it
      transforms/K.json     fitted dense transforms; K.safetensors: table row of each raw value
      tiers/K/              model.json, model.safetensors, items.safetensors (item states)
      selftest.json         raw requests and what the models said of them when they were exported
      segments/             items that came later (:mod:`prerank.serving.segments`)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from prerank import models
from prerank.cascade import Cascade
from prerank.config import from_values
from prerank.errors import InputError
from prerank.evaluation.runs import CascadeFile
from prerank.log.format.files import ITEMS, SCHEMA, VOCAB, FileEntry
from prerank.log.format.items import ItemTable
from prerank.log.format.vocab import Vocabulary
from prerank.log.inputs.assemble import Assembler
from prerank.log.inputs.dense import DenseFit
from prerank.models.base import Model
from prerank.schema import ITEM_STATS_FEATURE, Schema
from prerank.serving.durable import check_files, read_checked
from prerank.serving.encode import Encoder
from prerank.serving.selftest import Vectors
from prerank.serving.states import ItemStates, StateType, template
from prerank.training.checkpoint import load_tensors
from prerank.training.run import Description

__all__ = ["FORMAT", "Bundle", "Manifest", "TierModel", "TransformFile", "open_bundle"]

FORMAT = 1
"""Version of the layout above; another one is refused."""

MANIFEST, CASCADE, SELFTEST = "manifest.json", "cascade.json", "selftest.json"
TRANSFORMS, TIERS = "transforms", "tiers"
MODEL, WEIGHTS, STATES = "model.json", "model.safetensors", "items.safetensors"
_WHAT = "bundle"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of ``manifest.json``.

    Parameters
    ----------
    kind : str
        ``prerank-bundle``.
    format : int
        Version of the layout.
    versions : dict of str to str
        prerank, torch, python.
    name, made_ms
        A name for people; when it was made.
    dtype : {"fp32", "bf16", "int8"}
        Of the stored item states.
    num_items : int
        Rows of the catalogue.
    tiers : list of str
        The tiers in words.
    checked : dict
        What export measured: parity of each tier, loss of agreement by ``dtype``.
    files : dict of str to FileEntry
        All other files.
    """

    kind: str
    format: int
    versions: dict[str, str]
    name: str
    made_ms: int
    dtype: StateType
    num_items: int
    tiers: list[str]
    checked: dict[str, Any]
    files: dict[str, FileEntry]


class TransformFile(msgspec.Struct, frozen=True):
    """One set of fitted transforms: the schema of training, dense fits, length of histories."""

    schema: Schema
    dense: dict[str, DenseFit]
    max_history: int


class TierModel(msgspec.Struct, frozen=True):
    """A tier's model: class and configuration, and its set of transforms."""

    model: Description
    transforms: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle.

    Parameters
    ----------
    path : Path
    version : str
        Digest of its manifest.
    manifest : Manifest
    schema : Schema
        Of the log.
    cascade : Cascade
        With its models in eval mode.
    transforms_of : tuple of int
        Set of transforms of each tier.
    assemblers : list of Assembler
        One per set, over the bundle's own items.
    encoder : Encoder
    items : ItemTable
        The bundle's own.
    states : list of ItemStates
        One per tier, memory-mapped.
    selftest : Vectors
    """

    path: Path
    version: str
    manifest: Manifest
    schema: Schema
    cascade: Cascade
    transforms_of: tuple[int, ...]
    assemblers: list[Assembler]
    encoder: Encoder
    items: ItemTable
    states: list[ItemStates]
    selftest: Vectors


def read_manifest(path: Path) -> tuple[str, Manifest]:
    """Read a bundle's manifest and its version.

    Raises
    ------
    InputError
        No bundle there, one of another kind or layout.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no bundle there; make one with: prerank export RUN {path}")
    file = path / MANIFEST
    if not file.is_file():
        raise InputError(f"{path}: not a whole bundle ({MANIFEST} is missing); export it again")
    head = read_checked(file, dict[str, Any], _WHAT)
    if head.get("kind") != "prerank-bundle":
        raise InputError(f"{file}: not a bundle of prerank; give a folder that export wrote")
    if head.get("format") != FORMAT:
        made = head.get("versions")
        by = made.get("prerank", "?") if isinstance(made, dict) else "?"
        raise InputError(
            f"{file}: layout {head.get('format')!r:.20}, made by prerank {by:.20}; this one reads "
            f"layout {FORMAT}: export the run again"
        )
    version = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return version, read_checked(file, Manifest, _WHAT)


def open_bundle(path: str | Path, *, check: bool = True) -> Bundle:
    """Open a bundle.

    Parameters
    ----------
    path : path
        Its folder.
    check : bool
        Compare the SHA-256 of every file, not only their sizes.

    Raises
    ------
    InputError
        No bundle, or one that is truncated, altered or of another layout: one line that names the
        file.
    """
    path = Path(path)
    version, manifest = read_manifest(path)
    check_files(path, manifest.files, _WHAT, digests=check)
    for name in (SCHEMA, CASCADE, ITEMS, SELFTEST):
        if name not in manifest.files:
            raise InputError(f"{path / MANIFEST}: does not list '{name}'; it is no whole bundle")
    schema = read_checked(path / SCHEMA, Schema, _WHAT)
    items = ItemTable.load(path / ITEMS, schema)
    plan = read_checked(path / CASCADE, CascadeFile, _WHAT)
    tiers = [read_checked(path / tier.run / MODEL, TierModel, _WHAT) for tier in plan.tiers]
    sets = [_transforms(path, k) for k in range(1 + max(t.transforms for t in tiers))]
    assemblers = [
        Assembler(s.schema, schema, s.dense, maps, items, max_history=s.max_history)
        for s, maps in sets
    ]
    _check_stats(path, items, [s.schema for s, _ in sets])
    built: list[Model] = []
    states: list[ItemStates] = []
    for tier, file in zip(tiers, plan.tiers, strict=True):
        assembler = assemblers[tier.transforms]
        model = _model(path / file.run, tier, assembler.schema)
        shape = template(model, assembler.item_features)
        built.append(model)
        states.append(_states(path / file.run / STATES, shape, items.num_items))
    try:
        made = [file.build(model) for file, model in zip(plan.tiers, built, strict=True)]
        cascade = Cascade(made, plan.reserves)
    except InputError as error:
        raise InputError(f"{path / CASCADE}: {error}") from None
    return Bundle(
        path=path,
        version=version,
        manifest=manifest,
        schema=schema,
        cascade=cascade,
        transforms_of=tuple(t.transforms for t in tiers),
        assemblers=assemblers,
        encoder=Encoder(
            schema,
            _vocabularies(path, manifest, items),
            max_history=max(a.max_history for a in assemblers),
        ),
        items=items,
        states=states,
        selftest=read_checked(path / SELFTEST, Vectors, _WHAT),
    )


def _vocabularies(path: Path, manifest: Manifest, items: ItemTable) -> dict[str, Vocabulary]:
    found = {"item": items.ids}
    for name in manifest.files:
        folder, _, file = name.partition("/")
        if folder == VOCAB:
            vocab = file.removesuffix(".parquet")
            found[vocab] = Vocabulary.load(path / name, vocab)
    return found


def _transforms(path: Path, k: int) -> tuple[TransformFile, dict[str, Any]]:
    file = path / TRANSFORMS / f"{k}.json"
    maps = load_tensors(path / TRANSFORMS / f"{k}.safetensors")
    return read_checked(file, TransformFile, _WHAT), {n: t.numpy() for n, t in maps.items()}


def _model(folder: Path, tier: TierModel, schema: Schema) -> Model:
    where = f"{folder / MODEL}: model"
    kind: Any = models.get(tier.model.name)
    model: Model = from_values(kind.Config, tier.model.config, where=where).build(schema)
    try:
        model.load_state_dict(load_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = (lines[1] if len(lines) > 1 else lines[0]).strip()
        raise InputError(f"{folder / WEIGHTS}: does not fit the model ({reason})") from None
    return model.eval().requires_grad_(False)


def _states(file: Path, shape: Any, num_items: int) -> ItemStates:
    tensors: dict[str, Tensor] = load_tensors(file)
    try:
        states = ItemStates(shape, tensors)
        found = states.num_base
    except KeyError as error:
        raise InputError(
            f"{file}: no state {error}; it is not this model's: export again"
        ) from None
    if found != num_items:
        raise InputError(f"{file}: states of {found} items, expected {num_items}; export again")
    return states


def _check_stats(path: Path, items: ItemTable, schemas: list[Schema]) -> None:
    wanted = any(f.of == ITEM_STATS_FEATURE for s in schemas for f in s.features)
    if wanted and items.stats is None:
        raise InputError(f"{path / SCHEMA}: lacks the item statistics that a model reads")


def as_map(rows: Any) -> Tensor:
    """Return table rows as they are stored."""
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int32))
