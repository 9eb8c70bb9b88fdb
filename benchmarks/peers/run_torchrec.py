"""TorchRec: FusedEmbeddingBagCollection on CPU, row-wise Adagrad inside the backward pass.

TorchRec brings no loader and no loop of its own for this, so the step is timed on tensors cut
ahead, each batch wrapped as a KeyedJaggedTensor of one id per field; compare it with our bare step.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import torch
from protocol import Data, batches, bce, serve, start
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_BOUND = 0.05 * math.sqrt(3)  # uniform with the standard deviation of the others


class TorchRec:
    """One model and its optimisers."""

    def __init__(self, data: Data, options: dict[str, Any]) -> None:
        self.data, self.options = data, options
        configs = [
            EmbeddingBagConfig(
                name=f"table_{name}",
                embedding_dim=options["dim"],
                num_embeddings=data.rows,
                feature_names=[name],
                weight_init_min=-_BOUND,
                weight_init_max=_BOUND,
            )
            for name in data.fields
        ]
        kwargs = {"lr": options["lr"], "eps": 1e-8}
        self.tables = FusedEmbeddingBagCollection(configs, RowWiseAdagrad, kwargs)
        widths = [options["dim"] * len(configs), *options["hidden"]]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        self.adam = torch.optim.Adam(self.mlp.parameters(), lr=1e-3, fused=True)

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        values = ids.t().reshape(-1)
        lengths = torch.ones(values.numel(), dtype=torch.int32)
        features = KeyedJaggedTensor(keys=self.data.fields, values=values, lengths=lengths)
        return self.mlp(self.tables(features).values()).squeeze(1)

    def train(self, first: int, last: int) -> None:
        """Train on batches cut ahead."""
        for ids, label in batches(self.data, first, last, self.options["batch_size"]):
            self.adam.zero_grad(set_to_none=True)
            bce(self._logits(ids), label).backward()
            self.adam.step()

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        with torch.no_grad():
            parts = torch.from_numpy(ids).split(8192)
            return torch.cat([self._logits(part) for part in parts]).sigmoid().numpy()


if __name__ == "__main__":
    data, options = start("torchrec", "fbgemm-gpu-cpu")
    serve(lambda lr: TorchRec(data, {**options, "lr": lr}), data, options)
