"""Multi-layer perceptrons. Shapes: ``N`` rows, ``D`` widths."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from prerank.config import Config as BaseConfig

__all__ = ["MLP", "Activation", "finish", "linear"]

Activation = Literal["relu", "gelu", "silu", "tanh"]

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    # In place: at one row per candidate a second tensor costs more than the arithmetic.
    "relu": functools.partial(nn.ReLU, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def linear(in_features: int, out_features: int) -> nn.Module:
    """Return an ``nn.Linear``, or where ``in_features`` is 0 a bias alone.

    A log without user features makes a user tower that reads nothing: all users then share one
    learned vector.

    Examples
    --------
    >>> linear(0, 3)(torch.zeros(2, 0)).shape
    torch.Size([2, 3])
    """
    return nn.Linear(in_features, out_features) if in_features else _Constant(out_features)


class _Constant(nn.Module):
    """A linear layer of no inputs: the same learned row ``[D]`` for all."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.repeat(x.shape[0], 1)  # not a view: what follows may work in place


def finish(width: int, config: MLP.Config) -> nn.Sequential:
    """Return what follows a hidden linear layer: layer norm, activation, dropout.

    It may overwrite its input, which must be the fresh output of a layer.
    """
    steps: list[nn.Module] = [nn.LayerNorm(width)] if config.layer_norm else []
    steps.append(_ACTIVATIONS[config.activation]())
    if config.dropout:
        steps.append(nn.Dropout(config.dropout))
    return nn.Sequential(*steps)


class MLP(nn.Module):
    """Hidden layers, each a linear with layer norm, activation and dropout, then a linear.

    No batch norm: statistics over candidates would make a candidate's score depend on its
    neighbours.

    Parameters
    ----------
    in_features, out_features : int
        Widths; the last layer has neither norm nor activation.
    config : MLP.Config
        The hidden layers.

    Examples
    --------
    >>> tower = MLP.Config(hidden=(16, 8), activation="silu").build(5, 3)
    >>> tower(torch.zeros(2, 5)).shape
    torch.Size([2, 3])
    """

    class Config(BaseConfig, frozen=True):
        """Hidden widths and what follows each."""

        hidden: tuple[int, ...] = (64,)
        activation: Activation = "relu"
        layer_norm: bool = False
        dropout: float = 0.0

        def build(self, in_features: int, out_features: int) -> MLP:
            """Make the network for the given widths."""
            return MLP(in_features, out_features, self)

    def __init__(self, in_features: int, out_features: int, config: Config) -> None:
        super().__init__()
        self.config = config
        widths = (in_features, *config.hidden)
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise(widths):
            layers += [linear(before, width), *finish(width, config)]
        self.layers = nn.Sequential(*layers, linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_features]`` to ``[N, out_features]``."""
        out: Tensor = self.layers(x)
        return out
