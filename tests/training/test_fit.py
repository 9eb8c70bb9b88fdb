from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prerank.config import from_values
from prerank.errors import InputError, PrerankError
from prerank.log import Part, RowRanges, Transforms
from prerank.models import get
from prerank.training import FitConfig, Sum, fit
from prerank.training.metrics_log import read_metrics

QUICK = FitConfig(epochs=2, batch_size=32, log_every=3)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_to_the_planted_one(bigger: Any, bce: Any, precision: Any) -> None:
    torch.manual_seed(0)
    model = get("two_tower").Config().build(bigger.log.schema)
    config = FitConfig(
        epochs=6,
        batch_size=64,
        lr=0.005,
        eval_metric="loss",
        precision=precision,
        schedule="linear",
    )
    report = fit(
        model, bigger.log["train"], bce, valid=bigger.log["valid"], config=config, progress=False
    )
    p, click = (x[bigger.rows["valid"]] for x in (bigger.probability, bigger.click))
    bayes = -np.where(click, np.log(p), np.log1p(-p)).mean()
    rate = click.mean()
    constant = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert constant > bayes + 0.1  # there was something to learn
    assert report.best is not None
    assert bayes - 0.005 < report.best.value < bayes + 0.01
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_shuffled_targets_teach_nothing(
    bigger: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    """Negative control of the test above."""

    def unrelated(scores: Any, batch: Any) -> Any:
        targets = batch.evidence.targets
        targets.copy_(targets[torch.randperm(len(targets))])
        return bce(scores, batch)

    model = new_model(bigger.log, dropout=0.0)
    config = FitConfig(epochs=1, batch_size=64, lr=0.01)
    fit(model, bigger.log["train"], unrelated, config=config, progress=False)
    model.transforms = None
    report = fit(
        model,
        bigger.log["train"],
        bce,
        valid=bigger.log["valid"],
        config=FitConfig(max_steps=1, batch_size=64, lr=1e-9, table_lr=1e-9),
        progress=False,
    )
    assert report.best is not None
    assert abs(report.best.metrics["auc"] - 0.5) < 0.15


def test_the_same_seed_gives_the_same_bits(
    planted: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    results = []
    for seed in (0, 0, 1):
        model = new_model()
        torch.rand(seed + 3)  # where torch's own generator stands is of no importance
        config = FitConfig(epochs=1, batch_size=32, seed=seed)
        fit(model, planted.log["train"], bce, config=config, progress=False)
        results.append(_weights(model))
    assert _equal(results[0], results[1])
    assert not _equal(results[0], results[2])


def test_torchs_generator_and_threads_are_left_alone(
    planted: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    model = new_model()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    config = FitConfig(max_steps=2, batch_size=32, threads=2)
    fit(model, planted.log["train"], bce, config=config, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_early_stopping_restores_the_best_weights(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    """Rates that are far too high get worse after the first epochs."""
    config = FitConfig(
        epochs=30, batch_size=32, lr=0.1, table_lr=0.5, early_stopping=2, eval_metric="loss"
    )
    kept = []
    for out in (None, tmp_path / "run"):
        model = new_model()
        report = fit(
            model,
            planted.log["train"],
            bce,
            valid=planted.log["valid"],
            config=config,
            out=out,
            progress=False,
        )
        assert report.stopped == "early_stopping"
        assert report.best is not None
        assert report.steps == report.best.step + 2 * 7 < 30 * 7
        assert not model.training
        kept.append(_weights(model))
    assert _equal(*kept)
    lines = [x for x in read_metrics(tmp_path / "run" / "metrics.jsonl") if x["kind"] == "valid"]
    losses = [x["loss"] for x in lines]
    assert report.best.value == min(losses)
    assert lines[int(np.argmin(losses))]["step"] == report.best.step
    # The weights in hand are those that had that loss.
    from prerank.training.validate import validate

    again = validate(model, planted.log["valid"], bce, Sum(), batch_size=32)
    assert again["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_plateau_halves_both_rates(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    config = FitConfig(
        epochs=30,
        batch_size=64,
        lr=0.1,
        table_lr=0.5,
        plateau_patience=2,
        eval_metric="loss",
        log_every=1,
    )
    fit(
        new_model(),
        planted.log["train"],
        bce,
        valid=planted.log["valid"],
        config=config,
        out=tmp_path / "run",
        progress=False,
    )
    scale, best, waited = 1.0, float("inf"), 0
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        if line["kind"] == "train":
            assert line["lr/dense"] == pytest.approx(0.1 * scale)
            assert line["lr/table"] == pytest.approx(0.5 * scale)
            continue
        better = line["loss"] < best
        best, waited = min(best, line["loss"]), 0 if better else waited + 1
        if waited == 2:
            scale, waited = scale / 2, 0
    assert scale < 0.5


def test_warm_up_and_schedule_reach_the_optimisers(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    config = FitConfig(
        epochs=1, batch_size=32, lr=0.01, warmup_steps=2, schedule="linear", log_every=1
    )
    fit(new_model(), planted.log["train"], bce, config=config, out=tmp_path / "r", progress=False)
    rates = [x["lr/dense"] for x in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.008, 0.006, 0.004, 0.002])


def test_clipping_bounds_every_gradient(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    norms: list[float] = []

    class Watched(Sum):
        def __call__(self, parts: Any, parameters: Any) -> torch.Tensor:
            total = super().__call__(parts, parameters)
            grads = [p.grad for p in parameters if p.grad is not None]
            dense = [g.to_dense() if g.is_sparse else g for g in grads]
            norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in dense]))))
            return total

    config = FitConfig(epochs=1, batch_size=32, clip_norm=1e-3, log_every=1)
    fit(
        new_model(),
        planted.log["train"],
        bce,
        config=config,
        combine=Watched(),
        out=tmp_path / "r",
        progress=False,
    )
    logged = [x["grad_norm"] for x in read_metrics(tmp_path / "r" / "metrics.jsonl")]
    assert logged == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 1e-3


def test_a_bad_loss_names_step_and_part(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    calls = []

    def objective(scores: Any, batch: Any) -> Any:
        calls.append(1)
        bad = torch.tensor(float("nan") if len(calls) == 4 else 0.0)
        return {**bce(scores, batch), "extra": bad * scores["model"].logits.sum()}

    with pytest.raises(PrerankError, match="part 'extra' is nan at step 4") as caught:
        fit(
            new_model(),
            planted.log["train"],
            objective,
            config=QUICK,
            out=tmp_path / "r",
            progress=False,
        )
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    # No checkpoint holds the ruined weights.
    assert [p.stem for p in (tmp_path / "r" / "checkpoints").glob("*.json")] == ["step-00000000"]


def test_evaluations_are_where_they_were_asked_for(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    config = FitConfig(epochs=2, batch_size=32, eval_every=4, max_steps=10, eval_metric="auc")
    report = fit(
        new_model(),
        planted.log["train"],
        bce,
        valid=planted.log["valid"],
        config=config,
        out=tmp_path / "r",
        progress=False,
    )
    lines = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert [x["step"] for x in lines if x["kind"] == "valid"] == [4, 8, 10]
    assert (report.steps, report.stopped) == (10, "max_steps")
    assert report.samples == (10 * 32 - (7 * 32 - 210)) * 6
    assert report.samples_per_s > 0


def test_transforms_are_fitted_on_the_training_part_once(
    planted: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    model = new_model()
    config = FitConfig(max_steps=1, min_count=3, max_history=2)
    fit(model, planted.log["train"], bce, config=config, progress=False)
    assert (model.transforms.min_count, model.transforms.max_history) == (3, 2)
    own = model.transforms = Transforms.fit(planted.log["train"], min_count=1)
    fit(model, planted.log["train"], bce, config=config, progress=False)
    assert model.transforms is own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"early_stopping": 1}, "early_stopping needs a validation part"),
        ({"plateau_patience": 1}, "plateau_patience needs a validation part"),
    ],
)
def test_what_needs_a_validation_part_says_so(
    planted: Any, new_model: Callable[..., Any], bce: Any, change: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(new_model(), planted.log["train"], bce, config=FitConfig(**change), progress=False)


def test_an_empty_part_is_refused(planted: Any, new_model: Callable[..., Any], bce: Any) -> None:
    empty = Part(planted.log, RowRanges([]), "nothing")
    with pytest.raises(InputError, match="part 'nothing' has no request"):
        fit(new_model(), empty, bce, progress=False)


def test_a_metric_that_cannot_be_had_is_refused(
    planted: Any, new_model: Callable[..., Any], bce: Any
) -> None:
    one = Part(planted.log, RowRanges([[250, 251]]), "one")
    clicks = planted.click[250]
    same = np.flatnonzero(planted.click.all(1) | ~planted.click.any(1))
    if clicks.any() and not clicks.all() and len(same):
        one = Part(planted.log, RowRanges([[int(same[0]), int(same[0]) + 1]]), "one")
    with pytest.raises(InputError, match="part 'one' has no gauc"):
        fit(new_model(), planted.log["train"], bce, valid=one, config=QUICK, progress=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0; expected a number above 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"clip_norm": float("nan")}, "clip_norm is nan"),
        ({"warmup_steps": -1}, "warmup_steps is -1; expected 0 or more"),
        ({"plateau_factor": 1.0}, "plateau_factor is 1.0; expected a number between"),
    ],
)
def test_values_out_of_range_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FitConfig(**values)


def test_a_recipe_gets_the_same_errors() -> None:
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        from_values(FitConfig, {"epoch": 3}, where="recipe: fit")
    with pytest.raises(InputError, match="epochs is 0"):
        from_values(FitConfig, {"epochs": 0}, where="recipe: fit")
    with pytest.raises(InputError, match="rowwise_adagard"):
        from_values(FitConfig, {"table_optimizer": "rowwise_adagard"}, where="recipe: fit")


def test_bf16_says_what_the_machine_has(
    planted: Any, new_model: Callable[..., Any], bce: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = FitConfig(max_steps=1, precision="bf16")
    fit(new_model(), planted.log["train"], bce, config=config)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bf16 on this CPU ")


def test_without_out_nothing_is_written(
    planted: Any,
    new_model: Callable[..., Any],
    bce: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    report = fit(
        new_model(),
        planted.log["train"],
        bce,
        valid=planted.log["valid"],
        config=QUICK,
        progress=False,
    )
    assert report.run is None
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(report.steps)) == 14
