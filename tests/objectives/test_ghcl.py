"""GHCL and its mixed variants against loops, on ragged batches; what each part means."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prerank.batch import Scores
from prerank.errors import InputError
from prerank.objectives.ghcl import GHCL
from prerank.schema import Label, Schema, Task

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
CANDIDATE = st.tuples(
    st.integers(-2, 3), st.floats(-5, 5), st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.floats(0.01, 1)
)
RAGGED = st.lists(st.lists(CANDIDATE, max_size=7), max_size=4)
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([{}, {"rank": 0.4, "random": 2.0}]),
        "focal": st.sampled_from([0.0, 0.7, 2.0]),
        "log_q": st.booleans(),
        "scope": st.sampled_from(["request", "batch"]),
    }
)


def batch_and_logits(reference: ModuleType, requests: Any) -> tuple[Any, Tensor]:
    flat = [c for request in requests for c in request]
    batch = reference.batch_of(
        [[code for code, *_ in request] for request in requests],
        weight=torch.tensor([w for _, _, w, _ in flat]),
        sample_prob=torch.tensor([q for *_, q in flat]),
    )
    return batch, torch.tensor([x for _, x, *_ in flat], dtype=torch.float64).requires_grad_()


def parts_of(reference: ModuleType, batch: Any, logit: Tensor, **options: Any) -> Any:
    objective = GHCL.Config(**options).build(reference.SCHEMA)
    return objective({"m": Scores(logit[:, None])}, batch)


def same(found: Tensor, expected: Tensor, logit: Tensor) -> None:
    """Values and gradients are equal."""
    torch.testing.assert_close(found, expected, **CLOSE)
    grads = [
        torch.autograd.grad(x, logit, retain_graph=True)[0] if x.requires_grad else 0 * logit
        for x in (found, expected)
    ]
    torch.testing.assert_close(*grads, **CLOSE)


def drawn(codes: list[list[int]], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    num = sum(map(len, codes))
    return torch.randn(num, generator=generator, dtype=torch.float64).requires_grad_()


@settings(max_examples=60)
@given(requests=RAGGED, options=OPTIONS)
def test_grouped_equals_loops(reference: ModuleType, requests: Any, options: Any) -> None:
    batch, logit = batch_and_logits(reference, requests)
    weights = {"rank": 2.0, "exposed": 0.5}
    parts = parts_of(reference, batch, logit, bce=0.3, source_weights=weights, **options)
    loops = reference.Loops(batch, logit, **options)
    for k, name in enumerate(reference.NAMES):
        factor = weights.get(name, 1.0)
        same(parts[f"nce/{name}"], factor * loops.nce([k]), logit)
        same(parts[f"bce/{name}"], 0.3 * factor * loops.bce_grouped(k), logit)


@settings(max_examples=60)
@given(requests=RAGGED, options=OPTIONS)
def test_parts_of_a_mixed_loss_sum_to_it(
    reference: ModuleType, requests: Any, options: Any
) -> None:
    """In value and in gradient; a loop over one denominator says what it is."""
    batch, logit = batch_and_logits(reference, requests)
    fixed = {"random": 5.0, "rank": 0.8}
    sources = ("exposed", "rank", "random")
    codes = [reference.NAMES.index(name) for name in sources]
    parts = parts_of(
        reference,
        batch,
        logit,
        grouping="mixed",
        sources=sources,
        bce=0.3,
        denominator_weights=fixed,
        **options,
    )
    assert set(parts) == {f"{k}/{s}" for k in ("nce", "bce") for s in sources} | {"bce/positive"}
    loops = reference.Loops(batch, logit, denominator=fixed, **options)
    nce = sum(part for name, part in parts.items() if name.startswith("nce/"))
    bce = sum(part for name, part in parts.items() if name.startswith("bce/"))
    same(nce, loops.nce(codes), logit)
    same(bce, 0.3 * loops.bce_mixed(codes), logit)


def test_each_part_is_what_its_source_causes(reference: ModuleType) -> None:
    """Its gradient reaches its own negatives and the positive, and sums to 0."""
    codes = [[-1, 3, 3, 2, 0, 0, 0], [0, -1, 2, -1]]
    batch, logit = reference.batch_of(codes), drawn(codes)
    parts = parts_of(reference, batch, logit, grouping="mixed", bce=0.0)
    source = batch.evidence.source
    for k, name in enumerate(reference.NAMES):
        grad = torch.autograd.grad(parts[f"nce/{name}"], logit, retain_graph=True)[0]
        assert bool((grad[(source >= 0) & (source != k)] == 0).all())
        assert bool((grad[source == k] > 0).all())
        assert float(grad.sum()) == pytest.approx(0.0, abs=1e-15)
    assert parts["nce/prerank"] == 0.0
    assert all(parts[f"nce/{name}"] > 0 for name in ("exposed", "rank", "random"))


@pytest.mark.parametrize("grouping", ["grouped", "mixed"])
def test_other_positives_in_the_denominator_are_another_loss(
    reference: ModuleType, grouping: str
) -> None:
    """Negative control: the loop with them differs, so their absence is tested."""
    codes = [[-1, 3, -1, 0], [-1, 2, 0]]
    batch, logit = reference.batch_of(codes), drawn(codes)
    parts = parts_of(reference, batch, logit, grouping=grouping, bce=0.0, sources=("random",))
    found = parts["nce/random"]
    for is_with, is_equal in ((False, True), (True, False)):
        loss = reference.Loops(batch, logit, with_other_positives=is_with).nce([reference.RANDOM])
        assert (abs((found - loss).item()) < 1e-12) == is_equal


@pytest.mark.parametrize("grouping", ["grouped", "mixed"])
def test_requests_with_nothing_to_compare_are_skipped(reference: ModuleType, grouping: str) -> None:
    """They change neither value nor gradient: not zeros in a mean."""
    full, logits = [[-1, 3, 0], [-1, 3]], [1.0, 0.5, -1.0, 0.2, 0.4]
    both = []
    for extra, more in (([], []), ([[-1, -1], [0, 3], [], [-2]], [3.0, 4.0, 5.0, 6.0, 7.0])):
        batch = reference.batch_of(full + extra)
        logit = torch.tensor(logits + more, dtype=torch.float64)
        parts = parts_of(reference, batch, logit, grouping=grouping, bce=0.0)
        both.append(sum(parts.values()))
    torch.testing.assert_close(*both, **CLOSE)


def test_weight_zero_is_as_if_absent(reference: ModuleType) -> None:
    codes, weight = [[-1, -1, 3, 3, 0], [-1, 0, 0, -1]], torch.tensor([1, 0, 1, 0, 1, 2.0, 1, 0, 0])
    kept = [[-1, 3, 0], [-1, 0]]
    logit = drawn(codes).detach()
    for options in ({}, {"grouping": "mixed"}, {"scope": "batch"}):
        whole = reference.batch_of(codes, weight=weight)
        rest = reference.batch_of(kept, weight=weight[weight > 0])
        a = parts_of(reference, whole, logit, **options)
        b = parts_of(reference, rest, logit[weight > 0], **options)
        for name in a:
            torch.testing.assert_close(a[name], b[name], **CLOSE)


@pytest.mark.parametrize("grouping", ["grouped", "mixed"])
def test_negative_side_is_the_gradient_of_negatives_alone(
    reference: ModuleType, grouping: str
) -> None:
    codes = [[-1, 3, 3, 2, 0, 1, 0], [0, -1, 2, -1], [3, 0]]
    batch, logit = reference.batch_of(codes), drawn(codes)
    objective = GHCL.Config(grouping=grouping, bce=0.3).build(reference.SCHEMA)
    scores = {"m": Scores(logit[:, None])}
    parts, sides = objective(scores, batch), objective.negative_side(scores, batch)
    assert set(sides) == set(reference.NAMES)
    source = batch.evidence.source
    for k, name in enumerate(reference.NAMES):
        whole = parts[f"nce/{name}"] + parts[f"bce/{name}"]
        grads = [torch.autograd.grad(x, logit, retain_graph=True)[0] for x in (whole, sides[name])]
        torch.testing.assert_close(grads[1], grads[0] * (source == k), **CLOSE)
        assert bool((grads[0][source == -1] != 0).any())


@pytest.mark.parametrize("options", [{}, {"grouping": "mixed"}, {"focal": 0.5}, {"density": 5}])
def test_float32_at_large_logits(reference: ModuleType, options: Any) -> None:
    """Logits of 80 either way, in float32: as float64 says, in value and gradient."""
    codes = [[-1, 3, 2, 0], [-1, 3, 0], [3], [-1]]
    batch = reference.batch_of(codes)
    values = torch.tensor([80.0, -80, 80, -80, -80, 80, 0, 80, -80])
    found = []
    for dtype in (torch.float32, torch.float64):
        logit = values.to(dtype).requires_grad_()
        total = sum(parts_of(reference, batch, logit, **options).values())
        found.append((total.detach().double(), torch.autograd.grad(total, logit)[0].double()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_gradient_of_the_sum_by_finite_differences(reference: ModuleType) -> None:
    codes = [[-1, 3, 3, 2, 0], [0, -1, 2, -1]]
    batch, logit = reference.batch_of(codes), drawn(codes)
    for options in ({"grouping": "mixed"}, {"focal": 1.5}):
        assert torch.autograd.gradcheck(
            lambda x, options=options: sum(parts_of(reference, batch, x, **options).values()),
            logit,
        )


@pytest.mark.parametrize(
    "options", [{}, {"grouping": "mixed"}, {"density": 6}, {"grouping": "mixed", "density": 6}]
)
def test_two_processes_make_the_gradient_of_one(reference: ModuleType, options: Any) -> None:
    """Averaged over unequal shares; what processes exchange is replayed in one."""
    codes = [[-1, 3, 0, 2], [-1, 3], [0, 3], [0, 0, -1, -1, 2, 3], [-1]]
    whole, logit = reference.batch_of(codes), drawn(codes)
    shares = [whole.select(torch.arange(2)), whole.select(torch.arange(2, 5))]
    pieces = [x.detach().requires_grad_() for x in logit.split([6, 9])]

    def total(x: Tensor, batch: Any, normaliser: Any) -> Tensor:
        objective = GHCL.Config(**options).build(reference.SCHEMA)
        objective.normaliser = normaliser
        return sum(objective({"m": Scores(x[:, None])}, batch).values())

    def said_by(piece: Tensor, share: Any, means: list[Tensor]) -> list[Tensor]:
        """Return what a share asks the normaliser, when told the first means."""
        asked: list[Tensor] = []

        def listen(weight: Tensor) -> Tensor:
            asked.append(weight)
            return means[len(asked) - 1] if len(asked) <= len(means) else weight

        total(piece, share, listen)
        return asked

    means: list[Tensor] = []
    for k in range(len(said_by(pieces[0], shares[0], []))):
        both = [said_by(x, share, means)[k] for x, share in zip(pieces, shares, strict=True)]
        means.append((both[0] + both[1]) / 2)
    grads = []
    for piece, share in zip(pieces, shares, strict=True):
        left = list(means)
        value = total(piece, share, lambda _, left=left: left.pop(0))
        grads.append(torch.autograd.grad(value, piece)[0] / 2)
    expected = torch.autograd.grad(total(logit, whole, lambda weight: weight), logit)[0]
    torch.testing.assert_close(torch.cat(grads), expected, **CLOSE)


def test_a_task_says_what_is_positive(reference: ModuleType) -> None:
    """Engaged but not bought is a negative of its stage; unknown targets count if never shown."""
    schema = Schema(
        labels=(Label(name="click"), Label(name="buy")),
        tasks=(Task(name="click", positive="click"), Task(name="buy", positive="buy")),
    )
    # clicked and bought, clicked only, not clicked, engaged unknown, ranked, from the pool
    source = torch.tensor([-1, -1, 3, -2, 2, 0])
    stage = torch.tensor([len(schema.stages) - 1] * 4 + [schema.stages.index("rank"), 0])
    buy = torch.tensor([1.0, 0.0, math.nan, 0.0, math.nan, math.nan])
    objective = GHCL.Config(task="buy").build(schema)
    targets = torch.stack([torch.full((6,), math.nan), buy], 1)
    batch = reference.batch_of([source.tolist()], stage=stage, targets=targets)
    members = objective._roles.find(batch, torch.float64)
    assert members.positives.tolist() == [0]
    assert members.negatives.tolist() == [1, 3, 4, 5]
    names = [objective.sources[k] for k in members.negative_source]
    assert names == ["exposed", "exposed", "rank", "random"]
    logits = torch.zeros(6, 2, dtype=torch.float64).requires_grad_()
    total = sum(objective({"m": Scores(logits)}, batch).values())
    grad = torch.autograd.grad(total, logits)[0]
    assert bool((grad[:, 0] == 0).all())
    assert (grad[:, 1] != 0).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ("expsed",)}, "sources: 'expsed' is not known; did you mean 'exposed'"),
        ({"sources": ()}, "expected one or more"),
        ({"sources": ("rank",), "bce_sources": ("exposed",)}, "bce_sources: 'exposed'"),
        ({"task": "clik"}, "task: 'clik'"),
        ({"bce": -1.0}, "'bce' is -1.0; expected 0 or more"),
        ({"nce": 0.0, "bce": 0.0}, "nothing would be learned"),
        ({"temperature": 0.0}, "expected above 0"),
        ({"temperature": {"ranc": 1.0}}, "did you mean 'rank'"),
        ({"scope": {"poo": "batch"}}, "scope: 'poo'"),
        ({"denominator_weights": {"rank": 2.0}}, "set grouping to mixed"),
        ({"grouping": "mixed", "denominator_weights": {"rank": 0.0}}, "expected above 0"),
        ({"source_weights": {"rank": -1.0}}, "expected 0 or more"),
        ({"density": 1}, "expected 2 bins or more"),
        ({"density_momentum": 1.0}, "below 1"),
    ],
)
def test_wrong_options_are_refused(reference: ModuleType, options: Any, message: str) -> None:
    with pytest.raises(InputError, match="^ghcl.*" + message):
        GHCL.Config(**options).build(reference.SCHEMA)
