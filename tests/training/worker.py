"""A process that trains as told, run by tests that kill it or run several of it together.

Usage: python worker.py SPEC.json RANK. Prints a line per update; the weights go to SPEC.RANK.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from prerank.config import from_values
from prerank.errors import PrerankError
from prerank.log import open_log
from prerank.models import get
from prerank.objectives import get as get_objective
from prerank.training import FitConfig, distributed, fit

warnings.simplefilter("error")
os.fsync = lambda _: None


class Spec(msgspec.Struct, forbid_unknown_fields=True):
    log: str
    model: str
    values: dict[str, Any]
    config: FitConfig
    out: str | None = None
    dtype: Literal["float32", "float64"] = "float32"
    size: int = 1
    store: str = ""
    seed: int = 0
    # (rank, update, what): what a rank does to itself when it comes to an update
    accident: tuple[int, int, Literal["kill", "raise", "interrupt"]] | None = None
    local_normaliser: bool = False


def train(spec: Spec, rank: int, say: Any = None) -> Any:
    """Train in this process; return the model and the report."""
    torch.manual_seed(spec.seed + rank)  # ranks begin with unlike weights
    log = open_log(spec.log)
    kind: Any = get(spec.model)
    model = from_values(kind.Config, spec.values, where="test").build(log.schema)
    model.to(getattr(torch, spec.dtype))
    bce: Any = get_objective("bce").Config().build(log.schema)
    count = 0
    whole = bce.__class__.__call__

    def counted(self: Any, scores: Any, batch: Any) -> Any:
        nonlocal count
        if torch.is_grad_enabled():
            count += 1
            if say is not None:
                say(count)
            if spec.accident is not None and spec.accident[:2] == (rank, count):
                _accident(spec.accident[2])
        return whole(self, scores, batch)

    counting = type("BCE", (bce.__class__,), {"__call__": counted, "__module__": bce.__module__})
    bce.__class__ = counting
    counting.__qualname__ = "BCE"
    part = log["valid"] if "valid" in log.parts else None
    return model, fit(
        model, log["train"], bce, valid=part, config=spec.config, out=spec.out, progress=False
    )


def _accident(what: str) -> None:
    if what == "raise":
        raise ValueError("planned")
    os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGINT)


def main() -> None:
    path, rank = Path(sys.argv[1]), int(sys.argv[2])
    spec = msgspec.json.decode(path.read_bytes(), type=Spec)
    torch.set_num_threads(1)
    if spec.size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{spec.store}", rank=rank, world_size=spec.size
        )
    if spec.local_normaliser:
        distributed.global_normaliser = lambda _: contextlib.nullcontext()

    def say(count: int) -> None:
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()

    try:
        model, report = train(spec, rank, say)
    except PrerankError as error:
        sys.stderr.write(f"{error}\n")
        os._exit(error.exit_code)
    save_file(model.state_dict(), path.with_suffix(f".{rank}"))
    path.with_suffix(f".{rank}.json").write_bytes(msgspec.json.encode(report))
    if spec.size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
