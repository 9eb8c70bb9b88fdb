"""What a worker opens bundles with; importing this imports torch."""

from __future__ import annotations

from pathlib import Path

import torch

from prerank.config import from_values
from prerank.serving.engine import Engine
from prerank.serving.server.config import ServerConfig

__all__ = ["open_engine"]


def open_engine(bundle: Path, config: ServerConfig) -> Engine:
    """Open a bundle with its digests and its self-test checked.

    Raises
    ------
    InputError
        A bundle that is damaged or foreign, or settings of the engine that do not exist.
    CheckFailedError
        The self-test failed.
    """
    torch.set_num_threads(config.threads)
    limits = {"max_candidates": config.max_candidates, "max_events": config.max_events}
    values = {**limits, **config.engine}
    return Engine.open(bundle, from_values(Engine.Config, values, where="engine"))
