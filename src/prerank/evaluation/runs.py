"""Folders to scorers: runs of one model, and cascades that name the runs of their tiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prerank.cascade import Cascade, Reserves, Tier
from prerank.cascade.values import forward_from_values, forward_to_values
from prerank.config import from_values
from prerank.errors import InputError
from prerank.log import Part, RowRanges
from prerank.log.format.files import write_json
from prerank.models.base import Model
from prerank.training import load_run, read_run

__all__ = ["CascadeFile", "TierFile", "group_seeds", "load_runs", "load_scorer", "save_cascade"]

_CASCADE = "cascade.json"


class TierFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tier of ``cascade.json``: a run's folder, relative to the file, and its rules.

    ``forward`` is a share, a count, or the values of a rule
    (:mod:`prerank.cascade.values`); the other fields are those of :class:`prerank.Tier`.
    """

    run: str
    forward: float | int | dict[str, Any] | None = None
    value: dict[str, float] = {}
    router: str = "score"
    cut: float | int | None = None
    merge: str | None = None
    tail: str = "append"

    @classmethod
    def of(cls, run: str, tier: Tier) -> TierFile:
        """Return the file's values of a tier whose model is the run."""
        rules = {name: getattr(tier, name) for name in ("router", "cut", "merge", "tail")}
        return cls(run, forward_to_values(tier.forward), dict(tier.value), **rules)

    def build(self, model: Model) -> Tier:
        """Make the tier.

        Raises
        ------
        InputError
            Rules that are unknown or do not fit together or the model.
        """
        forward = forward_from_values(self.forward, where="tier")
        rules: Any = {name: getattr(self, name) for name in ("router", "cut", "merge", "tail")}
        return Tier(model, forward, self.value, **rules)


class CascadeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Content of ``cascade.json``."""

    tiers: list[TierFile]
    reserves: Reserves | None = None


def save_cascade(
    folder: str | Path, tiers: Sequence[TierFile], reserves: Reserves | None = None
) -> None:
    """Write a cascade of trained runs as a folder that ``evaluate`` takes like a run."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(CascadeFile(list(tiers), reserves), folder / _CASCADE)


def load_scorer(folder: Path) -> Model | Cascade:
    """Load a run or a cascade.

    Raises
    ------
    InputError
        Neither is there, or it is damaged or incomplete.
    """
    file = _cascade_file(folder)
    if file is None:
        return load_run(folder)
    models = [load_run(folder / tier.run) for tier in file.tiers]
    try:
        pairs = zip(models, file.tiers, strict=True)
        return Cascade([tier.build(model) for model, tier in pairs], file.reserves)
    except InputError as error:
        raise InputError(f"{folder / _CASCADE}: {error}") from None


def _cascade_file(folder: Path) -> CascadeFile | None:
    """Return the cascade of a folder, None where there is none."""
    path = folder / _CASCADE
    if not path.is_file():
        return None
    try:
        values = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a cascade ({error}); write it again") from None
    try:
        return from_values(CascadeFile, values, where="cascade")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load_runs(
    folders: Sequence[Path], part: Part, *, allow_seen: bool = False
) -> dict[str, Model | Cascade]:
    """Load several runs or cascades to be evaluated on a part.

    Parameters
    ----------
    folders : sequence of Path
        Each is named by its last component, by the whole path where two share it.
    part : Part
        What they will be evaluated on.
    allow_seen : bool
        Accept a part that a run was trained on. Rows are only recognised within the log that a
        run was trained on, not in another log that holds the same requests.

    Raises
    ------
    InputError
        A folder that is no complete run, or given twice; rows of the part that a run was trained
        on.
    """
    names = [folder.name or str(folder) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise InputError(f"{name}: given twice; name each run once")
    if not allow_seen:
        for folder in folders:
            for run in _runs_of(folder):
                _refuse_seen(run, part)
    return {name: load_scorer(folder) for name, folder in zip(names, folders, strict=True)}


def group_seeds(folders: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """Group runs that differ in their seed only: group to seed to folder.

    A group is named by its model, numbered where several configurations share one.

    Raises
    ------
    InputError
        A cascade, or two runs of one configuration and seed.
    """
    groups: dict[bytes, dict[int, Path]] = {}
    models: dict[bytes, str] = {}
    for folder in folders:
        run = read_run(folder)
        rest = {name: value for name, value in run.fit.items() if name != "seed"}
        key = msgspec.json.encode([run.model, run.objective, run.combine, rest, run.parts])
        seed = int(run.fit.get("seed", 0))
        models[key] = run.model.name
        other = groups.setdefault(key, {}).setdefault(seed, folder)
        if other is not folder:
            raise InputError(f"{folder}: of the same configuration and seed {seed} as {other}")
    names: dict[str, dict[int, Path]] = {}
    for key, found in groups.items():
        name, number = models[key], 2
        while name in names:
            name, number = f"{models[key]}#{number}", number + 1
        names[name] = found
    return names


def _runs_of(folder: Path) -> list[Path]:
    file = _cascade_file(folder)
    return [folder] if file is None else [folder / tier.run for tier in file.tiers]


def _refuse_seen(folder: Path, part: Part) -> None:
    overlap = sum(
        RowRanges(np.array(trained.rows, dtype=np.int64)).overlap(part.rows)
        for trained in read_run(folder).seen
        if trained.log_id == part.log.schema.lineage.log_id
    )
    seen = min(overlap, part.num_requests)  # runs before it may have had the same rows
    if seen:
        raise InputError(
            f"{folder}: trained on {seen:,} of the {part.num_requests:,} requests of part "
            f"'{part.name}'; evaluate another part, or give --allow-seen"
        )
