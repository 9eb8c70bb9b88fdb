"""Warm start: what is known is kept bit for bit, what is new starts at the unknown row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from prerank.config import from_values
from prerank.errors import InputError
from prerank.evaluation.runs import load_runs
from prerank.log import Log, Transforms, open_log, write_log
from prerank.log.format.files import read_json
from prerank.log.growth import append_log
from prerank.models import get
from prerank.nn import FusedTables
from prerank.objectives import get as get_objective
from prerank.schema import Feature, Label, Schema, Task
from prerank.training import (
    Drift,
    FitConfig,
    InterruptedRunError,
    Sum,
    WarmStart,
    fit,
    load_run,
    read_run,
    warm_start,
)
from prerank.training.checkpoint import load_checkpoint
from prerank.training.loop import Trainer
from prerank.training.validate import validate

SCHEMA = Schema(
    features=(
        Feature(name="user", owner="user", kind="categorical"),
        Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
        Feature(name="item", owner="item", kind="categorical"),
        Feature(name="x", owner="candidate", kind="dense", transforms=("standard",)),
    ),
    labels=(Label(name="click"),),
)
CONFIG = FitConfig(batch_size=20, shuffle=False, min_count=1, eval_metric="loss", seed=3)


def _requests(first: int, num: int, items: list[int], users: list[str], shift: float) -> pa.Table:
    rng = np.random.default_rng(first)
    chosen = [rng.permutation(items)[:4].tolist() for _ in range(num)]
    clicks = [[float((i * 7 + k) % 3 == 0) for i in row] for k, row in enumerate(chosen)]
    return pa.table(
        {
            "request_id": np.arange(first, first + num),
            "user": rng.choice(users, num),
            "time": 1_700_000_000_000 + np.arange(first, first + num) * 600_000,
            "candidates.item": chosen,
            "candidates.stage": [["exposed"] * 4] * num,
            "candidates.x": (rng.normal(size=(num, 4)) + shift).tolist(),
            "labels.click": clicks,
        }
    )


OLD_ITEMS, OLD_USERS = list(range(100, 120)), ["a", "b", "c"]
NEW_ITEMS, NEW_USERS = [*range(105, 125)], ["b", "d"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Another log of the requests of ``day``, with indices of its own."""
    path = tmp_path_factory.mktemp("warm") / "other"
    write_log(path, SCHEMA, [_requests(100, 40, NEW_ITEMS, NEW_USERS, 2.0)])
    return open_log(path)


def new_model(schema: Schema, seed: int = 0, name: str = "two_tower", **values: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"two_tower": {"width": 4, "tower": {"hidden": [8]}}, "mlp": {}}
    kind: Any = get(name)
    given = {"tables": {"dim": 4}, **sizes[name], **values}
    return from_values(kind.Config, given, where="test").build(schema)


def tables_of(model: Any) -> FusedTables:
    """The tables of a model, wherever it keeps them."""
    return next(m for m in model.modules() if isinstance(m, FusedTables))


OBJECTIVE: Any = get_objective("bce").Config().build(SCHEMA)


def train(model: Any, part: Any, config: FitConfig = CONFIG, **options: Any) -> Any:
    return fit(model, part, OBJECTIVE, config=config, progress=False, **options)


def warm(model: Any, run: Any, part: Any, config: FitConfig = CONFIG, **options: Any) -> Any:
    return warm_start(model, run, part, OBJECTIVE, config=config, **options)


def refusal(function: Any, *args: Any, **options: Any) -> str:
    """The one line with which a call fails."""
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log and a run on its part ``old``; then it grew by ``day``, with new ids, and ``same``."""
    folder = tmp_path_factory.mktemp("warm")
    path, run = folder / "log", folder / "first"
    splits = {"old": np.arange(100)}
    write_log(path, SCHEMA, [_requests(0, 100, OLD_ITEMS, OLD_USERS, 0.0)], splits=splits)
    log = open_log(path)
    train(new_model(log.schema), log["old"], out=run)
    append_log(path, [_requests(100, 40, NEW_ITEMS, NEW_USERS, 2.0)], part="day")
    append_log(path, [_requests(140, 40, OLD_ITEMS, OLD_USERS, 0.0)], part="same")
    return path, run


@pytest.fixture(scope="module")
def log(grown: tuple[Path, Path]) -> Log:
    return open_log(grown[0])


@pytest.fixture(scope="module")
def run(grown: tuple[Path, Path]) -> Path:
    """A run on ``old``; nobody changes it."""
    return grown[1]


def _logits(model: Any, log: Log, part: str | None = None) -> torch.Tensor:
    chosen = log[part] if part else log.all()
    with torch.no_grad():
        batches = chosen.batches(model.transforms, 64, prefetch=0)
        return torch.cat([model(b.inputs).logits for b in batches])


def _weights(model: Any, name: str, raw: Any) -> torch.Tensor:
    """The row of a raw value, looked up by value."""
    row = int(model.transforms.vocabularies[name].encode(pa.array([raw]))[0])
    return tables_of(model).weight[tables_of(model).rows_of(name)][row].detach()


def test_known_rows_are_kept_and_new_ones_start_at_the_unknown_row(log: Log, run: Path) -> None:
    old, new = load_run(run), new_model(log.schema, seed=9)
    warm(new, run, log["day"], noise_std=0.5)
    for name, known, fresh in (
        ("item", OLD_ITEMS, set(NEW_ITEMS) - set(OLD_ITEMS)),
        ("user", OLD_USERS, {"d"}),
    ):
        assert all(torch.equal(_weights(new, name, v), _weights(old, name, v)) for v in known)
        unknown = tables_of(old).weight[tables_of(old).rows_of(name)][1]
        noise = torch.stack([_weights(new, name, v) - unknown for v in fresh])
        assert (noise != 0).all()
        assert 0.1 < float(noise.detach().std()) < 1.0
    assert torch.equal(
        tables_of(new).weight[tables_of(new).rows_of("hour")],
        tables_of(old).weight[tables_of(old).rows_of("hour")],
    )
    for name, parameter in old.named_parameters():
        if not name.endswith("tables.weight"):
            assert torch.equal(parameter, dict(new.named_parameters())[name])
    again = new_model(log.schema, seed=10)
    warm(again, run, log["day"], noise_std=0.5)
    assert torch.equal(tables_of(again).weight, tables_of(new).weight)
    changed = msgspec.structs.replace(CONFIG, seed=4)
    warm(again, run, log["day"], config=changed, noise_std=0.5)
    assert not torch.equal(tables_of(again).weight, tables_of(new).weight)


def test_without_noise_every_score_is_the_old_one(log: Log, run: Path, other: Log) -> None:
    old, new = load_run(run), new_model(log.schema, seed=9)
    warm(new, run, log["day"], noise_std=0.0)
    new.eval()
    for part in ("old", "day", "same"):
        assert torch.equal(_logits(new, log, part), _logits(old, log, part))
    # Another log has other indices: rows are found by raw value, and ids it lacks stay known.
    begun = WarmStart.of(run, other.all(), min_count=1)
    moved = new_model(begun.schema, seed=9)
    warm(moved, begun, other.all(), noise_std=0.0)
    moved.eval()
    assert torch.equal(_logits(moved, other), _logits(old, other))
    assert torch.equal(_logits(moved, log, "old"), _logits(old, log, "old"))
    assert torch.equal(_logits(moved, other), _logits(old, log, "day"))
    ids = {x.schema.lineage.log_id for x in (moved.transforms, other, log)}
    assert len(ids) == 3


def test_min_count_gives_rows_and_what_was_known_keeps_its_row(log: Log, run: Path) -> None:
    day = _requests(100, 40, NEW_ITEMS, NEW_USERS, 2.0)
    counts = Counter(i for row in day["candidates.item"].to_pylist() for i in row)
    limit = sorted(counts[i] for i in NEW_ITEMS if i not in OLD_ITEMS)[2]
    transforms = WarmStart.of(run, log["day"], min_count=limit).transforms
    index = transforms.vocabularies["item"].encode(pa.array(NEW_ITEMS))
    for item, row in zip(NEW_ITEMS, index.tolist(), strict=True):
        has_own = item in OLD_ITEMS or counts[item] >= limit
        assert transforms.rows["item"][row] == (row if has_own else 1)
    assert {counts[i] >= limit for i in set(NEW_ITEMS) - set(OLD_ITEMS)} == {True, False}


def test_an_id_too_rare_before_gets_a_row_when_it_comes_often(log: Log, tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, min_count=25)
    model = new_model(log.schema)
    train(model, log["old"], config=config, out=tmp_path / "run")
    rare = model.transforms.rows["item"][2:22] == 1
    assert 0 < rare.sum() < 20
    begun = WarmStart.of(tmp_path / "run", log["same"], min_count=2)
    assert (begun.transforms.rows["item"][2:22] == np.arange(2, 22)).all()
    new = new_model(log.schema, seed=9)
    begun.fill(new, noise_std=0.0)
    rows = tables_of(new).weight[tables_of(new).rows_of("item")]
    assert (rows[2:22][torch.from_numpy(rare)] == rows[1]).all()  # not its untrained row
    assert not (rows[2:22][torch.from_numpy(~rare)] == rows[1]).all()


@pytest.mark.parametrize("table_optimizer", ["rowwise_adagrad", "adagrad", "lazy_adam"])
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_two_runs_with_kept_state_are_one_long_run(
    log: Log, tmp_path: Path, table_optimizer: str, storage: str
) -> None:
    """Old requests, then those of ``same`` (no new ids): bit for bit as in one go."""
    config = msgspec.structs.replace(CONFIG, table_optimizer=table_optimizer, table_lr=0.01)
    tables = {"tables": {"dim": 4, "storage": storage}}
    both = type(log.all())(log, type(log["old"].rows)([[0, 100], [140, 180]]), "both")
    whole = new_model(log.schema, **tables)
    whole.transforms = Transforms.fit(log["old"], min_count=1)
    train(whole, both, config=config)

    first = new_model(log.schema, **tables)
    train(first, log["old"], config=config, out=tmp_path / "first")
    results = {}
    for keep in (True, False):
        model = new_model(log.schema, seed=9, **tables)
        start = warm(model, tmp_path / "first", log["same"], config=config, keep_optimizer=keep)
        train(model, log["same"], config=config, start=start, out=tmp_path / str(keep))
        results[keep] = model
    for raw in OLD_ITEMS:
        assert torch.equal(_weights(results[True], "item", raw), _weights(whole, "item", raw))
    assert torch.equal(_logits(results[True], log, "same"), _logits(whole, log, "same"))
    assert not torch.equal(_logits(results[False], log, "same"), _logits(whole, log, "same"))


def test_kept_state_of_rows_follows_their_ids(log: Log, run: Path, other: Log) -> None:
    found, old = load_checkpoint(run / "checkpoints", 5), load_run(run)
    for part in (log["day"], other.all()):
        begun = WarmStart.of(run, part, min_count=1)
        model = new_model(begun.schema, seed=9)
        begun.fill(model)
        state = begun.optimisers(model, CONFIG)
        key = next(key for key in found.tensors if key.endswith("tables.weight/sum"))
        sums, before = state[key], found.tensors[key]
        assert len(sums) == len(tables_of(model).weight) > len(before)
        for raw in {*OLD_ITEMS, *NEW_ITEMS}:
            row = int(begun.transforms.vocabularies["item"].encode(pa.array([raw]))[0])
            value = sums[tables_of(model).rows_of("item")][row]
            if raw in OLD_ITEMS:
                index = int(old.transforms.vocabularies["item"].encode(pa.array([raw]))[0])  # type: ignore[union-attr]
                assert value == before[tables_of(old).rows_of("item")][index] > 0  # type: ignore[operator, union-attr, index]
            else:
                assert value == 0
        dense = [k for k in state if k.startswith("dense:")]
        assert dense
        assert all(torch.equal(state[k], found.tensors[k]) for k in dense)


def test_drift_report_by_hand(log: Log, run: Path, other: Log) -> None:
    report = WarmStart.of(run, log["day"], min_count=1).drift(OBJECTIVE, batch_size=20)
    day = _requests(100, 40, NEW_ITEMS, NEW_USERS, 2.0).to_pylist()
    old = _requests(0, 100, OLD_ITEMS, OLD_USERS, 0.0).to_pylist()
    shown = [i for row in day for i in row["candidates.item"]]
    items = report.vocabularies["item"]
    assert items.ids == len(set(shown))
    assert items.new_ids == len(set(shown) - set(OLD_ITEMS))
    assert items.new_share == pytest.approx(np.mean([i not in OLD_ITEMS for i in shown]))
    users = report.vocabularies["user"]
    assert (users.ids, users.new_ids) == (2, 1)
    assert users.new_share == pytest.approx(np.mean([row["user"] == "d" for row in day]))
    x_old, x_day = (np.array([row["candidates.x"] for row in rows]) for rows in (old, day))
    shift = (x_day.mean() - x_old.mean()) / x_old.std()
    assert report.dense == {"candidates.x": pytest.approx(shift, abs=1e-5)}
    rates = [np.mean([row["labels.click"] for row in rows]) for rows in (old, day)]
    assert [report.engaged_rate_before, report.engaged_rate] == pytest.approx(rates)
    expected = validate(load_run(run), log["day"], OBJECTIVE, Sum(), batch_size=20)
    assert report.before_training["loss"] == expected["loss"]
    assert report.before_training["gauc"] == expected["gauc"]
    elsewhere = WarmStart.of(run, other.all(), min_count=1).drift(OBJECTIVE, batch_size=20)
    assert elsewhere.engaged_rate_before is None  # the run's rows are of another log
    assert elsewhere.vocabularies == report.vocabularies


@pytest.fixture(scope="module")
def second(log: Log, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ``day`` that went on from ``run``."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    model = new_model(log.schema, seed=9)
    start = warm(model, run, log["day"])
    train(model, log["day"], start=start, out=folder)
    return folder


def test_the_run_tells_where_it_comes_from(log: Log, run: Path, second: Path) -> None:
    found = read_run(second)
    assert found.origin is not None and found.origin.run == str(run)  # noqa: PT018
    assert found.origin.weights_sha256 == read_run(run).weights_sha256
    assert [rows.part for rows in found.seen] == ["old", "day"]
    assert read_json(second / "drift.json", Drift).vocabularies["user"].new_ids == 1
    assert read_run(run).origin is None


def test_evaluation_refuses_what_earlier_runs_have_seen(log: Log, second: Path) -> None:
    for part, number in (("old", 100), ("day", 40)):
        with pytest.raises(InputError, match=f"trained on {number} of the {number} requests"):
            load_runs([second], log[part])
    model = load_runs([second], log["same"])["second"]
    assert _logits(model, log, "same").isfinite().all()


def test_the_same_call_again_finds_the_run_and_another_origin_is_refused(
    log: Log, run: Path, second: Path, tmp_path: Path
) -> None:
    def again(folder: Path, **options: Any) -> Any:
        model = new_model(log.schema, seed=9)
        start = warm(model, folder, log["day"], **options)
        return train(model, log["day"], start=start, out=second)

    assert again(run).resumed_from == 2
    with pytest.raises(InputError, match=r"origin\.noise_std was 0\.01, is 0\.5"):
        again(run, noise_std=0.5)
    changed = msgspec.structs.replace(CONFIG, seed=8)
    train(new_model(log.schema, seed=1), log["old"], config=changed, out=tmp_path / "b")
    with pytest.raises(InputError, match=r"origin\.weights_sha256 was"):
        again(tmp_path / "b")


def test_interrupted_and_resumed_is_not_interrupted(
    log: Log, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(CONFIG, epochs=3, shuffle=True, checkpoint_every=1)

    def go(folder: Path) -> Any:
        model = new_model(log.schema, seed=9)
        start = warm(model, run, log["day"], config=config, keep_optimizer=True)
        return model, train(model, log["day"], config, start=start, out=folder)

    whole, _ = go(tmp_path / "whole")
    update, steps = Trainer.update, []

    def interrupted(self: Any, batch: Any) -> None:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        update(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", interrupted)
        with pytest.raises(InterruptedRunError):
            go(tmp_path / "stopped")
    resumed, report = go(tmp_path / "stopped")
    assert report.resumed_from == 3
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight)


def test_what_does_not_fit_is_refused_in_one_line(log: Log, run: Path, other: Log) -> None:
    day = log["day"]
    wider = new_model(log.schema, tables={"dim": 8})
    assert "use the model of the run" in refusal(warm, wider, run, day)
    deeper = new_model(log.schema, tower={"hidden": [16]})
    assert "in the run" in refusal(warm, deeper, run, day)
    others = new_model(log.schema, name="mlp")
    assert "in this model" in refusal(warm, others, run, day)
    elsewhere = new_model(other.schema)  # its tables do not hold what the run knows
    assert "schema of the warm start" in refusal(warm, elsewhere, run, other.all())
    config = msgspec.structs.replace(CONFIG, table_optimizer="adagrad")
    options = {"config": config, "keep_optimizer": True}
    says = refusal(warm, new_model(log.schema), run, day, **options)
    assert "table_optimizer was rowwise_adagrad, is adagrad" in says
    assert "no run there" in refusal(WarmStart.of, run.parent / "none", day)
    none = type(day)(log, type(day.rows)([]), "none")
    assert "part 'none' has no request" in refusal(WarmStart.of, run, none)
    assert "noise" in refusal(warm, new_model(log.schema), run, day, noise_std=-1.0)


def test_other_tasks_or_features_are_refused(run: Path, tmp_path: Path) -> None:
    table = _requests(0, 4, OLD_ITEMS, OLD_USERS, 0.0)
    tasks = msgspec.structs.replace(SCHEMA, tasks=(Task(name="c", positive="click"),))
    write_log(tmp_path / "tasks", tasks, [table])
    says = refusal(WarmStart.of, run, open_log(tmp_path / "tasks").all())
    assert "was trained for {'engaged': 'click'}" in says
    fewer = msgspec.structs.replace(SCHEMA, features=SCHEMA.features[:-1])
    write_log(tmp_path / "fewer", fewer, [table.drop_columns(["candidates.x"])])
    says = refusal(WarmStart.of, run, open_log(tmp_path / "fewer").all())
    assert "no candidate feature 'x'" in says
