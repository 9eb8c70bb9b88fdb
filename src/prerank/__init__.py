"""Pre-ranking for recommender cascades: request logs, models, cascades, evaluation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prerank import models as models
    from prerank import objectives as objectives
    from prerank.cascade import Cascade as Cascade
    from prerank.cascade import Tier as Tier
    from prerank.evaluation import Evaluation as Evaluation
    from prerank.evaluation.evaluate import evaluate as evaluate
    from prerank.log import Transforms as Transforms
    from prerank.log import open_log as open_log
    from prerank.log import write_log as write_log
    from prerank.schema import Feature as Feature
    from prerank.schema import Label as Label
    from prerank.schema import Schema as Schema
    from prerank.schema import Task as Task
    from prerank.training import FitConfig as FitConfig
    from prerank.training.fit import fit as fit
    from prerank.training import load_run as load_run

__version__ = "0.1.0"

_HOME = {
    "Cascade": "prerank.cascade",
    "Evaluation": "prerank.evaluation",
    "Feature": "prerank.schema",
    "FitConfig": "prerank.training",
    "Label": "prerank.schema",
    "Schema": "prerank.schema",
    "Task": "prerank.schema",
    "Tier": "prerank.cascade",
    "Transforms": "prerank.log",
    "evaluate": "prerank.evaluation",
    "fit": "prerank.training",
    "load_run": "prerank.training",
    "models": "",
    "objectives": "",
    "open_log": "prerank.log",
    "write_log": "prerank.log",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import prerank`` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'prerank' has no attribute '{name}'")
    home = _HOME[name]
    return getattr(import_module(home), name) if home else import_module(f"prerank.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
