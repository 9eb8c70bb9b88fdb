"""What every runner hears and says: one JSON object a line, on stdin and stdout.

A runner is started as ``python run_NAME.py DATA.npz OPTIONS`` and says ``{"ready": ...}`` once its
model is built. Then each ``{"steps": n, "validate": b}`` is a turn: n updates, timed, and perhaps a
validation, not timed. ``{"lr": x}`` begins again, ``{"steps": 0}`` ends it. It needs nothing but
numpy and torch, so it runs in every peer's environment. What libraries print goes to stderr.

Shapes: ``N`` impressions, ``F`` fields.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["Contender", "Data", "Stopwatch", "binary_metrics", "hear", "serve", "start", "tell"]

_OUT = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # a library that prints would break the protocol


class Data:
    """Impressions of a file: ids ``[N, F]`` int64 and labels ``[N]`` float32, two parts."""

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            ids, label = file["ids"].astype(np.int64), file["label"]
            num_valid, self.rows = int(file["num_valid"]), int(file["rows"])
        self.path = Path(path)
        self.fields = [f"f{k:02d}" for k in range(ids.shape[1])]
        self.valid_ids, self.ids = ids[:num_valid], ids[num_valid:]
        self.valid_label, self.label = label[:num_valid], label[num_valid:]

    def columns(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return one array ``[N]`` per field."""
        return {name: np.ascontiguousarray(ids[:, k]) for k, name in enumerate(self.fields)}


class Contender(Protocol):
    """A library under test."""

    def train(self, first: int, last: int) -> None:
        """Train on rows first to last."""

    def predict(self, ids: np.ndarray) -> np.ndarray:
        """Return probabilities ``[N]`` of ids ``[N, F]``."""


class Stopwatch:
    """CPU time of the whole process, all threads, and wall time."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return seconds since the start."""
        return {
            "cpu_s": time.process_time() - self.cpu,
            "wall_s": time.perf_counter() - self.wall,
        }


def start(*packages: str) -> tuple[Data, dict[str, Any]]:
    """Read the command line; return data and options."""
    data, options = Data(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    options["versions"] = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
    options["base_mib"] = status_mib("VmRSS")
    return data, options


def tell(**message: Any) -> None:
    """Say something to whoever started the runner."""
    print(json.dumps(message), file=_OUT, flush=True)


def hear() -> dict[str, Any]:
    """Wait for what to do next; nothing more to hear is the end."""
    line = sys.stdin.readline()
    told: dict[str, Any] = json.loads(line) if line else {"steps": 0}
    return told


def serve(make: Callable[[float], Contender], data: Data, options: dict[str, Any]) -> None:
    """Take turns until the end, with a model that ``make`` builds for a learning rate."""
    done, size, told = 0, options["batch_size"], {"lr": options["lr"]}
    while True:
        if "lr" in told:
            torch.manual_seed(options["seed"])
            contender, done = make(told["lr"]), 0
            tell(ready=options["versions"])
        elif not told["steps"]:
            break
        else:
            watch, steps = Stopwatch(), told["steps"]
            contender.train(done * size, (done + steps) * size)
            taken = watch.read()
            done += steps
            metrics = {}
            if told["validate"]:
                metrics = binary_metrics(contender.predict(data.valid_ids), data.valid_label)
            tell(steps=steps, **taken, **metrics)
        told = hear()
    tell(peak_mib=status_mib("VmHWM"), base_mib=options["base_mib"])


def binary_metrics(probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Return log loss, normalised entropy and AUC.

    Normalised entropy is the log loss over that of always predicting the share of clicks.
    """
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = float(-np.where(label > 0, np.log(p), np.log1p(-p)).mean())
    share = float(label.mean())
    entropy = -(share * np.log(share) + (1 - share) * np.log1p(-share))
    _, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal ones share their mean rank
    num_clicks = float((label > 0).sum())
    above = rank[label > 0].sum() - num_clicks * (num_clicks + 1) / 2
    auc = above / (num_clicks * (len(label) - num_clicks))
    return {"loss": loss, "ne": loss / float(entropy), "auc": float(auc)}


def status_mib(field: str) -> float:
    """Return memory of this process: ``VmRSS`` now, ``VmHWM`` at its peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def batches(
    data: Data, first: int, last: int, size: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut rows into tensors ahead of time: what a step costs without any loader."""
    ids, label = torch.from_numpy(data.ids[first:last]), torch.from_numpy(data.label[first:last])
    return list(zip(ids.split(size), label.split(size), strict=True))


def bce(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of logits."""
    return F.binary_cross_entropy_with_logits(logits, label)
