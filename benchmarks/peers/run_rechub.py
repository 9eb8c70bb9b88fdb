"""Torch-RecHub: its embedding layer and its MLP under its CTRTrainer.

``fit`` is its own: a dataset of a dict per row, a DataLoader that collates 26 columns, Adam over
dense gradients; it has no sparse option. Differs from ours: its MLP has batch norm after each
hidden layer, which cannot be turned off.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from protocol import Data, batches, serve, start
from torch import nn
from torch_rechub.basic.features import SparseFeature
from torch_rechub.basic.initializers import RandomNormal
from torch_rechub.basic.layers import MLP, EmbeddingLayer
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator


class _DNN(nn.Module):
    def __init__(self, features: list[SparseFeature], hidden: list[int]) -> None:
        super().__init__()
        self.features = features
        self.embedding = EmbeddingLayer(features)
        self.mlp = MLP(sum(f.embed_dim for f in features), dims=hidden)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.sigmoid(
            self.mlp(self.embedding(x, self.features, squeeze_dim=True)).squeeze(1)
        )


class RecHub:
    """One model and its trainer."""

    def __init__(self, data: Data, options: dict[str, Any]) -> None:
        self.data, self.options = data, options
        features = [
            SparseFeature(n, data.rows, options["dim"], initializer=RandomNormal(0, 0.05))
            for n in data.fields
        ]
        parameters = {"lr": options["lr"], "fused": options["fused"] or None}
        self.trainer = CTRTrainer(_DNN(features, options["hidden"]), optimizer_params=parameters)
        self.batches = iter(())
        if options["mode"] == "fit":
            valid = {"x_val": data.columns(data.valid_ids), "y_val": data.valid_label}
            loader, _, _ = DataGenerator(data.columns(data.ids), data.label).generate_dataloader(
                **valid,
                x_test=valid["x_val"],
                y_test=valid["y_val"],
                batch_size=options["batch_size"],
            )
            self.batches = iter(loader)

    def train(self, first: int, last: int) -> None:
        """Train: its trainer's epoch over its loader, or over tensors cut ahead."""
        size = self.options["batch_size"]
        if self.options["mode"] == "fit":
            turn = itertools.islice(self.batches, (last - first) // size)
        else:
            turn = ((self._dict(x), y) for x, y in batches(self.data, first, last, size))
        self.trainer.train_one_epoch(turn)

    def _dict(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.data.fields, ids.unbind(1), strict=True))

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        model = self.trainer.model.eval()
        with torch.no_grad():
            parts = torch.from_numpy(ids).split(8192)
            return torch.cat([model(self._dict(part)) for part in parts]).numpy()


if __name__ == "__main__":
    data, options = start("torch-rechub")
    serve(lambda lr: RecHub(data, {**options, "lr": lr}), data, options)
