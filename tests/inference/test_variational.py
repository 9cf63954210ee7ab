"""Gaussian posteriors and their bounds against quadrature, closed forms and one another."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from sklvebm.inference.posterior import posterior_particles
from sklvebm.inference.variational import (
    AmortisedGaussian,
    Gaussians,
    evidence_bound,
    fit_amortised,
    fit_gaussians,
    negative_evidence_bound,
)
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, BridgedEnergy, LinearGaussianEnergy, MLPEnergy
from sklvebm.smc.quasi_random import latent_nodes

SIGMAS = 5.0
N_SEEDS = 16
SEED_STRIDE = 100  # evidence_bound uses the seeds that follow its own
FIT_NODES = 32  # as many as fit_gaussians takes
NATS = 0.02  # what fitting on so few nodes may cost a row


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def reference(n_features, n_latents, seed=0):
    g = generator(seed)
    roots = torch.eye(n_features) + 0.2 * torch.randn(2, n_features, n_features, generator=g)
    return MixtureReference(
        torch.tensor([0.4, 0.6]),
        torch.randn(2, n_features, generator=g),
        roots @ roots.transpose(1, 2),
        latent_map=0.3 * torch.randn(n_latents, n_features, generator=g),
        latent_variance=0.6 + torch.rand(n_latents, generator=g),
        location=0.3 * torch.ones(n_features),
    )


class Wells(nn.Module):
    """Two wells in z, of which the row decides the depth: a posterior between one and two modes."""

    def forward(self, x, z):
        return 0.8 * (z[:, 0].square() - 2.0).square() - 0.8 * torch.sin(3.0 * x[:, 0]) * z[:, 0]


class BentValley(nn.Module):
    """A valley along z_1 = z_2 that bends and ends in two wells: skewed and correlated."""

    def forward(self, x, z):
        along, across = z[:, 0] + z[:, 1], z[:, 0] - z[:, 1]
        bend = 0.15 * along.square() - 0.5 * torch.sin(3.0 * x[:, 0])
        wells = 0.03 * (along.square() - 5.0).square() - 0.5 * x[:, 0] * along
        return wells + (across - bend).square()


ENERGIES = {
    "one latent": lambda: AnchoredEnergy(reference(2, 1), Wells()),
    "two latents": lambda: AnchoredEnergy(reference(1, 2), BentValley()),
}


@pytest.fixture(params=ENERGIES)
def energy(request):
    return ENERGIES[request.param]()


def rows_of(energy, n=24):
    x, _ = energy.reference.split(energy.reference.sample(n, generator(2)))
    return x


def log_evidence_by_quadrature(energy, x):
    """Return `log ∫ N(e; 0, I) exp(-f(x, z(e))) de` of rows, (N,)."""
    axis = torch.linspace(-14.0, 14.0, 401, dtype=torch.float64)
    e = torch.cartesian_prod(*[axis] * energy.n_latents).reshape(-1, energy.n_latents)
    log_cell = energy.n_latents * math.log(float(axis[1] - axis[0]) / math.sqrt(2.0 * math.pi))
    values = []
    for row in x:
        rows = row.expand(len(e), -1)
        f = energy.correction(rows, energy.reference.to_latents(rows, e))
        values.append(torch.logsumexp(-f - 0.5 * e.square().sum(1), 0) + log_cell)
    return torch.stack(values)


def bounds_over_seeds(energy, x, q):
    """Return the bounds of rows from independent evaluations, (seeds, N)."""
    return torch.stack(
        [evidence_bound(energy, x, q, seed=SEED_STRIDE * (s + 1)).value for s in range(N_SEEDS)]
    )


def mean_and_error(values):
    """Return the mean over seeds of values (seeds,) and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


class Ladder(NamedTuple):
    """Mean evidence of rows, one number per seed, from the narrowest family to the widest."""

    amortised: torch.Tensor
    diagonal: torch.Tensor
    full: torch.Tensor
    annealed: torch.Tensor
    truth: float


def climb(energy, x):
    """Return the ladder of bounds; each family starts where the one below it ended."""
    encoder = fit_amortised(energy, x, n_steps=400, generator=generator(3))
    amortised = encoder.gaussians(x)
    diagonal = fit_gaussians(energy, x, diagonal=True, start=amortised)
    full = fit_gaussians(energy, x, diagonal=False, start=diagonal)
    annealed = [
        posterior_particles(energy, x, step_size=0.5, seed=s).log_total_weight().mean()
        for s in range(N_SEEDS)
    ]
    return Ladder(
        *(bounds_over_seeds(energy, x, q).mean(1) for q in (amortised, diagonal, full)),
        torch.stack(annealed),
        float(log_evidence_by_quadrature(energy, x).mean()),
    )


def assert_strictly_below(lower, upper):
    """Demand a gap of so many standard errors; the same seed means the same nodes."""
    gap, error = mean_and_error(upper - lower)
    assert gap > SIGMAS * error > 0.0


def test_wider_families_climb_strictly_towards_the_evidence_of_correlated_posteriors():
    energy = ENERGIES["two latents"]()
    ladder = climb(energy, rows_of(energy))
    assert_strictly_below(ladder.amortised, ladder.diagonal)
    assert_strictly_below(ladder.diagonal, ladder.full)
    assert_strictly_below(ladder.full, ladder.annealed)
    value, error = mean_and_error(ladder.annealed)
    assert error < 0.01
    assert value < ladder.truth + SIGMAS * error
    # what particles leave over is small next to what a Gaussian does
    assert ladder.truth - value < 0.1 * (ladder.truth - float(ladder.full.mean()))


def test_families_of_one_latent_climb_to_the_evidence_and_two_of_them_are_the_same():
    energy = ENERGIES["one latent"]()
    ladder = climb(energy, rows_of(energy))
    assert_strictly_below(ladder.amortised, ladder.diagonal)
    torch.testing.assert_close(ladder.full, ladder.diagonal, rtol=0.0, atol=NATS)
    assert_strictly_below(ladder.full, ladder.annealed)
    value, error = mean_and_error(ladder.annealed)
    assert error < 0.01
    assert value < ladder.truth + SIGMAS * error
    assert ladder.truth - value < 0.1 * (ladder.truth - float(ladder.full.mean()))


def test_no_gaussian_exceeds_the_evidence_of_any_row(energy):
    x = rows_of(energy)
    truth = log_evidence_by_quadrature(energy, x)
    values = bounds_over_seeds(energy, x, fit_gaussians(energy, x, diagonal=False))
    error = values.std(0) / math.sqrt(N_SEEDS)
    assert torch.all(values.mean(0) < truth + SIGMAS * error)


def linear_gaussian():
    """Return a quadratic energy whose two latents are correlated, on a mixture reference."""
    network = LinearGaussianEnergy(2, 2).double()
    with torch.no_grad():
        network.factor.add_(0.4 * normal(4, 4, seed=4))
        # couples the latents
        network.factor[2:, 2:] = torch.tensor([[1.0, 0.0], [-1.5, 0.7]])
        network.mean.add_(0.3 * normal(4, seed=5))
    return BridgedEnergy(reference(2, 2), network).requires_grad_(False)


def exact_posterior(energy, x):
    """Return means (N, L) and the precision (L, L) of whitened latents under a quadratic energy."""
    mean, _ = energy.network.posterior(x)
    scale = energy.reference.latent_scale
    precision = energy.network.precision()[energy.n_features :, energy.n_features :]
    return energy.reference.from_latents(x, mean), scale[:, None] * precision * scale


def divergence_to_posterior(energy, x, q):
    """Return `KL(q || posterior)` of rows under a quadratic energy, (N,)."""
    mean, precision = exact_posterior(energy, x)
    return torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(q.mean, scale_tril=q.factor),
        torch.distributions.MultivariateNormal(mean, precision_matrix=precision),
    )


def exact_log_evidence(energy, x):
    return -energy.network.free_energy(x) - energy.reference.log_marginal(x)


def random_gaussians(n_rows, n_latents, seed=6):
    factor = torch.tril(0.4 * normal(n_rows, n_latents, n_latents, seed=seed), -1)
    scales = torch.exp(0.3 * normal(n_rows, n_latents, seed=seed + 1))
    return Gaussians(normal(n_rows, n_latents, seed=seed + 2), factor + torch.diag_embed(scales))


def test_quadrature_agrees_with_the_closed_form():
    energy = linear_gaussian()
    x = rows_of(energy, 4)
    torch.testing.assert_close(
        log_evidence_by_quadrature(energy, x), exact_log_evidence(energy, x), rtol=0.0, atol=1e-8
    )


def test_the_bound_of_any_gaussian_is_the_evidence_less_its_divergence_to_the_posterior():
    energy = linear_gaussian()
    x = rows_of(energy, 8)
    q = random_gaussians(8, 2)
    values = bounds_over_seeds(energy, x, q)
    error = values.std(0) / math.sqrt(N_SEEDS)
    expected = exact_log_evidence(energy, x) - divergence_to_posterior(energy, x, q)
    assert float(error.max()) < 0.02 * float(divergence_to_posterior(energy, x, q).mean())
    assert torch.all((values.mean(0) - expected).abs() < SIGMAS * error)


def test_the_standard_error_of_a_bound_is_its_spread_over_seeds():
    energy = linear_gaussian()
    x = rows_of(energy, 8)
    q = random_gaussians(8, 2)
    bounds = [evidence_bound(energy, x, q, seed=SEED_STRIDE * s) for s in range(200)]
    spread = torch.stack([bound.value for bound in bounds]).var(0)
    reported = torch.stack([bound.standard_error for bound in bounds]).square().mean(0)
    # 200 seeds know a variance to 10 %; rows share their nodes
    ratio = float((reported / spread).mean())
    assert abs(ratio - 1.0) < SIGMAS * math.sqrt(2.0 / 199.0)


def test_a_full_covariance_finds_a_gaussian_posterior():
    energy = linear_gaussian()
    x = rows_of(energy)
    q = fit_gaussians(energy, x, diagonal=False)
    assert float(divergence_to_posterior(energy, x, q).max()) < NATS
    value, error = mean_and_error(bounds_over_seeds(energy, x, q).mean(1))
    assert error < NATS
    assert abs(value - float(exact_log_evidence(energy, x).mean())) < NATS + SIGMAS * error


def test_a_diagonal_covariance_misses_a_correlated_posterior_by_the_known_divergence():
    energy = linear_gaussian()
    x = rows_of(energy)
    q = fit_gaussians(energy, x, diagonal=True)
    mean, precision = exact_posterior(energy, x)
    # the best diagonal Gaussian inverts the diagonal of the precision
    known = 0.5 * float(torch.log(torch.diagonal(precision)).sum() - torch.logdet(precision))
    assert known > 15.0 * NATS
    divergence = divergence_to_posterior(energy, x, q)
    assert torch.all(divergence >= known - 1e-12)
    assert float(divergence.max()) < known + NATS
    torch.testing.assert_close(q.mean, mean, rtol=0.0, atol=0.01)
    value, error = mean_and_error(bounds_over_seeds(energy, x, q).mean(1))
    expected = float(exact_log_evidence(energy, x).mean()) - known
    assert abs(value - expected) < NATS + SIGMAS * error


def test_divergence_agrees_with_torch_distributions():
    q = random_gaussians(7, 3)
    expected = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(q.mean, scale_tril=q.factor),
        torch.distributions.MultivariateNormal(
            torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        ),
    )
    torch.testing.assert_close(q.divergence(), expected, rtol=1e-12, atol=1e-12)


def test_draws_of_gaussians_have_their_moments():
    q = random_gaussians(3, 2)
    n = 20000
    draws = q.place(normal(n, 2, seed=9))
    error = draws.std(1) / math.sqrt(n)
    assert torch.all((draws.mean(1) - q.mean).abs() < SIGMAS * error)
    centred = draws - q.mean[:, None]
    outer = torch.einsum("nki,nkj->nkij", centred, centred)
    expected = q.factor @ q.factor.transpose(1, 2)
    error = outer.std(1) / math.sqrt(n)
    assert torch.all((outer.mean(1) - expected).abs() < SIGMAS * error)


def fitted_objective(energy, x, q):
    """Return what fit_gaussians minimises, of each row (N,), by means of no code of its own."""
    nodes = latent_nodes(FIT_NODES, energy.n_latents, 0)
    draws = q.mean[:, None] + torch.einsum("nij,kj->nki", q.factor, nodes)
    rows = x.repeat_interleave(FIT_NODES, 0)
    latents = energy.reference.latent_mean(rows)
    latents = latents + draws.reshape(latents.shape) * energy.reference.latent_scale
    standard = torch.distributions.MultivariateNormal(
        torch.zeros_like(q.mean[0]), torch.eye(energy.n_latents, dtype=torch.float64)
    )
    fitted = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.factor)
    divergence = torch.distributions.kl_divergence(fitted, standard)
    return energy.correction(rows, latents).reshape(len(x), FIT_NODES).mean(1) + divergence


def slopes(energy, x, q, is_diagonal, size=1e-5):
    """Return the largest slope of each row's objective over its parameters, by differences."""
    n_latents = energy.n_latents
    pattern = torch.eye(n_latents) if is_diagonal else torch.tril(torch.ones(n_latents, n_latents))
    directions = [
        Gaussians(torch.eye(n_latents)[i], torch.zeros(n_latents, n_latents))
        for i in range(n_latents)
    ]
    for i, j in torch.nonzero(pattern).tolist():
        unit = torch.zeros(n_latents, n_latents)
        unit[i, j] = 1.0
        directions.append(Gaussians(torch.zeros(n_latents), unit))
    found = []
    for direction in directions:
        up, down = (
            fitted_objective(
                energy, x, Gaussians(*(a + s * b for a, b in zip(q, direction, strict=True)))
            )
            for s in (size, -size)
        )
        found.append((up - down).abs() / (2.0 * size))
    return torch.stack(found).amax(0)


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_slopes_vanish_where_the_fit_ends(energy, is_diagonal):
    x = rows_of(energy)
    q = fit_gaussians(energy, x, diagonal=is_diagonal)
    start = Gaussians(torch.zeros_like(q.mean), torch.eye(energy.n_latents).expand_as(q.factor))
    before = slopes(energy, x, Gaussians(*(part.double() for part in start)), is_diagonal)
    after = slopes(energy, x, q, is_diagonal)
    assert float(before.median()) > 0.5
    assert float(after.max()) < 0.01


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_the_fit_beats_random_perturbations_of_it(energy, is_diagonal):
    x = rows_of(energy)
    q = fit_gaussians(energy, x, diagonal=is_diagonal)
    best = fitted_objective(energy, x, q)
    pattern = torch.eye(energy.n_latents) if is_diagonal else 1.0
    for seed in range(40):
        mean = 0.05 * normal(*q.mean.shape, seed=seed)
        factor = torch.tril(0.05 * normal(*q.factor.shape, seed=seed + 1000)) * pattern
        # relative to the diagonal, which has to stay positive
        scale = torch.diagonal(q.factor, dim1=1, dim2=2).unsqueeze(2)
        moved = Gaussians(q.mean + mean, q.factor + factor * scale)
        assert torch.all(fitted_objective(energy, x, moved) > best)


def test_a_diagonal_fit_has_no_correlations_and_all_factors_are_triangular():
    energy = ENERGIES["two latents"]()
    x = rows_of(energy)
    diagonal = fit_gaussians(energy, x, diagonal=True, start=random_gaussians(len(x), 2))
    assert torch.equal(
        diagonal.factor, torch.diag_embed(torch.diagonal(diagonal.factor, dim1=1, dim2=2))
    )
    full = fit_gaussians(energy, x, diagonal=False)
    assert torch.equal(full.factor, torch.tril(full.factor))
    assert float(full.factor[:, 1, 0].abs().median()) > 0.1
    for q in (diagonal, full):
        assert bool((torch.diagonal(q.factor, dim1=1, dim2=2) > 0.0).all())


def test_a_fit_without_steps_returns_its_start_unchanged():
    energy = ENERGIES["two latents"]()
    x = rows_of(energy, 5)
    start = random_gaussians(5, 2)
    copies = [part.clone() for part in start]
    q = fit_gaussians(energy, x, diagonal=False, start=start, n_steps=0)
    torch.testing.assert_close(tuple(q), tuple(start), rtol=1e-14, atol=1e-14)
    fit_gaussians(energy, x, diagonal=False, start=start, n_steps=3)
    assert all(torch.equal(part, copy) for part, copy in zip(start, copies, strict=True))


def test_rows_are_fitted_and_evaluated_without_regard_to_their_companions(energy):
    x = rows_of(energy, 4)
    together = fit_gaussians(energy, x, diagonal=False, n_steps=50)
    bound = evidence_bound(energy, x, together, seed=1)
    for row in range(len(x)):
        alone = fit_gaussians(energy, x[row : row + 1], diagonal=False, n_steps=50)
        torch.testing.assert_close(alone.mean[0], together.mean[row], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.factor[0], together.factor[row], rtol=1e-9, atol=1e-9)
        value = evidence_bound(energy, x[row : row + 1], alone, seed=1).value
        torch.testing.assert_close(value[0], bound.value[row], rtol=1e-9, atol=1e-9)


def test_an_encoder_starts_at_the_reference_posterior():
    x = normal(5, 3)
    encoder = AmortisedGaussian(3, 2, generator=generator()).to(x)
    mean, scale = encoder(x)
    assert torch.equal(mean, torch.zeros(5, 2, dtype=torch.float64))
    assert torch.equal(scale, torch.ones(5, 2, dtype=torch.float64))
    q = encoder.gaussians(x)
    assert not q.factor.requires_grad
    assert torch.equal(q.divergence(), torch.zeros(5, dtype=torch.float64))


def test_the_untrained_model_has_no_evidence_to_gain():
    energy = AnchoredEnergy(reference(2, 2), MLPEnergy(2, 2, (8,), generator=generator()).double())
    x = rows_of(energy, 5)
    q = AmortisedGaussian(2, 2, generator=generator()).to(x).gaussians(x)
    bound = evidence_bound(energy, x, q, seed=0)
    assert torch.equal(bound.value, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(bound.standard_error, torch.zeros(5, dtype=torch.float64))


def test_the_loss_is_minus_the_bound_and_so_is_its_gradient(energy):
    x = rows_of(energy, 5)
    mean = normal(5, energy.n_latents, seed=10).requires_grad_()
    scale = torch.exp(0.3 * normal(5, energy.n_latents, seed=11)).requires_grad_()
    noise = normal(5, 4, energy.n_latents, seed=12)

    def by_hand(mean, scale):
        """Write the loss as a sum over rows and draws."""
        total = 0.0
        for i in range(5):
            e = mean[i] + scale[i] * noise[i]
            rows = x[i].expand(4, -1)
            f = energy.correction(rows, energy.reference.to_latents(rows, e))
            fitted = torch.distributions.Normal(mean[i], scale[i])
            standard = torch.distributions.Normal(torch.zeros_like(mean[i]), 1.0)
            total = total + f.mean() + torch.distributions.kl_divergence(fitted, standard).sum()
        return total / 5

    loss = negative_evidence_bound(energy, x, mean, scale, noise)
    torch.testing.assert_close(loss, by_hand(mean, scale), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda m, s: negative_evidence_bound(energy, x, m, s, noise), (mean, scale)
    )
    gradients = torch.autograd.grad(loss, (mean, scale))
    assert all(float(gradient.abs().min()) > 0.0 for gradient in gradients)


def test_training_an_encoder_leaves_the_energy_alone():
    network = MLPEnergy(2, 1, (8,), generator=generator()).double()
    with torch.no_grad():
        network.output.normal_(generator=generator(1))
    energy = AnchoredEnergy(reference(2, 1), network)
    before = [parameter.detach().clone() for parameter in energy.parameters()]
    x = rows_of(energy)
    encoder = fit_amortised(energy, x, n_steps=5, generator=generator())
    assert len(before) > 0
    for parameter, copy in zip(energy.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter.detach(), copy)
    assert all(bool((parameter.grad != 0.0).any()) for parameter in encoder.parameters())
    assert all(parameter.dtype == x.dtype for parameter in encoder.parameters())


def test_an_encoder_is_a_function_of_its_generator():
    energy = ENERGIES["one latent"]()
    x = rows_of(energy)
    first, same, other = (
        fit_amortised(energy, x, n_steps=3, generator=generator(seed)).gaussians(x)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.mean, same.mean)
    assert not torch.equal(first.mean, other.mean)


def test_an_encoder_finds_posteriors_that_it_can_represent():
    energy = linear_gaussian()
    x = rows_of(energy, 200)
    encoder = fit_amortised(energy, x, n_steps=1000, generator=generator())
    mean, precision = exact_posterior(energy, x)
    known = 0.5 * float(torch.log(torch.diagonal(precision)).sum() - torch.logdet(precision))
    # means are linear in the row, which the network can follow closely but not exactly
    excess = float(divergence_to_posterior(energy, x, encoder.gaussians(x)).mean()) - known
    assert 0.0 < excess < 0.03
