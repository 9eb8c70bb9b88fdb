from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from prerank.batch import Scores
from prerank.errors import PrerankError
from prerank.log import Transforms
from prerank.training.combine import Sum
from prerank.training.validate import validate


@pytest.fixture
def model(planted: Any, new_model: Callable[..., Any]) -> Any:
    model = new_model()
    model.transforms = Transforms.fit(planted.log["train"])
    with torch.no_grad():
        model.encode.tables.weight.normal_()
    return model


def _logits(model: Any, part: Any) -> np.ndarray:
    with torch.no_grad():
        model.eval()
        batches = part.batches(model.transforms, 7)
        return np.concatenate([model(batch.inputs).logits[:, 0].numpy() for batch in batches])


def test_metrics_are_those_of_the_whole_part(planted: Any, model: Any, bce: Any) -> None:
    part = planted.log["valid"]
    model.train()
    found = validate(model, part, bce, Sum(), batch_size=64)
    logit = _logits(model, part).astype(np.float64)
    click = planted.click[planted.rows["valid"]].ravel()
    loss = np.where(click, np.logaddexp(0, -logit), np.logaddexp(0, logit)).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["loss/bce/engaged"] == found["loss"]
    assert found["auc"] == pytest.approx(roc_auc_score(click, logit), rel=1e-6)
    # One value per group: users, weighted by impressions.
    user = np.concatenate(
        [
            batch.evidence.user[batch.inputs.request_of].numpy()
            for batch in part.batches(model.transforms, 64)
        ]
    )
    values = []
    for u in np.unique(user):
        mine = user == u
        if 0 < click[mine].mean() < 1:
            values.append((roc_auc_score(click[mine], logit[mine]), mine.sum()))
    expected = np.average([v for v, _ in values], weights=[w for _, w in values])
    assert found["gauc"] == pytest.approx(expected, rel=1e-6)
    assert 1 < len(values) < len(click)


def test_the_batch_size_changes_nothing(planted: Any, model: Any, bce: Any) -> None:
    """90 requests in batches of 64: a mean of batch means would differ."""
    part = planted.log["valid"]
    whole = validate(model, part, bce, Sum(), batch_size=1000)
    pieces = validate(model, part, bce, Sum(), batch_size=64)
    assert pieces == pytest.approx(whole, rel=1e-5)
    assert model.training is False


def test_the_objective_is_left_as_it_was(planted: Any, model: Any, bce: Any) -> None:
    before = bce.normaliser
    validate(model, planted.log["valid"], bce, Sum(), batch_size=64)
    assert bce.normaliser is before


def test_a_plain_function_is_weighted_by_candidates(planted: Any, model: Any) -> None:
    def objective(scores: dict[str, Scores], batch: Any) -> dict[str, torch.Tensor]:
        return {"mean": scores["model"].logits.mean()}

    found = validate(model, planted.log["valid"], objective, Sum(), batch_size=64)
    logit = _logits(model, planted.log["valid"])
    assert found["loss"] == pytest.approx(float(logit.mean()), rel=1e-4)


def test_scores_that_are_not_finite_are_refused(planted: Any, model: Any, bce: Any) -> None:
    with torch.no_grad():
        model.encode.tables.weight.fill_(float("inf"))
    with pytest.raises(PrerankError, match="part 'valid': 540 of 540 scores are not finite"):
        validate(model, planted.log["valid"], bce, Sum(), batch_size=64)
