"""What training logged about the sources' gradients, averaged over seeds and parts of training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prerank.training.diagnosis import summarise

__all__ = ["gradients_of"]


def gradients_of(finished: Mapping[str, Mapping[int, Path]]) -> dict[str, dict[str, Any]]:
    """Return means of every diagnosed number early (first quarter) and late (last quarter).

    Parameters
    ----------
    finished : mapping of line to mapping of seed to folder
        Only runs that were diagnosed count.

    Returns
    -------
    dict of line to dict
        ``early``, ``late``: number by name, with ``conflict/W/A:B`` (share of the diagnosed steps
        in which the contrasts of A and B have a cosine below 0, ``W`` dense or table); ``runs``,
        ``steps``: diagnosed batches of a quarter, all runs together.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, seeds in finished.items():
        runs = [lines for folder in seeds.values() if (lines := _lines(folder))]
        if not runs:
            continue
        quarters: dict[str, list[dict[str, float]]] = {"early": [], "late": []}
        for lines in runs:
            size = max(1, len(lines) // 4)
            quarters["early"].append(_of_steps(lines[:size]))
            quarters["late"].append(_of_steps(lines[-size:]))
        found[name] = {part: _means(of) for part, of in quarters.items()}
        found[name]["runs"] = len(runs)
        found[name]["steps"] = sum(max(1, len(lines) // 4) for lines in runs)
    return found


def _lines(folder: Path) -> list[dict[str, float]]:
    path = folder / "run" / "metrics.jsonl"
    if not path.is_file():
        return []
    read = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    return [_numbers(line) for line in read if line.get("kind") == "diagnosis"]


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten nested numbers to names joined by slashes."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = float(value)
    return found


def _of_steps(lines: list[dict[str, float]]) -> dict[str, float]:
    """Return means over steps, and conflict rates."""
    found = summarise(lines)
    means = {key: spread.mean for key, spread in found.values.items()}
    return means | {f"conflict/{pair}": rate for pair, rate in found.conflicts.items()}


def _means(lines: list[dict[str, float]]) -> dict[str, float]:
    keys = dict.fromkeys(key for line in lines for key in line)
    return {key: float(np.mean([line[key] for line in lines if key in line])) for key in keys}
