"""prerank, as its users run it and bare.

``fit``: the impressions as a request log on disk, one candidate a request, streamed and decoded
from Parquet; ``prerank.fit`` as it is, over a model file of the peers' shape. Flat impressions are
the peers' ground: nothing is shared within a request, so nothing is saved by it. ``step``: fused
tables, MLP and optimisers on tensors cut ahead.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from protocol import (
    Data,
    Stopwatch,
    batches,
    bce,
    binary_metrics,
    hear,
    serve,
    start,
    status_mib,
    tell,
)
from torch import Tensor, nn

import prerank as pr
from prerank.batch import Features, Inputs, Pairs, Rows, Scores
from prerank.log import Transforms
from prerank.models.base import Model
from prerank.nn import MLP, FeatureEncoder, FusedTables
from prerank.schema import Schema
from prerank.training import InterruptedRunError
from prerank.training.combine import Sum
from prerank.training.optim import build_optimisers


@dataclass(frozen=True, slots=True)
class _Nothing(Rows):
    empty: Tensor


class FlatMLP(Model):
    """All candidate features side by side into an MLP."""

    class Config(MLP.Config, frozen=True):
        """The hidden layers, and the width of embeddings."""

        dim: int = 16

        def build(self, schema: Schema) -> FlatMLP:
            """Make the model for a schema."""
            return FlatMLP(schema, self)

    def __init__(self, schema: Schema, config: Config) -> None:
        super().__init__(schema)
        self.config = config
        self.tables = FusedTables.Config(dim=config.dim).build_for(schema, schema.features)
        self.encoder = FeatureEncoder(schema, "candidate", self.tables)
        self.mlp = MLP(self.encoder.width, self.num_tasks, config)

    def request_state(self, inputs: Inputs) -> Rows:
        """Read nothing."""
        return _Nothing(torch.empty(inputs.num_requests, 0))

    def item_state(self, items: Features) -> Rows:
        """Read nothing."""
        return _Nothing(torch.empty(items.num_rows, 0))

    def score(self, request_state: Any, item_state: Any, pairs: Pairs) -> Scores:
        """Run the MLP on the candidates."""
        return Scores(self.mlp(self.encoder(pairs.candidate, self.tables)))


class _Turns(Sum):
    """Adds up parts as ``Sum`` does, and between two turns waits for the next one.

    It is called at every update, after the forward pass and before any weight moves, so what it
    validates is the model after the updates before.
    """

    def __init__(self, model: FlatMLP, data: Data) -> None:
        super().__init__()
        self.model, self.data = model, data
        self.steps = self.left = 0

    def begin(self) -> None:
        """Wait for a turn; Ctrl-C, as a user would stop, where there is none."""
        told, self.clock = hear(), Stopwatch()
        self.left = self.steps = told["steps"]
        self.validate = told.get("validate", False)
        if not self.steps:
            raise KeyboardInterrupt

    def end(self) -> None:
        """Say what the turn took."""
        taken = self.clock.read()
        self.settle()
        taken["cpu_s"] = self.clock.read()["cpu_s"]
        metrics = {}
        if self.validate:
            self.model.eval()
            metrics = binary_metrics(predict(self.model, self.data), self.data.valid_label)
            self.model.train()
        tell(steps=self.steps, **taken, **metrics)

    @staticmethod
    def settle() -> None:
        """Let the reader's thread read ahead as far as it does: its CPU time belongs to the turn.

        While it waits for room it looks at the clock now and then; the pause must not count that.
        """
        for _ in range(20):
            before = time.process_time()
            time.sleep(0.1)
            if time.process_time() - before < 1e-3:
                return

    def __call__(self, parts: Any, parameters: Any) -> Tensor:
        """Add up, after the turns that are due."""
        if self.left == 0:
            self.end()
            self.begin()
        self.left -= 1
        return super().__call__(parts, parameters)


def predict(model: FlatMLP, data: Data) -> np.ndarray:
    """Return probabilities of the validation rows, whose ids are mapped as the log's were."""
    with torch.no_grad():
        found = []
        for ids in torch.from_numpy(data.valid_ids).split(8192):
            rows = torch.stack([model.rows_of[k][ids[:, k]] for k in range(ids.shape[1])], 1)
            block = Features(rows, (), torch.zeros(len(ids), 0), ())
            found.append(model.mlp(model.encoder(block, model.tables)).squeeze(1).sigmoid())
        return torch.cat(found).numpy()


def run_fit(data: Data, options: dict[str, Any]) -> None:
    """Take turns inside one call of ``fit``."""
    log = pr.open_log(options["log"])
    part = log["train"]
    model = FlatMLP.Config(hidden=tuple(options["hidden"]), dim=options["dim"]).build(log.schema)
    model.rows_of = _mapping(log, data)
    config = pr.FitConfig(
        batch_size=options["batch_size"],
        table_lr=options["lr"],
        seed=options["seed"],
        min_count=1,
        threads=options["threads"],
    )
    watch = Stopwatch()
    model.transforms = Transforms.fit(part, min_count=config.min_count)
    turns = _Turns(model, data)
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # torch's lazy imports, as with the peers
    tell(ready=options["versions"], transforms_cpu_s=watch.read()["cpu_s"])
    turns.begin()
    with contextlib.suppress(InterruptedRunError):
        objective = pr.objectives.BCE.Config().build(log.schema)
        pr.fit(model, part, objective, config=config, combine=turns, progress=False)
        turns.end()  # all impressions have been seen
        hear()
    tell(peak_mib=status_mib("VmHWM"), base_mib=options["base_mib"])


def _mapping(log: Any, data: Data) -> list[Tensor]:
    """Return, per field, the vocabulary row of every raw id; 1 (unknown) where the log has none."""
    found = []
    for name in data.fields:
        row = torch.ones(data.rows, dtype=torch.int64)
        values = log.vocabulary(name).values.to_numpy(zero_copy_only=False)[2:]
        row[torch.from_numpy(values.astype(np.int64))] = torch.arange(2, 2 + len(values))
        found.append(row)
    return found


class Bare:
    """The step without log and loop."""

    def __init__(self, data: Data, options: dict[str, Any]) -> None:
        self.data, self.options = data, options
        tables = FusedTables.Config(dim=options["dim"]).build(dict.fromkeys(data.fields, data.rows))
        mlp = MLP.Config(hidden=tuple(options["hidden"])).build(len(data.fields) * tables.dim, 1)
        self.network = nn.ModuleDict({"tables": tables, "mlp": mlp})
        self.columns = tables.columns(data.fields)
        self.optimisers = build_optimisers(self.network, pr.FitConfig(table_lr=options["lr"]))

    def _logits(self, ids: Tensor) -> Tensor:
        embedded = self.network["tables"](ids, self.columns).flatten(1)
        return self.network["mlp"](embedded).squeeze(1)

    def train(self, first: int, last: int) -> None:
        """Train on batches cut ahead."""
        for ids, label in batches(self.data, first, last, self.options["batch_size"]):
            for optimiser in self.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
            bce(self._logits(ids), label).backward()
            for optimiser in self.optimisers.values():
                optimiser.step()

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        with torch.no_grad():
            parts = torch.from_numpy(ids).split(8192)
            return torch.cat([self._logits(part) for part in parts]).sigmoid().numpy()


if __name__ == "__main__":
    data, options = start("prerank")
    if options["mode"] == "fit":
        run_fit(data, options)
    else:
        serve(lambda lr: Bare(data, {**options, "lr": lr}), data, options)
