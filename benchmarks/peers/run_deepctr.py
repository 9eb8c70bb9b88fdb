"""DeepCTR-Torch: its Wide&Deep model without wide columns, that is embeddings and an MLP.

``fit`` is its own: a TensorDataset of float32 (ids too) and a DataLoader, Adam over dense
gradients; it has no sparse option. Differs from ours and from its defaults: no regulariser over
whole tables (its 1e-5 would cost more), initial weights of 0.05 (from its 0.0001 it starts slowly).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import WDL
from protocol import Data, batches, serve, start


class DeepCTR:
    """One model and its optimiser."""

    def __init__(self, data: Data, options: dict[str, Any]) -> None:
        self.data, self.options = data, options
        columns = [SparseFeat(n, data.rows, embedding_dim=options["dim"]) for n in data.fields]
        self.model = WDL(
            [],
            columns,
            dnn_hidden_units=options["hidden"],
            l2_reg_linear=0,
            l2_reg_embedding=0,
            init_std=0.05,
            seed=options["seed"],
        )
        adam = torch.optim.Adam(
            self.model.parameters(), lr=options["lr"], fused=options["fused"] or None
        )
        self.model.compile(adam, "binary_crossentropy", metrics=[])

    def train(self, first: int, last: int) -> None:
        """Train: its ``fit``, or its step without a loader."""
        size = self.options["batch_size"]
        if self.options["mode"] == "fit":
            columns = self.data.columns(self.data.ids[first:last])
            self.model.fit(columns, self.data.label[first:last], batch_size=size, verbose=0)
            return
        model = self.model.train()
        for ids, label in batches(self.data, first, last, size):
            loss = F.binary_cross_entropy(model(ids.float()).squeeze(1), label, reduction="sum")
            model.optim.zero_grad()
            loss.backward()
            model.optim.step()

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        with torch.no_grad():
            parts = torch.from_numpy(ids).float().split(8192)
            return torch.cat([self.model.eval()(part) for part in parts]).squeeze(1).numpy()


if __name__ == "__main__":
    data, options = start("deepctr-torch")
    serve(lambda lr: DeepCTR(data, {**options, "lr": lr}), data, options)
