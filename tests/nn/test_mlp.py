"""The MLP against its formula; what follows a hidden layer; a layer of no inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prerank.nn import MLP, finish, linear

FUNCTIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_equals_its_formula(activation: str, layer_norm: bool) -> None:
    torch.manual_seed(0)
    config = MLP.Config(hidden=(7, 5), activation=activation, layer_norm=layer_norm)
    network = config.build(4, 3).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    weights = [p.detach() for name, p in network.named_parameters() if p.dim() == 2]
    biases = [m.bias.detach() for m in network.modules() if isinstance(m, torch.nn.Linear)]
    h = x
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        h = h @ w.T + b
        if k < 2:
            if layer_norm:
                variance = h.var(1, keepdim=True, unbiased=False)
                h = (h - h.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()
            h = FUNCTIONS[activation](h)
    torch.testing.assert_close(network(x).detach(), h, rtol=1e-12, atol=1e-12)


def test_gradient_is_right_although_activations_work_in_place() -> None:
    torch.manual_seed(0)
    network = MLP.Config(hidden=(7, 5), layer_norm=True).build(4, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (x,))
    kept = x.detach().clone()
    network(x)
    assert torch.equal(x, kept), "the input was overwritten"


def test_no_hidden_layer_is_a_linear() -> None:
    network = MLP.Config(hidden=()).build(4, 3)
    assert [tuple(p.shape) for p in network.parameters()] == [(3, 4), (3,)]


def test_dropout_only_in_training() -> None:
    steps = finish(6, MLP.Config(dropout=0.5))
    x = torch.ones(1000, 6)
    steps.train()
    assert bool((steps(x.clone()) == 0).any())
    steps.eval()
    assert torch.equal(steps(x.clone()), x)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_layer_of_no_inputs_gives_one_learned_row(num_rows: int) -> None:
    network = MLP.Config(hidden=(4,)).build(0, 2)
    out = network(torch.zeros(num_rows, 0))
    assert out.shape == (num_rows, 2)
    assert bool((out == out[:1]).all())
    network(torch.zeros(3, 0)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_linear_starts_like_torch() -> None:
    torch.manual_seed(0)
    ours = linear(9, 4)
    torch.manual_seed(0)
    assert torch.equal(ours.weight, torch.nn.Linear(9, 4).weight)
