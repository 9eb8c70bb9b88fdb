"""The optimiser of tables that TorchRec updates during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prerank.nn.torchrec_tables import TorchRecTables

__all__ = ["InBackward"]


class InBackward(torch.optim.Optimizer):
    """Holds rate and state of tables whose rows are updated before :meth:`step` is called.

    A schedule sets its rate and a checkpoint stores and restores its state as with
    :class:`~prerank.training.optim.adagrad.RowWiseAdagrad`, under the same names; the tables take
    both over before their next lookup.

    Parameters
    ----------
    tables : sequence of TorchRecTables
        All of a model's.
    lr : float
        Step size, > 0.
    """

    def __init__(self, tables: Sequence[TorchRecTables], lr: float) -> None:
        super().__init__([table.weight for table in tables], {"lr": lr})
        for table in tables:
            self.state[table.weight]["sum"] = table.sums
            table.before_lookup = self._hand_over

    def _hand_over(self, table: TorchRecTables) -> None:
        table.set_rate(self.param_groups[0]["lr"])
        state = self.state[table.weight]
        sums = table.sums
        if "sum" in state and state["sum"].data_ptr() != sums.data_ptr():  # a checkpoint's
            sums.copy_(state["sum"])
        state["sum"] = sums

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Do nothing: the rows have been updated."""
