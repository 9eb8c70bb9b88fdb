"""The plain rule: parts are added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor, nn

from prerank.config import Config as BaseConfig
from prerank.errors import InputError, did_you_mean

__all__ = ["Sum"]


class Sum:
    """The weighted sum of the parts.

    Examples
    --------
    >>> w = nn.Parameter(torch.tensor(2.0))
    >>> rule = Sum.Config(weights={"b": 0.5}).build()
    >>> rule({"a": w, "b": w * w}, [w]), w.grad
    (tensor(4.), tensor(3.))
    """

    class Config(BaseConfig, frozen=True):
        """Weights of parts by name; a part that is not named weighs 1."""

        weights: dict[str, float] = msgspec.field(default_factory=dict)

        def build(self) -> Sum:
            """Build the rule."""
            return Sum(self)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Sum.Config()

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the parts, a scalar.

        Raises
        ------
        InputError
            A weight names a part that the objective does not return.
        """
        for name in self.config.weights:
            if name not in parts:
                raise InputError(
                    f"combine: weight of part '{name}', which the objective does not return; "
                    f"{did_you_mean(name, parts)}"
                )
        weighted = [self.config.weights.get(name, 1.0) * part for name, part in parts.items()]
        return torch.stack(weighted).sum()

    def __call__(self, parts: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
        """Back-propagate the weighted sum; return it detached."""
        total = self.total(parts)
        # A batch in which no candidate carries evidence has nothing to learn from.
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        return total.detach()
