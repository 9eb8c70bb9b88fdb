"""Diagnosis of a batch against closed forms on a linear model, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prerank.batch import POSITIVE, UNKNOWN, Inputs, Pairs, RequestBatch, Rows, Scores
from prerank.models.base import Model
from prerank.nn import FusedTables
from prerank.objectives import get
from prerank.objectives.base import local_weight
from prerank.schema import Schema
from prerank.training.diagnosis import diagnose
from prerank.training.diagnosis.gram import gram_matrices
from prerank.training.diagnosis.pulls import split_pulls

_WIDTH = 3


class Linear(Model):
    """``logit = w . x_candidate + a . e_item``: both gradients are known by hand."""

    def __init__(self, schema: Schema, *, sparse: bool = True) -> None:
        super().__init__(schema)
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 2, dtype=torch.float64))
        config = FusedTables.Config(dim=_WIDTH, sparse=sparse)
        self.tables = config.build({"item": schema.size("item")}).double()
        self.tables.reset_parameters()
        self.register_buffer("a", torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def request_state(self, inputs: Inputs) -> Rows:
        raise NotImplementedError

    item_state = request_state

    def score(self, request_state: Any, item_state: Any, pairs: Pairs) -> Scores:
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Scores:
        columns = self.tables.columns(["item"])
        e_UD = self.tables(inputs.items.categorical[:, :1], columns)[:, 0]
        logit_I = (e_UD @ self.a)[inputs.item_of] + inputs.candidate.dense @ self.weight
        return Scores(logit_I.unsqueeze(1))


class PerSource:
    """One denominator for all sources, or one each; parts are per source either way."""

    per_impression = False

    def __init__(self, names: tuple[str, ...], *, mixed: bool) -> None:
        self.names, self.mixed, self.normaliser = names, mixed, local_weight

    def __call__(self, scores: Mapping[str, Scores], batch: RequestBatch) -> dict[str, Tensor]:
        s_I = scores["model"].logits[:, 0]
        source_I = batch.evidence.source
        parts: dict[str, Tensor] = {}
        for r in range(batch.num_requests):
            mine_I = batch.inputs.request_of == r
            for p in torch.where(mine_I & (source_I == POSITIVE))[0]:
                for code, name in enumerate(self.names):
                    group_I = mine_I & (source_I == code)
                    against_I = mine_I & (source_I >= 0) if self.mixed else group_I
                    if not group_I.any():
                        continue
                    log_z = torch.cat([s_I[p : p + 1], s_I[against_I]]).logsumexp(0)
                    push = ((s_I[group_I] - log_z).exp().detach() * (s_I[group_I] - s_I[p])).sum()
                    part = push if self.mixed else log_z - s_I[p]
                    key = f"nce/{name}"
                    parts[key] = parts.get(key, torch.zeros(())) + part / batch.num_requests
        return parts


@pytest.fixture(scope="module")
def schema(schemas: dict[str, Schema]) -> Schema:
    rich = schemas["rich"]
    return rich


@pytest.fixture(scope="module")
def batch(schema: Schema, make_batch: Callable[..., RequestBatch]) -> RequestBatch:
    return make_batch(schema, num_requests=30, dtype=torch.float64)


def _by_hand(model: Linear, batch: RequestBatch, pull_I: np.ndarray) -> tuple[Any, Any]:
    """Return the gradients of the weight and of the whole table for a gradient of scores."""
    x_IF = batch.inputs.candidate.dense.numpy()
    item_I = batch.inputs.items.categorical[batch.inputs.item_of, 0].numpy()
    table_VD = np.zeros(model.tables.weight.shape)
    for i, item in enumerate(item_I):
        table_VD[item] += pull_I[i] * model.a.numpy()
    return pull_I @ x_IF, table_VD.ravel()


def _softmax_pulls(model: Linear, batch: RequestBatch, *, mixed: bool) -> dict[str, np.ndarray]:
    """Return the gradient of scores that each source causes, from the formulas of the softmax."""
    s_I = model(batch.inputs).logits[:, 0].detach().numpy()
    source_I, request_I = batch.evidence.source.numpy(), batch.inputs.request_of.numpy()
    names = model.schema.source_names
    pulls = {name: np.zeros_like(s_I) for name in names}
    for p in np.flatnonzero(source_I == POSITIVE):
        mine_I = request_I == request_I[p]
        for code, name in enumerate(names):
            group_I = mine_I & (source_I == code)
            against_I = mine_I & (source_I >= 0) if mixed else group_I
            z = np.exp(s_I[p]) + np.exp(s_I[against_I]).sum()
            share_I = np.where(group_I, np.exp(s_I), 0) / z / batch.num_requests
            pulls[name] += share_I
            pulls[name][p] -= share_I.sum()
    return pulls


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_every_number_equals_its_closed_form(
    schema: Schema, batch: RequestBatch, mixed: bool, sparse: bool
) -> None:
    model, names = Linear(schema, sparse=sparse), schema.source_names
    found = diagnose(model, PerSource(names, mixed=mixed), batch)
    pulls = _softmax_pulls(model, batch, mixed=mixed)
    source_I = batch.evidence.source.numpy()
    total_I = sum(pulls.values())
    mass = {n: np.abs(pulls[n][source_I == c]).sum() for c, n in enumerate(names)}
    used: set[str] = set()

    def check(key: str, value: float) -> None:
        used.add(key)
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key

    for where, which in (("dense", 0), ("table", 1)):
        grads = {n: _by_hand(model, batch, pull)[which] for n, pull in pulls.items()}
        total = _by_hand(model, batch, total_I)[which]
        check(f"norm/{where}/total", np.linalg.norm(total))
        for code, name in enumerate(names):
            alone = _by_hand(model, batch, np.where(source_I == code, total_I, 0.0))[which]
            check(f"norm/{where}/contrast/{name}", np.linalg.norm(grads[name]))
            check(f"norm/{where}/negative/{name}", np.linalg.norm(alone))
            check(f"dominance/{where}/{name}", grads[name] @ total / (total @ total))
        for b, a in itertools.combinations(names, 2):
            x, y = np.linalg.norm(grads[a]), np.linalg.norm(grads[b])
            check(f"cos/{where}/{a}:{b}", grads[a] @ grads[b] / (x * y))
            check(f"similarity/{where}/{a}:{b}", 2 * x * y / (x**2 + y**2))
    s_I = model(batch.inputs).logits[:, 0].detach().numpy()
    check("logit/positive", s_I[source_I == POSITIVE].mean())
    for code, name in enumerate(names):
        reached = (source_I == code) & (pulls[name] != 0)
        check(f"negatives/{name}", reached.sum())
        check(f"requests/{name}", len(set(batch.inputs.request_of.numpy()[reached])))
        check(f"logit/{name}", s_I[source_I == code].mean())
        check(f"per_sample/{name}", mass[name] / reached.sum())
        check(f"mass/{name}", mass[name] / sum(mass.values()))
    assert used == set(found)
    shares = [found[f"dominance/dense/{name}"] for name in names]
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)


def test_for_one_positive_grouping_keeps_the_direction_of_a_source(
    schema: Schema, batch: RequestBatch
) -> None:
    model, names = Linear(schema), schema.source_names
    source = batch.evidence.source
    of_request = [source[batch.inputs.request_of == r] for r in range(batch.num_requests)]
    fitting = [
        r
        for r, found in enumerate(of_request)
        if int((found == POSITIVE).sum()) == 1 and int((found >= 0).sum()) > 2
    ]
    one = batch.select(torch.tensor(fitting[:1]))
    grouped, mixed = (diagnose(model, PerSource(names, mixed=m), one) for m in (False, True))
    ratios = {
        n: grouped[f"per_sample/{n}"] / mixed[f"per_sample/{n}"]
        for n in names
        if f"per_sample/{n}" in mixed
    }
    assert len(ratios) > 1
    for name, ratio in ratios.items():
        assert ratio > 1.0
        for norm in ("norm/dense/negative", "norm/table/contrast"):
            key = f"{norm}/{name}"
            assert grouped[key] == pytest.approx(ratio * mixed[key], rel=1e-9)
    assert {k: v for k, v in mixed.items() if k.startswith("cos/")} == pytest.approx(
        {k: v for k, v in grouped.items() if k.startswith("cos/")}, rel=1e-9
    )


def test_a_loss_without_sources_is_split_by_candidates_and_adds_up(
    schema: Schema, batch: RequestBatch
) -> None:
    model = Linear(schema)
    logits = model(batch.inputs).logits.detach().expand(-1, 2).clone().requires_grad_()
    unknown = int(torch.where(batch.evidence.source == UNKNOWN)[0][0])
    batch.evidence.targets[unknown] = 1.0  # known, though it belongs to no source
    objective = get("bce").Config(task_weights={"buy": 3.0}).build(schema)
    parts = objective({"model": Scores(logits)}, batch)
    (whole,) = torch.autograd.grad(sum(parts.values()), logits, retain_graph=True)
    pulls = split_pulls(parts, logits, batch.evidence.source, schema.source_names)
    together = sum(pulls.own.values()) + sum(pulls.positive.values()) + pulls.other
    torch.testing.assert_close(together, whole, rtol=1e-12, atol=0)
    for code, name in enumerate(schema.source_names):
        mask = (batch.evidence.source == code).unsqueeze(1)
        torch.testing.assert_close(pulls.own[name], whole * mask, rtol=1e-12, atol=0)
        torch.testing.assert_close(pulls.negative[name], whole * mask, rtol=1e-12, atol=0)
    assert list(pulls.positive) == ["bce"]
    assert sum(pulls.shares["bce"].values()) == pytest.approx(1.0)
    batch.evidence.targets[unknown] = torch.nan
    assert torch.where(pulls.other.any(1))[0].tolist() == [unknown]


class TwoTasks(Linear):
    """The same with a second task."""

    def forward(self, inputs: Inputs) -> Scores:
        logits = super().forward(inputs).logits
        return Scores(torch.cat([logits, -0.5 * logits], 1))


def test_contrasts_of_a_loss_without_sources_share_the_pull_on_positives(
    schema: Schema, batch: RequestBatch
) -> None:
    model, objective = TwoTasks(schema), get("bce").Config().build(schema)
    found = diagnose(model, objective, batch)
    scores = model(batch.inputs)
    loss = sum(objective({"model": scores}, batch).values())
    (pull_IT,) = torch.autograd.grad(loss, scores.logits, retain_graph=True)
    source = batch.evidence.source
    mass = torch.stack([pull_IT[source == code].abs().sum() for code in range(len(schema.sources))])
    (total,) = torch.autograd.grad(loss, model.weight, retain_graph=True)
    assert found["norm/dense/total"] == pytest.approx(float(total.norm()), rel=1e-9)
    for code, name in enumerate(schema.source_names):
        share_I = (source == code) + (source == POSITIVE) * mass[code] / mass.sum()
        (grad,) = torch.autograd.grad(
            scores.logits, model.weight, pull_IT * share_I.unsqueeze(1), retain_graph=True
        )
        assert found[f"norm/dense/contrast/{name}"] == pytest.approx(float(grad.norm()), rel=1e-9)
        assert found[f"mass/{name}"] == pytest.approx(float(mass[code] / mass.sum()), rel=1e-9)
    for where in ("dense", "table"):
        shares = [found[f"dominance/{where}/{name}"] for name in schema.source_names]
        assert sum(shares) == pytest.approx(1.0, abs=1e-9)


def test_weights_of_parts_scale_their_sources(schema: Schema, batch: RequestBatch) -> None:
    model, names = Linear(schema), schema.source_names
    objective = PerSource(names, mixed=False)
    plain = diagnose(model, objective, batch)
    weighted = diagnose(model, objective, batch, weights={f"nce/{names[0]}": 5.0})
    for name in names:
        factor = 5.0 if name == names[0] else 1.0
        for key in (f"norm/dense/contrast/{name}", f"per_sample/{name}"):
            assert weighted[key] == pytest.approx(factor * plain[key], rel=1e-9)


def test_it_leaves_model_gradients_and_generators_alone(
    schema: Schema, batch: RequestBatch
) -> None:
    model, objective = Linear(schema).train(), PerSource(schema.source_names, mixed=True)
    model.weight.grad = torch.ones_like(model.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    objective.normaliser = abs
    state = torch.get_rng_state()
    with torch.no_grad():
        diagnose(model, objective, batch)
    assert model.training
    assert objective.normaliser is abs
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
    assert model.tables.weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_sources_without_negatives_have_counts_only(schema: Schema, batch: RequestBatch) -> None:
    model = Linear(schema)
    name, others = schema.source_names[0], schema.source_names[1:]
    objective = PerSource(schema.source_names, mixed=False)
    gone = batch.evidence.source == 0
    batch.evidence.source[gone] = 1
    try:
        found = diagnose(model, objective, batch)
    finally:
        batch.evidence.source[gone] = 0
    assert [key for key in found if name in key] == [f"requests/{name}", f"negatives/{name}"]
    assert found[f"negatives/{name}"] == 0
    shares = [found[f"dominance/dense/{other}"] for other in others]
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)


def test_a_batch_without_evidence_says_so(schema: Schema, batch: RequestBatch) -> None:
    nothing = batch.select(torch.tensor([], dtype=torch.int64))
    found = diagnose(Linear(schema), PerSource(schema.source_names, mixed=True), nothing)
    assert set(found.values()) == {0.0}


def test_inner_products_of_dense_and_sparse_tables_agree(
    schema: Schema, make_batch: Callable[..., RequestBatch]
) -> None:
    # enough lookups for the table's own backward pass
    batch = make_batch(schema, num_requests=9, num_items=6000, dtype=torch.float64)
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = Linear(schema, sparse=sparse)
        logits = model(batch.inputs).logits
        pulls = [torch.cos(k + torch.arange(len(logits)).double()).unsqueeze(1) for k in range(3)]
        pulls.insert(1, torch.zeros_like(pulls[0]))
        found.append(gram_matrices(model, logits, pulls))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)
        assert not first[1].any()
        assert first[0, 0] > 0


_VARIANTS = {
    "grouped": {"bce": 0.3},
    "mixed": {"grouping": "mixed"},
    "mixed nce, grouped bce": {"grouping": "mixed", "bce_grouping": "grouped"},
    "shared": {"scope": "batch", "bce": 0.0, "grouping": "mixed", "temperature": 0.5},
    "density": {"density": 5},
    "task": {"task": "click", "grouping": "mixed"},
}


@pytest.mark.parametrize("variant", sorted(_VARIANTS))
def test_ghcl_is_split_without_a_remainder(
    schema: Schema, batch: RequestBatch, variant: str
) -> None:
    model = TwoTasks(schema)
    objective = get("ghcl").Config(**_VARIANTS[variant]).build(schema)
    before = {k: v.clone() for k, v in objective.state_tensors().items()}
    found = diagnose(model, objective, batch)
    assert all(torch.equal(v, before[k]) for k, v in objective.state_tensors().items())
    with objective.paused():
        scores = {"model": model(batch.inputs)}
        loss = sum(objective(scores, batch).values())
        sides = objective.negative_side(scores, batch)
    (total,) = torch.autograd.grad(loss, model.weight, retain_graph=True)
    assert found["norm/dense/total"] == pytest.approx(float(total.norm()), rel=1e-9)
    for where in ("dense", "table"):
        shares = [found[f"dominance/{where}/{name}"] for name in schema.source_names]
        assert sum(shares) == pytest.approx(1.0, abs=1e-9)
    for name, side in sides.items():
        (grad,) = torch.autograd.grad(side, model.weight, retain_graph=True)
        assert found[f"norm/dense/negative/{name}"] == pytest.approx(float(grad.norm()), rel=1e-9)


@pytest.mark.parametrize("variant", sorted(set(_VARIANTS) - {"task"}))
def test_what_ghcl_calls_the_negative_side_is_the_loss_at_the_negatives(
    schema: Schema, batch: RequestBatch, variant: str
) -> None:
    model = TwoTasks(schema)
    objective = get("ghcl").Config(**_VARIANTS[variant]).build(schema)
    own = diagnose(model, objective, batch)
    ones = dict.fromkeys(objective({"model": model(batch.inputs)}, batch), 1.0)
    by_mask = diagnose(model, objective, batch, weights=ones)
    assert own == pytest.approx(by_mask, rel=1e-9, abs=1e-12)
