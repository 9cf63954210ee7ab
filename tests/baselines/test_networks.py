"""The perceptron and its Jacobian in closed form."""

import pytest
import torch

from sklvebm.baselines._networks import Perceptron


@pytest.mark.parametrize("activation", ["silu", "softplus", "tanh"])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_jacobian_is_that_of_automatic_differentiation(activation, hidden):
    generator = torch.Generator().manual_seed(0)
    network = Perceptron(3, 4, hidden, activation, generator).double()
    inputs = torch.randn((6, 3), generator=generator, dtype=torch.float64)
    outputs, jacobian = network.with_jacobian(inputs)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(network, row) for row in inputs.unbind()]
    )
    torch.testing.assert_close(outputs, network(inputs), rtol=0, atol=1e-14)
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-12)


def test_without_hidden_layers_the_network_is_affine():
    network = Perceptron(2, 3, (), "tanh", torch.Generator().manual_seed(0)).double()
    a, b = torch.randn((2, 5, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    middle = network(0.5 * (a + b))
    torch.testing.assert_close(middle, 0.5 * (network(a) + network(b)), rtol=0, atol=1e-14)


def test_same_generator_same_weights_and_no_use_of_the_global_one():
    before = torch.get_rng_state()
    one, two = (Perceptron(2, 3, (4,), "silu", torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
