"""Warm start: a run goes on with tomorrow's data, on vocabularies that have grown.

What is known stays: rows of ids that the run knew, dense weights, fitted dense statistics. What is
new starts near what the run knows of ids it has not met: the unknown row plus a little noise.

Shapes: ``V`` rows of a vocabulary, ``D`` width of a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prerank.errors import InputError
from prerank.log import Part, Transforms
from prerank.log.format.vocab import UNKNOWN_ROW, Vocabulary
from prerank.models.base import Model
from prerank.nn.tables import FusedTables
from prerank.objectives.base import Objective
from prerank.rng import hash64, stream
from prerank.schema import NUM_RESERVED, Schema
from prerank.training.checkpoint import load_checkpoint
from prerank.training.combine import Combine, Sum
from prerank.training.config import FitConfig
from prerank.training.drift import Drift, measure_drift
from prerank.training.run import CHECKPOINTS, Origin, Run, load_run, read_run

__all__ = ["DRIFT", "Drift", "Start", "WarmStart", "warm_start"]

DRIFT = "drift.json"
_NOISE = stream("training/warm")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Start:
    """What ``fit`` needs to know of a warm start: where from, optimiser state, the drift report."""

    origin: Origin
    optimisers: dict[str, Tensor]
    drift: Drift


@dataclass(frozen=True)
class WarmStart:
    """A run and the new requests it is about to go on with.

    Parameters
    ----------
    folder : Path
        Of the run.
    run : Run
        Its description.
    model : Model
        The run's model, with its own transforms.
    part : Part
        The new requests.
    transforms : Transforms
        The run's, with vocabularies that know the new ids; dense statistics are the run's.
    fresh : Transforms
        Fitted on the new requests alone, for the drift report.
    """

    folder: Path
    run: Run
    model: Model
    part: Part
    transforms: Transforms
    fresh: Transforms

    @classmethod
    def of(cls, folder: str | Path, part: Part, *, min_count: int = 2) -> WarmStart:
        """Load a run and extend its vocabularies by a part of a log, its own or another.

        A new id gets a row of its own if the part has it ``min_count`` times.

        Raises
        ------
        InputError
            No complete run there; features or tasks of the log that are not the run's.
        """
        folder = Path(folder)
        model = load_run(folder)
        assert model.transforms is not None
        if not part.num_requests:
            raise InputError(f"{part.log.path}: part '{part.name}' has no request to train on")
        extended, fresh = _extend(model.transforms, part, folder, min_count)
        return cls(folder, read_run(folder), model, part, extended, fresh)

    @property
    def schema(self) -> Schema:
        """What to build the new model and its objective with."""
        return self.transforms.schema

    def drift(
        self, objective: Objective, *, combine: Combine | None = None, batch_size: int = 256
    ) -> Drift:
        """Compare the new requests with what the run was trained on."""
        return measure_drift(
            self.model,
            self.part,
            self.fresh,
            objective,
            combine or Sum(),
            trained=self.run.parts["train"],
            batch_size=batch_size,
        )

    @torch.no_grad()
    def fill(self, model: Model, *, noise_std: float = 0.01, seed: int = 0) -> None:
        """Give a new model the run's weights and the extended transforms.

        Raises
        ------
        InputError
            The model is of another shape than the run's.
        """
        if noise_std < 0:
            raise InputError(f"noise of new rows is {noise_std}; expected 0 or more")
        old, new = self.model.state_dict(), model.state_dict()
        tables = set()
        for number, (name, source, target) in enumerate(self._tables(model)):
            tables.add(f"{name}.weight")
            for k, (vocab, known) in enumerate(self._known(source, target).items()):
                rows, fresh_n = target.weight[target.rows_of(vocab)], _where(~known)
                before = source.weight[source.rows_of(vocab)]
                rows[: len(before)] = before
                generator = torch.Generator()
                generator.manual_seed(int(hash64(_NOISE, seed, number, k) >> np.uint64(1)))
                noise_nD = torch.randn(len(fresh_n), target.dim, generator=generator)
                rows[fresh_n] = (before[UNKNOWN_ROW] + noise_std * noise_nD).to(rows.dtype)
        for name in {**old, **new}:
            if name in tables:
                continue
            shapes = [tuple(s[name].shape) if name in s else None for s in (old, new)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{self.folder}: weight '{name}' is {shapes[0] or 'absent'} in the run, "
                    f"{shapes[1] or 'absent'} in this model; use the model of the run"
                )
            new[name].copy_(old[name])
        model.transforms = self.transforms

    def optimisers(self, model: Model, config: FitConfig) -> dict[str, Tensor]:
        """Return the state of the run's optimisers, grown: zeros for new rows.

        Raises
        ------
        InputError
            The run had other optimisers, or its checkpoints are gone.
        """
        for name in ("optimizer", "table_optimizer"):
            before, now = self.run.fit.get(name), getattr(config, name)
            if before != now:
                raise InputError(
                    f"{self.folder}: {name} was {before}, is {now}: its state cannot be kept; "
                    "use the run's, or reset the state"
                )
        best = self.run.report.get("best")
        step = best["step"] if best else self.run.report["steps"]
        found = load_checkpoint(self.folder / CHECKPOINTS, step).tensors
        state = {k: v for k, v in found.items() if not k.startswith("model:")}
        for name, source, target in self._tables(model):
            for key in [k for k in state if k.startswith(f"table:{name}.weight/")]:
                if state[key].dim() == 0:  # a count of updates
                    continue
                old_V = state[key]
                grown_V = old_V.new_zeros(len(target.weight), *old_V.shape[1:])
                for vocab, known in self._known(source, target).items():
                    kept_n = _where(known)
                    rows = grown_V[target.rows_of(vocab)]
                    rows[kept_n] = old_V[source.rows_of(vocab)][kept_n]
                state[key] = grown_V
        return state

    def _tables(self, model: Model) -> Iterator[tuple[str, FusedTables, FusedTables]]:
        """Yield every name of tables with the run's and the new ones."""
        mine = dict(self.model.named_modules(remove_duplicate=False))
        for name, target in model.named_modules(remove_duplicate=False):
            source = mine.get(name)
            if not (isinstance(target, FusedTables) and isinstance(source, FusedTables)):
                continue
            same = source.vocabularies == target.vocabularies and source.dim == target.dim
            sizes = {v: self.transforms.schema.size(v) for v in target.vocabularies}
            if not same or [*map(int, target.sizes)] != [*sizes.values()]:
                raise InputError(
                    f"{self.folder}: tables '{name}' hold {source}, in this model {target}; use "
                    "the model of the run, built with the schema of the warm start"
                )
            yield name, source, target

    def _known(self, source: FusedTables, target: FusedTables) -> dict[str, Bools]:
        """Return for each vocabulary which rows of the new table the run had trained, ``[V]``."""
        result = {}
        assert self.model.transforms is not None
        for vocab in target.vocabularies:
            rows = target.rows_of(vocab)
            known = np.zeros(rows.stop - rows.start, dtype=np.bool_)
            before = source.rows_of(vocab)
            size = before.stop - before.start
            trained = self.model.transforms.rows.get(vocab)  # none for hours and weekdays
            known[:size] = True if trained is None else trained[:size] == np.arange(size)
            result[vocab] = known
        return result


def warm_start(
    model: Model,
    run: str | Path | WarmStart,
    part: Part,
    objective: Objective,
    *,
    config: FitConfig | None = None,
    combine: Combine | None = None,
    noise_std: float = 0.01,
    keep_optimizer: bool = False,
) -> Start:
    """Give a new model what a run has learnt, ready to be trained on a part.

    Parameters
    ----------
    model : Model
        Untrained, of the run's configuration, built with the log's schema (that of
        :class:`WarmStart` where the log has gained features since, or is another log).
    run : path or WarmStart
        The run to start from.
    part : Part
        New requests: of the run's log, grown, or of another one, whose ids are met by raw value.
    objective : Objective
        What to train with; the run's model is judged by it in the drift report.
    config : FitConfig, optional
        Its ``min_count``, ``seed``, ``batch_size`` and optimisers count here.
    combine : Combine, optional
        As in ``fit``.
    noise_std : float
        Standard deviation of what is added to the unknown row for a new id.
    keep_optimizer : bool
        Go on with the run's optimiser state (zeros for new rows), or start afresh.

    Returns
    -------
    Start
        To be given to ``fit``, with the drift report.

    Raises
    ------
    InputError
        No complete run there, another model, other features or tasks, other optimisers.

    Examples
    --------
    >>> import tempfile
    >>> from prerank.log import open_log
    >>> from prerank.models import TwoTower
    >>> from prerank.objectives import BCE
    >>> from prerank.training import fit
    >>> from prerank.world import WorldConfig, write_world
    >>> folder = tempfile.mkdtemp()
    >>> small = WorldConfig(num_users=20, num_items=300, num_requests=30, num_days=3)
    >>> _ = write_world(f"{folder}/log", small)
    >>> log = open_log(f"{folder}/log")
    >>> objective = BCE.Config().build(log.schema)
    >>> first, second = (TwoTower.Config().build(log.schema) for _ in range(2))
    >>> _ = fit(first, log["train"], objective, out=f"{folder}/monday", progress=False)
    >>> start = warm_start(second, f"{folder}/monday", log["valid"], objective)
    >>> _ = fit(second, log["valid"], objective, start=start, progress=False)
    >>> start.drift.vocabularies["user"].ids
    8
    """
    config = config or FitConfig()
    given = run if isinstance(run, WarmStart) else None
    warm = given or WarmStart.of(run, part, min_count=config.min_count)  # type: ignore[arg-type]
    warm.fill(model, noise_std=noise_std, seed=config.seed)
    optimisers = warm.optimisers(model, config) if keep_optimizer else {}
    origin = Origin(
        run=str(warm.folder),
        weights_sha256=warm.run.weights_sha256,
        keep_optimizer=keep_optimizer,
        noise_std=noise_std,
        seen=warm.run.seen,
    )
    drift = warm.drift(objective, combine=combine, batch_size=config.batch_size)
    return Start(origin, optimisers, drift)


def _where(chosen: Bools) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen))


def _extend(
    old: Transforms, part: Part, folder: Path, min_count: int
) -> tuple[Transforms, Transforms]:
    """Return transforms that know the ids of a part, and those fitted on the part alone."""
    log, tasks = (
        part.log,
        dict(zip(old.schema.task_names, old.schema.task_expressions, strict=True)),
    )
    theirs = dict(zip(log.schema.task_names, log.schema.task_expressions, strict=True))
    if tasks != theirs:
        raise InputError(f"{folder}: was trained for {tasks}, but {log.path} has {theirs}")
    old.assembler(log)  # refuses a log without the run's features
    fresh = Transforms.fit(part, min_count=min_count, max_history=old.max_history)
    vocabularies, rows = {}, {}
    is_prefix = True
    for name, known in old.vocabularies.items():
        values = fresh.vocabularies[name].values
        grown = Vocabulary.of(known.values, name, where=f"{folder}: vocabulary '{name}'")
        index = grown.encode(values, grow=True)
        index[UNKNOWN_ROW] = UNKNOWN_ROW
        is_prefix &= len(grown) == len(values) and bool((index == np.arange(len(index))).all())
        row = np.full(len(grown), UNKNOWN_ROW, dtype=np.int32)
        row[: len(known)] = old.rows[name]
        own = fresh.rows[name] == np.arange(len(values))
        row[index[own]] = index[own]
        row[:NUM_RESERVED] = np.arange(NUM_RESERVED)
        vocabularies[name], rows[name] = grown, row
    lineage = log.schema.lineage
    if not is_prefix:  # indices of neither log
        both = f"{old.schema.lineage.log_id}+{lineage.log_id}"
        log_id = hashlib.sha256(both.encode()).hexdigest()[:16]
        lineage = msgspec.structs.replace(lineage, log_id=log_id, revision=0)
    schema = msgspec.structs.replace(
        log.schema,
        features=old.schema.features,
        vocabularies={name: len(vocab) for name, vocab in vocabularies.items()},
        lineage=lineage,
    )
    extended = Transforms(
        schema,
        old.dense,
        vocabularies,
        rows,
        min_count=min_count,
        max_history=old.max_history,
    )
    return extended, fresh
