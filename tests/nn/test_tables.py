"""Fused tables against one nn.Embedding per vocabulary, forward and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prerank.nn.tables
from prerank.jagged import Jagged
from prerank.nn import FusedTables
from prerank.schema import Feature, Label, Schema

SIZES = {"a": 5, "b": 3, "c": 9}


def separate(tables: FusedTables) -> nn.ModuleDict:
    """Return one plain embedding per vocabulary with the same weights."""
    return nn.ModuleDict(
        {
            name: nn.Embedding.from_pretrained(
                tables.weight.detach()[tables.rows_of(name)].clone(), freeze=False
            )
            for name in tables.vocabularies
        }
    )


def made(sparse: bool = True) -> FusedTables:
    torch.manual_seed(0)
    tables = FusedTables.Config(dim=4, sparse=sparse).build(SIZES).double()
    with torch.no_grad():
        tables.weight.normal_()
    return tables


@given(
    columns=st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    num_rows=st.integers(0, 6),
    seed=st.integers(0, 99),
    sparse=st.booleans(),
    few=st.sampled_from([0, 4096]),
)
def test_lookup_equals_separate_embeddings(
    columns: list[str], num_rows: int, seed: int, sparse: bool, few: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prerank.nn.tables, "_FEW", few)  # how many lookups make the fast kernel pay
        _equals_separate_embeddings(columns, num_rows, seed, sparse)


def _equals_separate_embeddings(columns: list[str], num_rows: int, seed: int, sparse: bool) -> None:
    tables = made(sparse)
    plain = separate(tables)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack(
        [torch.randint(SIZES[c], (num_rows,), generator=generator) for c in columns], 1
    )
    out = tables(ids, tables.columns(columns))
    expected = torch.stack([plain[c](ids[:, k]) for k, c in enumerate(columns)], 1)
    assert torch.equal(out, expected)
    with torch.no_grad():
        assert torch.equal(tables(ids, tables.columns(columns)), expected)
    weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert tables.weight.grad.is_sparse == sparse
    grad = tables.weight.grad.to_dense()
    for name in tables.vocabularies:
        reference = plain[name].weight.grad
        reference = torch.zeros(SIZES[name], 4) if reference is None else reference
        torch.testing.assert_close(grad[tables.rows_of(name)], reference.double())


@given(lengths=st.lists(st.integers(0, 4), max_size=5), seed=st.integers(0, 99))
def test_pooled_is_the_mean_of_each_row(lengths: list[int], seed: int) -> None:
    tables = made()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(SIZES["c"], (sum(lengths),), generator=generator)
    rows = Jagged.from_lengths(ids, torch.tensor(lengths, dtype=torch.int64))
    out = tables.pooled(rows, tables.columns(["c"]))
    embedding = tables.weight.detach()[tables.rows_of("c")]
    expected = (
        [
            embedding[row].mean(0) if len(row) else torch.zeros(4).double()
            for row in ids.split(lengths)
        ]
        if lengths
        else []
    )
    assert out.shape == (len(lengths), 4)
    for a, b in zip(out, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_touches_used_rows_only() -> None:
    tables = made()
    tables(torch.tensor([[2], [2], [4]]), tables.columns(["a"])).sum().backward()
    used = torch.unique(tables.weight.grad.coalesce().indices())
    assert used.tolist() == [2, 4]


def test_vocabularies_do_not_overlap_and_fill_the_weight() -> None:
    tables = made()
    rows = [r for name in SIZES for r in range(*tables.rows_of(name).indices(99))]
    assert rows == list(range(sum(SIZES.values()))) == list(range(len(tables.weight)))


@pytest.mark.parametrize("bad", [5, -1, 17])
def test_id_outside_its_vocabulary_is_a_bug(bad: int) -> None:
    """It would silently read the next table."""
    tables = made()
    with pytest.raises(AssertionError, match="outside its vocabulary"):
        tables(torch.tensor([[1, 1], [bad, 1]]), tables.columns(["a", "c"]))
    with pytest.raises(AssertionError, match="outside its vocabulary"):
        tables.pooled(Jagged(torch.tensor([bad]), torch.tensor([0, 1])), tables.columns(["a"]))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    tables = FusedTables.Config(dim=8, init_std=0.3).build({"a": 4000, "b": 4000})
    for name in ("a", "b"):
        weight = tables.weight.detach()[tables.rows_of(name)]
        assert bool((weight[:2] == 0).all()), "reserved rows start at zero"
        assert abs(weight[2:].std().item() - 0.3) < 0.01
        assert abs(weight[2:].mean().item()) < 0.01


def test_features_that_share_a_vocabulary_share_its_rows() -> None:
    schema = Schema(
        features=(
            Feature(name="likes", owner="user", kind="multi", vocabulary="tag"),
            Feature(name="tag", owner="item", kind="categorical"),
            Feature(name="price", owner="item", kind="dense"),
            Feature(name="hour", owner="context", kind="categorical", transforms=("hour",)),
        ),
        labels=(Label(name="click"),),
        vocabularies={"tag": 10},
    )
    tables = FusedTables.Config(dim=2).build_for(schema, schema.features)
    assert tables.vocabularies == ("tag", "hour")
    assert tables.weight.shape == (10 + 26, 2)


def test_only_the_weight_is_saved() -> None:
    assert list(made().state_dict()) == ["weight"]


def test_no_vocabulary_at_all() -> None:
    tables = FusedTables.Config(dim=3).build({})
    assert tables.weight.shape == (0, 3)
    empty: Tensor = tables.columns([])
    assert empty.shape == (0,)


@pytest.mark.parametrize("num", [100, 5000])
def test_lookups_of_any_number_have_the_gradient_of_an_embedding(num: int) -> None:
    tables = made()
    ids = torch.arange(num).remainder(9).unsqueeze(1)
    slope = torch.randn(num, 1, 4, dtype=torch.float64)
    (tables(ids, tables.columns(["c"])) * slope).sum().backward()
    plain = tables.weight.detach().clone().requires_grad_()
    rows = ids + tables.rows_of("c").start
    (F.embedding(rows, plain, sparse=True) * slope).sum().backward()
    ours, theirs = tables.weight.grad, plain.grad
    assert torch.equal(ours._indices(), theirs._indices())
    assert torch.equal(ours._values(), theirs._values())


def test_storage_in_bfloat16() -> None:
    torch.manual_seed(0)
    tables = FusedTables.Config(dim=4, storage="bf16").build(SIZES)
    assert tables.weight.dtype is torch.bfloat16
    ids = torch.arange(5000).remainder(9).unsqueeze(1)
    for some in (ids, ids[:7]):
        out = tables(some, tables.columns(["c"]))
        assert out.dtype is torch.float32
        assert torch.equal(out, tables.weight[tables.rows_of("c")][some].float())
    bags = Jagged(torch.tensor([3, 4, 4]), torch.tensor([0, 2, 3]))
    pooled = tables.pooled(bags, tables.columns(["c"]))
    assert pooled.dtype is torch.float32
    (out.sum() + pooled.sum()).backward()
    assert tables.weight.grad.is_sparse
    wide = FusedTables.Config(dim=4).build(SIZES)
    wide.load_state_dict(tables.state_dict())
    assert torch.equal(wide.weight, tables.weight.float()), "a run moves between storages"
