"""FuxiCTR: a DNN of its own blocks (its DNN model is in its repository's zoo, not in the package).

``fit`` is its train_epoch over its NpzDataLoader, which collates rows of int64; Adam over dense
gradients, clipped at norm 10 as it always is; it has no sparse option. Loader workers: none, so
that all its work is in one process (with workers the CPU time is the same, and the wall time less
where cores are idle). Differs from ours: dense layers start as it draws them (Xavier).
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from protocol import Data, batches, serve, start

_NAME = "planted"


class _DNN(BaseModel):
    def __init__(self, feature_map: FeatureMap, options: dict[str, Any], folder: str) -> None:
        super().__init__(
            feature_map, model_id=_NAME, model_root=folder, metrics=["AUC", "logloss"], verbose=0
        )
        width = options["dim"] * feature_map.num_fields
        initial = "partial(nn.init.normal_, std=0.05)"
        self.embedding_layer = FeatureEmbedding(
            feature_map, options["dim"], embedding_initializer=initial
        )
        self.mlp = MLP_Block(
            width, options["hidden"], output_dim=1, output_activation=self.output_activation
        )
        self.compile("adam", "binary_crossentropy", options["lr"])
        self.reset_parameters()
        if options["fused"]:  # no option of its own: for finding learning rates only
            self.optimizer = torch.optim.Adam(self.parameters(), lr=options["lr"], fused=True)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embedded = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.mlp(embedded)}


class FuxiCTR:
    """One model and its loader."""

    def __init__(self, data: Data, options: dict[str, Any], folder: str) -> None:
        self.data, self.options = data, options
        self.feature_map = _feature_map(data, folder)
        self.model = _DNN(self.feature_map, options, folder)
        # What its fit sets before it runs train_epoch; validation is ours, outside the clock.
        self.model._max_gradient_norm, self.model._total_steps = 10.0, 0
        self.model._eval_steps, self.model._stop_training = 1 << 60, False
        self.batches = iter(())
        if options["mode"] == "fit":
            path = str(Path(folder) / "train.npz")
            np.savez(path, **data.columns(data.ids), label=data.label.astype(np.int64))
            loader, _ = RankDataLoader(
                self.feature_map,
                stage="train",
                train_data=path,
                batch_size=options["batch_size"],
                data_format="npz",
                num_workers=0,
            )
            self.batches = iter(loader)

    def _dict(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self.data.fields, ids.unbind(1), strict=True))

    def train(self, first: int, last: int) -> None:
        """Train: its train_epoch over its loader, or over tensors cut ahead."""
        size = self.options["batch_size"]
        if self.options["mode"] == "fit":
            turn = itertools.islice(self.batches, (last - first) // size)
        else:
            cut = batches(self.data, first, last, size)
            turn = ({**self._dict(ids), "label": label} for ids, label in cut)
        self.model.train_epoch(turn)

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return probabilities."""
        model = self.model.eval()
        with torch.no_grad():
            found = [model(self._dict(x))["y_pred"] for x in torch.from_numpy(ids).split(8192)]
            return torch.cat(found).squeeze(1).numpy()


def _feature_map(data: Data, folder: str) -> FeatureMap:
    spec = {"source": "", "type": "categorical", "vocab_size": data.rows}
    described = {
        "dataset_id": _NAME,
        "labels": ["label"],
        "num_fields": len(data.fields),
        "total_features": data.rows * len(data.fields),
        "input_length": len(data.fields),
        "features": [{name: spec} for name in data.fields],
    }
    path = Path(folder) / "feature_map.json"
    path.write_text(json.dumps(described), encoding="utf-8")
    (Path(folder) / _NAME).mkdir(exist_ok=True)
    feature_map = FeatureMap(_NAME, folder)
    feature_map.load(str(path), {"embedding_dim": 16})
    return feature_map


if __name__ == "__main__":
    data, options = start("fuxictr")
    with tempfile.TemporaryDirectory() as folder:
        serve(lambda lr: FuxiCTR(data, {**options, "lr": lr}, folder), data, options)
