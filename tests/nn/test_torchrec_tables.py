"""TorchRec's tables beside ours: equal lookups, equal updates, the same files.

All but the refusals need torchrec 1.8.0, fbgemm-gpu-cpu 1.8.0 and torch 2.13.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import nn

from prerank.errors import InputError
from prerank.jagged import Jagged
from prerank.log import Log, open_log, write_log
from prerank.models import TwoTower
from prerank.nn import FusedTables
from prerank.nn.torchrec_tables import TorchRecTables, use_plain_tables, use_torchrec_tables
from prerank.objectives import BCE
from prerank.schema import Feature, Label, Schema
from prerank.training import FitConfig, fit
from prerank.training.combine import PCGrad
from prerank.training.optim import RowWiseAdagrad, build_optimisers

HAS_TORCHREC = importlib.util.find_spec("torchrec") is not None
needs_torchrec = pytest.mark.skipif(
    not HAS_TORCHREC, reason="torchrec is not installed (prerank[torchrec], torch 2.13)"
)
SIZES = {"user": 50, "item": 300}


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = FusedTables.Config(dim=4).build(SIZES)
        self.out = nn.Linear(4, 1)


def _pair(lr: float = 0.05) -> tuple[_Net, _Net]:
    ours, theirs = _Net(), _Net()
    use_torchrec_tables(theirs, lr=lr)
    assert isinstance(theirs.tables, TorchRecTables)
    return ours, theirs


def _ids(seed: int, num: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randint(0, size, (num,), generator=generator) for size in SIZES.values()], 1
    )


@needs_torchrec
def test_lookups_are_equal_bit_for_bit_with_and_without_gradients() -> None:
    ours, theirs = _pair()
    columns = ours.tables.columns(SIZES)
    assert torch.equal(ours.tables(_ids(1), columns), theirs.tables(_ids(1), columns))
    with torch.no_grad():
        assert torch.equal(ours.tables(_ids(1), columns), theirs.tables(_ids(1), columns))
    assert theirs.tables(_ids(1)[:0], columns).shape == (0, 2, 4)


@needs_torchrec
def test_pooled_means_are_equal_with_empty_rows_among_them() -> None:
    ours, theirs = _pair()
    ids = Jagged(torch.tensor([7, 7, 299, 2, 0]), torch.tensor([0, 3, 3, 5, 5]))
    column = ours.tables.columns(["item"])
    expected, found = (net.tables.pooled(ids, column) for net in (ours, theirs))
    torch.testing.assert_close(found, expected)
    assert (found[1] == 0).all()
    assert (found[3] == 0).all()


@needs_torchrec
def test_updates_are_row_wise_adagrad_with_repeated_rows_summed_and_a_schedule() -> None:
    ours, theirs = _pair()
    columns = ours.tables.columns(SIZES)
    optimiser = RowWiseAdagrad([ours.tables.weight], lr=0.05)
    (in_backward,) = (
        o for k, o in build_optimisers(theirs, FitConfig(table_lr=0.05)).items() if k == "table"
    )
    for step in range(5):
        lr = 0.05 / (1 + step)
        for each in (optimiser, in_backward):
            each.param_groups[0]["lr"] = lr
        ids = _ids(step) % 20  # most rows repeat
        for net in (ours, theirs):
            net.zero_grad()
            net.out(net.tables(ids, columns)).square().sum().backward()
        assert theirs.tables.weight.grad is None
        optimiser.step()
        in_backward.step()
        torch.testing.assert_close(theirs.tables.weight, ours.tables.weight, rtol=1e-5, atol=1e-6)
    sums = optimiser.state[ours.tables.weight]["sum"]
    torch.testing.assert_close(in_backward.state[theirs.tables.weight]["sum"], sums)
    assert (sums > 0).any()
    assert not torch.equal(ours.tables.weight, _Net().tables.weight)


@needs_torchrec
def test_two_lookups_of_a_row_are_two_updates_and_this_is_where_they_differ() -> None:
    ours, theirs = _pair()
    columns = ours.tables.columns(SIZES)
    optimiser = RowWiseAdagrad([ours.tables.weight], lr=0.05)
    ids = torch.full((4, 2), 7)
    for net in (ours, theirs):
        halves = [net.tables(part, columns) for part in ids.split(2)]
        net.out(torch.cat(halves)).sum().backward()
    optimiser.step()
    difference = (ours.tables.weight - theirs.tables.weight).detach().abs()
    assert difference[7].max() > 0.01  # one step of 0.05 here, 0.05 (1 + 1 / sqrt 2) there
    assert difference.sum() == difference[[7, 50 + 7]].sum()


@needs_torchrec
def test_weights_are_one_parameter_of_one_name_and_go_back_into_plain_tables() -> None:
    _, theirs = _pair()
    names = set(_Net().state_dict())
    assert set(theirs.state_dict()) == names
    theirs.load_state_dict({k: v + 1 for k, v in _Net().state_dict().items()})
    columns, parameter = theirs.tables.columns(SIZES), theirs.tables.weight
    looked_up = theirs.tables(_ids(3), columns).detach()
    torch.testing.assert_close(looked_up, _Net().tables(_ids(3), columns).detach() + 1)
    use_plain_tables(theirs)
    assert type(theirs.tables) is FusedTables
    assert theirs.tables.weight is parameter
    assert torch.equal(theirs.tables(_ids(3), columns).detach(), looked_up)


@needs_torchrec
def test_bfloat16_tables_are_refused() -> None:
    net = nn.ModuleDict({"tables": FusedTables.Config(storage="bf16").build(SIZES)})
    with pytest.raises(InputError, match="bfloat16 on cpu; expected float32 on CPU"):
        use_torchrec_tables(net, lr=0.05)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """120 requests of 4 candidates, clicks planted on even items."""
    num = 120
    items = [[(7 * k + j) % 40 for j in range(4)] for k in range(num)]
    schema = Schema(
        features=(
            Feature(name="user", owner="user", kind="categorical"),
            Feature(name="item", owner="item", kind="categorical"),
        ),
        labels=(Label(name="click"),),
    )
    requests = pa.table(
        {
            "request_id": list(range(num)),
            "user": [k % 11 for k in range(num)],
            "time": [1_700_000_000_000 + k for k in range(num)],
            "candidates.item": items,
            "candidates.stage": [["exposed"] * 4] * num,
            "labels.click": [[float(i % 2 == 0) for i in row] for row in items],
        }
    )
    path = tmp_path_factory.mktemp("log") / "log"
    write_log(path, schema, [requests])
    return open_log(path)


def _trained(log: Log, out: Path | None = None, **config: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = TwoTower.Config().build(log.schema)
    fitting = FitConfig(batch_size=16, epochs=3, **config)  # type: ignore[arg-type]
    objective = BCE.Config().build(log.schema)
    fit(model, log.all(), objective, config=fitting, out=out, progress=False)
    assert all(type(m) is not TorchRecTables for m in model.modules())
    return model.state_dict()


@needs_torchrec
def test_a_run_learns_what_ours_learns_where_no_row_is_looked_up_twice(log: Log) -> None:
    ours = _trained(log)
    theirs = _trained(log, table_backend="torchrec")
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


@needs_torchrec
def test_a_stopped_run_goes_on_bit_for_bit(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _trained(log, tmp_path / "whole", table_backend="torchrec", schedule="cosine")
    from prerank.training import loop

    update, done = loop.Trainer.update, 0

    def stop_at_9(self: loop.Trainer, batch: object) -> None:
        nonlocal done
        done += 1
        if done == 9:
            raise RuntimeError("stopped")
        update(self, batch)  # type: ignore[arg-type]

    more = {"table_backend": "torchrec", "schedule": "cosine", "checkpoint_every": 4}
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "update", stop_at_9)
        with pytest.raises(RuntimeError, match="stopped"):
            _trained(log, tmp_path / "stopped", **more)
    resumed = _trained(log, tmp_path / "stopped", **more)
    assert done == 9
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.skipif(HAS_TORCHREC, reason="torchrec is installed")
def test_without_torchrec_the_error_says_how_to_get_it_and_nothing_is_written(
    log: Log, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"cannot be imported .*torchrec==1.8.0"):
        _trained(log, tmp_path / "run", table_backend="torchrec")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"table_optimizer": "lazy_adam"}, "expected rowwise_adagrad"),
        ({"clip_norm": 1.0}, "leave clip_norm or table_backend out"),
        ({"diagnose_every": 5}, "leave diagnose_every or table_backend out"),
    ],
)
def test_what_would_have_to_read_the_gradients_of_tables_is_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FitConfig(table_backend="torchrec", **values)  # type: ignore[arg-type]


@needs_torchrec
def test_combine_rules_that_read_gradients_are_refused(log: Log) -> None:
    model = TwoTower.Config().build(log.schema)
    with pytest.raises(InputError, match="combine PCGrad"):
        fit(
            model,
            log.all(),
            BCE.Config().build(log.schema),
            config=FitConfig(table_backend="torchrec"),
            combine=PCGrad.Config().build(),
            progress=False,
        )
