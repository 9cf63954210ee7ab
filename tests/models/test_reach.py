"""How far a correction reaches: values, gradients, and the energy beyond it."""

import pytest
import torch

from sklvebm.backends import select_correction_and_grad
from sklvebm.models.energies import AnchoredEnergy, MLPEnergy
from sklvebm.models.reach import Reach, reach_of
from sklvebm.models.targets import autograd_correction_and_grad


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reach(n_features=3):
    return Reach(normal(n_features), 0.4 * normal(n_features, n_features, seed=1))


def test_a_correction_acts_in_full_within_and_not_at_all_far_beyond():
    x = normal(200, 3, seed=2) * torch.logspace(-1, 12, 200, dtype=torch.float64)[:, None]
    own = reach()
    value, distance = own(x), own.distance(x)
    assert torch.equal(value[distance <= 1.0], torch.ones_like(value[distance <= 1.0]))
    assert float(value[distance > 30.0].max()) == 0.0
    between = (distance > 1.0) & (distance < 4.0)
    torch.testing.assert_close(value[between], torch.exp(-((distance[between] - 1.0) ** 2)))
    assert bool(between.any())


@pytest.mark.parametrize("scale", [1.0, 4.0, 1e18])
def test_the_gradient_is_that_of_automatic_differentiation(scale):
    x = (scale * normal(50, 3, seed=3)).requires_grad_()
    own = reach()
    (expected,) = torch.autograd.grad(own(x).sum(), x)
    grad = torch.zeros_like(x)
    value = own.scale(x.detach(), torch.ones_like(x[:, 0]).detach(), grad)
    torch.testing.assert_close(value, own(x.detach()))
    torch.testing.assert_close(grad, expected)
    assert bool(torch.isfinite(grad).all())


def test_single_precision_survives_rows_as_far_out_as_tails_draw_them():
    own = reach().float()
    grad = normal(20, 3).float()
    value = own.scale(1e12 * normal(20, 3).float(), torch.ones(20), grad)
    assert torch.equal(value, torch.zeros(20))
    assert torch.equal(grad, torch.zeros(20, 3))


def test_both_samples_lie_within_by_their_share():
    rows = normal(4000, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.1]], dtype=torch.float64)
    draws = 1.5 * normal(4000, 2, seed=1)
    own = reach_of(rows, draws, 0.9)
    shares = [float((own.distance(part) <= 1.0).double().mean()) for part in (rows, draws)]
    assert min(shares) == pytest.approx(0.9, abs=1e-3)
    assert max(shares) > 0.9


def test_a_direction_without_spread_has_that_of_the_draws():
    rows = normal(100, 2) * torch.tensor([1.0, 0.0], dtype=torch.float64)
    own = reach_of(rows, 1e-3 * normal(100, 2, seed=1), 0.99)
    assert bool(torch.isfinite(own(rows)).all())
    assert float(own(rows).median()) == 1.0


def test_the_energy_beyond_is_the_references(mixture_reference):
    base = mixture_reference(n_features=2)
    network = MLPEnergy(2, 0, (8,), generator=torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(network.output, generator=torch.Generator().manual_seed(1))
    energy = AnchoredEnergy(base, network, reach=Reach(torch.zeros(2), 0.5 * torch.eye(2)))
    near, far = normal(30, 2, seed=2), 40.0 + normal(30, 2, seed=3)
    nothing = near[:, :0]
    assert float(energy.correction(near, nothing).detach().abs().min()) > 0.0
    torch.testing.assert_close(energy(far, nothing), base.energy(far, nothing), atol=0.0, rtol=0.0)
    x = torch.cat([near, 3.0 * near, far])
    plain = autograd_correction_and_grad(energy)(x)
    fast = select_correction_and_grad(energy)(x)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs)
