"""Request states of all tiers, computed together: a trunk's state serves the tier over it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prerank.batch import Rows
from prerank.log.format.columns import Columns
from prerank.log.inputs.assemble import Assembler
from prerank.models.base import Model, OverTrunk

__all__ = ["RequestStates"]


class RequestStates:
    """Computes request states of several tiers from the same columns.

    Parameters
    ----------
    models : sequence of Model
        Of the tiers.
    transforms_of : sequence of int
        Set of transforms of each.
    """

    def __init__(self, models: Sequence[Model], transforms_of: Sequence[int]) -> None:
        self.models, self.transforms_of = models, transforms_of
        self.trunk_of = [self._trunk(k) for k in range(len(models))]

    def compute(self, columns: Columns, assemblers: Sequence[Assembler]) -> list[tuple[Rows, ...]]:
        """Return the states of each request, one per tier; candidates are not looked at."""
        inputs = [a.inputs(columns) for a in assemblers]
        made: list[Rows] = []
        for model, k, trunk in zip(self.models, self.transforms_of, self.trunk_of, strict=True):
            if trunk is None:
                made.append(model.request_state(inputs[k]))
            else:
                assert isinstance(model, OverTrunk)
                made.append(model.request_state_from(made[trunk], inputs[k]))
        if columns.num_requests == 1:
            return [tuple(made)]
        rows = [torch.tensor([r]) for r in range(columns.num_requests)]
        return [tuple(state.select(row) for state in made) for row in rows]

    def _trunk(self, index: int) -> int | None:
        model = self.models[index]
        if not isinstance(model, OverTrunk):
            return None
        return next(
            (
                earlier
                for earlier in range(index)
                if self.transforms_of[earlier] == self.transforms_of[index]
                and model.is_over(self.models[earlier])
            ),
            None,
        )
