"""What the engine says is what the model says, whatever way it got there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from prerank.cascade import Cascade, Tier
from prerank.errors import CheckFailedError
from prerank.log import Log, Transforms, open_log
from prerank.models import TABLE
from prerank.models.base import Model
from prerank.models.two_tower import TwoTower
from prerank.serving.engine import Engine
from prerank.serving.export import PARITY, export
from prerank.serving.messages import RankRequest
from prerank.serving.replay import requests_of
from prerank.serving.selftest import difference


def offline(model: Model, log: Log, rows: list[int]) -> list[torch.Tensor]:
    """Logits of the requests in these rows, all of them one batch, by the training-time path."""
    from prerank.log import Part, RowRanges

    assert model.transforms is not None
    part = Part(log, RowRanges.of(np.array(rows)), "rows")
    batch = next(iter(part.batches(model.transforms, len(rows), prefetch=0)))
    with torch.inference_mode():
        logits = model(batch.inputs).logits
    return list(logits.split(batch.inputs.offsets.diff().tolist()))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_model_scores_as_in_training(
    name: str,
    rich_log: Log,
    transforms: Transforms,
    new_model: Callable[..., Model],
    requests: list[RankRequest],
    tmp_path: Path,
) -> None:
    model = new_model(name, transforms)
    report = export(model, tmp_path / "bundle", rich_log, num_checked=8, num_stored=2)
    assert max(report["checked"]["parity"]) <= PARITY
    engine = Engine.open(tmp_path / "bundle", Engine.Config(dtype="fp32", micro_batch=7))
    expected = offline(model, rich_log, list(range(len(requests))))
    for request, logits in zip(requests, expected, strict=True):
        # Through JSON, as it comes in.
        sent = msgspec.json.decode(msgspec.json.encode(request), type=RankRequest)
        (found,) = engine.scores(sent)
        assert difference(found.numpy(), logits.numpy()) < 1e-5
        assert engine.rank(sent).ids == [
            request.candidates.ids[k] for k in logits[:, 0].argsort(descending=True, stable=True)
        ] or len(set(logits[:, 0].tolist())) < len(logits)


def test_each_tier_of_a_cascade_and_its_order(
    engine: Engine, cascade: Cascade, rich_log: Log, requests: list[RankRequest]
) -> None:
    rows = list(range(len(requests)))
    expected = [offline(model, rich_log, rows) for model in cascade.models]
    for k, request in enumerate(requests):
        for tier, found in enumerate(engine.scores(request)):
            assert difference(found.numpy(), expected[tier][k].numpy()) < 1e-5
        answer = engine.rank(request)
        first = expected[0][k][:, 0]
        forwarded = first.argsort(descending=True)[: int(np.ceil(0.4 * len(first) - 1e-9))]
        value = (expected[1][k].double().sigmoid() * torch.tensor([1.0, 2.0])).sum(1)
        head = forwarded[value[forwarded].argsort(descending=True)].tolist()
        tail = [i for i in first.argsort(descending=True).tolist() if i not in head]
        assert answer.ids == [request.candidates.ids[i] for i in head + tail]
        assert answer.tier == [1] * len(head) + [0] * len(tail)


def test_strings_as_item_ids(
    text_log: Log, new_model: Callable[..., Model], tmp_path: Path
) -> None:
    fitted = Transforms.fit(text_log["train"], min_count=1)
    model = new_model("two_tower", fitted)
    export(model, tmp_path / "bundle", text_log, num_checked=8, num_stored=2)
    engine = Engine.open(tmp_path / "bundle", Engine.Config(dtype="fp32"))
    rows = [5, 9]
    for request, logits in zip(
        requests_of(text_log, rows), offline(model, text_log, rows), strict=True
    ):
        assert difference(engine.scores(request)[0].numpy(), logits.numpy()) < 1e-5
        assert all(isinstance(i, str) for i in engine.rank(request).ids)


def test_transforms_of_their_own_for_each_tier(
    rich_log: Log, transforms: Transforms, new_model: Callable[..., Model], tmp_path: Path
) -> None:
    short = Transforms.fit(rich_log["train"], min_count=4, max_history=2)
    models = [new_model("mlp", short), new_model("din", transforms)]
    made = Cascade([Tier(models[0], forward=5), Tier(models[1])])
    export(made, tmp_path / "bundle", rich_log, num_checked=8, num_stored=2)
    assert len(list((tmp_path / "bundle" / "transforms").glob("*.json"))) == 2
    engine = Engine.open(tmp_path / "bundle", Engine.Config(dtype="fp32"))
    rows = [3, 11, 40]
    for tier, model in enumerate(models):
        for request, logits in zip(
            requests_of(rich_log, rows), offline(model, rich_log, rows), strict=True
        ):
            assert difference(engine.scores(request)[tier].numpy(), logits.numpy()) < 1e-5


def test_trunk_passes_its_request_state_on(
    rich_log: Log, transforms: Transforms, new_model: Callable[..., Model], tmp_path: Path
) -> None:
    from prerank.models import HAPExpressive, HAPLight

    light = new_model("hap_light", transforms)
    assert isinstance(light, HAPLight)
    strong = HAPExpressive.over(light, HAPExpressive.Config(attention="history")).eval()
    strong.transforms = transforms
    export(
        Cascade([Tier(light, forward=0.5), Tier(strong)]),
        tmp_path / "bundle",
        rich_log,
        num_checked=8,
        num_stored=2,
    )
    engine = Engine.open(tmp_path / "bundle", Engine.Config(dtype="fp32"))
    assert engine.pipeline._request_states.trunk_of == [None, 0]
    (request,) = requests_of(rich_log, [7])
    (logits,) = offline(strong, rich_log, [7])
    assert difference(engine.scores(request)[1].numpy(), logits.numpy()) < 1e-5


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_smaller_states_lose_a_little_and_say_so(
    dtype: Any, cascade: Cascade, rich_log: Log, requests: list[RankRequest], tmp_path: Path
) -> None:
    report = export(cascade, tmp_path / "b", rich_log, dtype=dtype, num_checked=12, num_stored=3)
    checked = report["checked"]
    assert max(checked["parity"]) < PARITY < checked["difference"] < 0.2
    assert 0.8 < checked["agreement"] <= 1
    plain = export(cascade, tmp_path / "plain", rich_log, num_checked=2, num_stored=1)
    small, large = (
        (tmp_path / name / "tiers" / "1" / "items.safetensors").stat().st_size
        for name in ("b", "plain")
    )
    assert small < (0.6 if dtype == "bf16" else 0.4) * large
    assert plain["checked"]["difference"] < PARITY
    engine = Engine.open(tmp_path / "b", Engine.Config(dtype="fp32"))
    assert engine.self_test().ok
    assert sorted(engine.rank(requests[5]).ids) == sorted(requests[5].candidates.ids)


def test_a_model_that_reads_more_than_its_states_is_refused(
    rich_log: Log, transforms: Transforms, new_model: Callable[..., Model], tmp_path: Path
) -> None:
    """Negative control: the forward pass looks at the whole request, the states cannot."""
    model = new_model("two_tower", transforms)

    def forward(inputs: Any) -> Any:
        scores = TwoTower.forward(model, inputs)  # type: ignore[arg-type]
        return type(scores)(scores.logits - scores.logits.mean())

    model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(CheckFailedError, match=r"tier 0 \(TwoTower\) differs"):
        export(model, tmp_path / "bundle", rich_log, num_checked=8)
    assert not list(tmp_path.iterdir())


def test_bf16_is_taken_only_where_it_keeps_the_order(bundle: Path) -> None:
    loose = Engine.open(bundle, Engine.Config(dtype="bf16", min_agreement=0.5))
    assert loose.stats().dtype == "bf16"
    assert "agreement" in loose.stats().dtype_reason
    strict = Engine.open(bundle, Engine.Config(dtype="bf16", min_agreement=1.0))
    found = strict.stats()
    assert found.dtype == "fp32" or loose.self_test().agreement == 1.0
    assert Engine.open(bundle, Engine.Config(dtype="fp32")).stats().dtype_reason == "asked for"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_thousand_requests(name: str, tmp_path: Path, new_model: Callable[..., Model]) -> None:
    from prerank.world import WorldConfig, write_world

    write_world(tmp_path / "log", WorldConfig(num_requests=1_200, num_items=2_000, num_users=300))
    log = open_log(tmp_path / "log")
    model = new_model(name, Transforms.fit(log["train"]))
    export(model, tmp_path / "bundle", log)
    engine = Engine.open(tmp_path / "bundle", Engine.Config(dtype="fp32"))
    rows = list(range(1_000))
    worst = 0.0
    expected: list[torch.Tensor] = []
    for start in range(0, 1_000, 50):
        expected += offline(model, log, rows[start : start + 50])
    for request, logits in zip(requests_of(log, rows), expected, strict=True):
        worst = max(worst, difference(engine.scores(request)[0].numpy(), logits.numpy()))
    assert worst < PARITY
