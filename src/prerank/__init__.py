"""Pre-ranking for recommender cascades: request logs, models, cascades, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prerank.plugins import lazy_names

if TYPE_CHECKING:
    from prerank import models as models
    from prerank import objectives as objectives
    from prerank import sampling as sampling
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
    from prerank.serving import Engine as Engine
    from prerank.serving.export import export as export
    from prerank.training import FitConfig as FitConfig
    from prerank.training import load_run as load_run
    from prerank.training.fit import fit as fit

__version__ = "0.1.0"

_TARGETS = {
    "Cascade": "prerank.cascade:Cascade",
    "Engine": "prerank.serving.engine:Engine",
    "Evaluation": "prerank.evaluation:Evaluation",
    "Feature": "prerank.schema:Feature",
    "FitConfig": "prerank.training:FitConfig",
    "Label": "prerank.schema:Label",
    "Schema": "prerank.schema:Schema",
    "Task": "prerank.schema:Task",
    "Tier": "prerank.cascade:Tier",
    "Transforms": "prerank.log:Transforms",
    "evaluate": "prerank.evaluation:evaluate",
    "export": "prerank.serving.export:export",
    "fit": "prerank.training:fit",
    "load_run": "prerank.training:load_run",
    "models": "prerank.models",
    "objectives": "prerank.objectives",
    "open_log": "prerank.log:open_log",
    "sampling": "prerank.sampling",
    "write_log": "prerank.log:write_log",
}

__all__ = ["__version__", *_TARGETS]  # noqa: PLE0604

# Names are imported when first used, so that ``import prerank`` stays light.
__getattr__, __dir__ = lazy_names(__name__, _TARGETS)
