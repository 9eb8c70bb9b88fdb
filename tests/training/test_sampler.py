"""Training with a sampler: what is recorded, what is refused, and that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prerank.errors import InputError
from prerank.sampling import HAPSampler, tally
from prerank.training import FitConfig, fit
from prerank.training.metrics_log import read_metrics

CONFIG = FitConfig(
    epochs=2, batch_size=32, lr=0.1, table_lr=0.5, checkpoint_every=3, eval_every=4, log_every=2
)
SAMPLING = HAPSampler.Config(quotas={"random": 3.0}, floors={})


class _Stop(Exception):  # noqa: N818
    pass


class _Watches:
    """An objective that counts updates and candidates, and may stop."""

    def __init__(self, bce: Any, after: int) -> None:
        self.config, self.bce, self.left = bce.config, bce, after
        self.trained: list[int] = []
        self.validated: list[int] = []

    def __call__(self, scores: Any, batch: Any) -> Any:
        if not torch.is_grad_enabled():
            self.validated.append(batch.num_candidates)
            return self.bce(scores, batch)
        self.left -= 1
        if self.left < 0:
            raise _Stop
        self.trained.append(batch.num_candidates)
        return self.bce(scores, batch)


@pytest.fixture(scope="module")
def train(planted: Any, new_model: Callable[..., Any], bce: Any) -> Callable[..., Any]:
    def run(
        out: Path | None,
        after: int = 10**9,
        options: HAPSampler.Config | None = SAMPLING,
    ) -> Any:
        model, objective = new_model(), _Watches(bce, after)
        report = fit(
            model,
            planted.log["train"],
            objective,
            valid=planted.log["valid"],
            config=CONFIG,
            sampler=None if options is None else options.build(planted.log["train"]),
            out=out,
            progress=False,
        )
        return model, report, objective

    return run


@pytest.mark.parametrize("pool", ["request", "shared"])
@pytest.mark.parametrize("stops", [[1], [5, 4]])
def test_a_stopped_run_goes_on_bit_for_bit(
    train: Callable[..., Any], tmp_path: Path, pool: Any, stops: list[int]
) -> None:
    options = HAPSampler.Config(quotas={"random": 3.0}, floors={}, pool=pool)
    whole, report, _ = train(tmp_path / "whole", options=options)
    for after in stops:
        with pytest.raises(_Stop):
            train(tmp_path / "run", after, options)
    model, again, _ = train(tmp_path / "run", options=options)
    assert again.resumed_from is not None
    for (name, x), (_, y) in zip(
        whole.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(x, y), name
    assert (again.steps, again.samples, again.best) == (report.steps, report.samples, report.best)
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "run")]
    assert lines[0] == lines[1]


def test_training_sees_sampled_candidates_and_validation_what_is_stored(
    planted: Any, train: Callable[..., Any]
) -> None:
    _, report, objective = train(None)
    _, plain, before = train(None, options=None)
    part, sampler = planted.log["train"], SAMPLING.build(planted.log["train"])
    expected = sum(tally(part, sampler, epoch=epoch).taken for epoch in range(2))
    assert report.samples == sum(objective.trained) == expected > plain.samples
    assert sum(before.trained) == plain.samples == 2 * 6 * part.num_requests
    # whole passes over the validation part: 90 requests of 6 candidates
    assert sum(objective.validated) % (90 * 6) == 0
    assert objective.validated == before.validated


def test_the_run_says_what_was_sampled_and_another_is_refused(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(out)
    stored = json.loads((out / "run.json").read_text())
    assert stored["sampler"]["name"] == "hap"
    assert stored["sampler"]["config"]["quotas"] == {"random": 3.0}
    assert train(out)[1].resumed_from is not None
    other = HAPSampler.Config(quotas={"random": 2.0}, floors={})
    with pytest.raises(InputError, match=r"sampler.config.quotas.random was 3.0, is 2.0"):
        train(out, options=other)
    with pytest.raises(InputError, match="holds a run of another configuration"):
        train(out, options=None)


def test_a_run_without_sampler_is_as_it_was(train: Callable[..., Any], tmp_path: Path) -> None:
    """Also one that an earlier version wrote, whose record has no such entry."""
    out = tmp_path / "run"
    train(out, options=None)
    stored = json.loads((out / "run.json").read_text())
    assert stored.pop("sampler") is None
    (out / "run.json").write_text(json.dumps(stored))
    assert train(out, options=None)[1].resumed_from is not None
    with pytest.raises(InputError, match=r"sampler.name was None, is hap"):
        train(out)


def test_batches_in_which_no_request_is_left_do_no_harm(
    planted: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    options = HAPSampler.Config(quotas={}, floors={}, requests="with_positive")
    config = FitConfig(epochs=1, batch_size=1)
    report = fit(
        new_model(),
        planted.log["train"],
        bce,
        config=config,
        sampler=options.build(planted.log),
        progress=False,
    )
    clicks = planted.click[planted.rows["train"]]
    assert not clicks.any(axis=1).all()
    assert report.steps == len(clicks)
    assert report.samples == 6 * int(clicks.any(axis=1).sum())


def test_what_the_objective_does_not_read_changes_nothing(
    planted: Any, new_model: Callable[..., Any], bce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    batches = type(planted.log["train"]).batches

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(options.get("logged"))
        return batches(self, *args, **options)

    monkeypatch.setattr(type(planted.log["train"]), "batches", spy)
    weights = []
    for objective in (bce, _Watches(bce, 10**9)):  # the second does not say what it reads
        model = new_model()
        sampler = SAMPLING.build(planted.log["train"])
        fit(model, planted.log["train"], objective, config=CONFIG, sampler=sampler, progress=False)
        weights.append(model.state_dict())
    assert frozenset() in seen
    assert None in seen
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
