"""Products of powers on tensors: Gaussians in closed form, mixtures by quadrature."""

import math

import pytest
import torch

import sklvebm.inference.products
from sklvebm.inference.missed_components import MissedComponents
from sklvebm.inference.products import (
    Components,
    Composition,
    Expert,
    components,
    keep_heaviest,
    multiply,
    power,
    tail_component,
)
from sklvebm.mixtures.reference import MixtureReference

SIGMAS = 5.0
FLOAT = torch.float64


def mixture(weights, means, covariances, n_latents=0):
    means = torch.tensor(means, dtype=FLOAT)
    d = means.shape[1]
    return MixtureReference(
        torch.tensor(weights, dtype=FLOAT),
        means,
        torch.tensor(covariances, dtype=FLOAT),
        latent_map=0.3 * torch.ones(n_latents, d, dtype=FLOAT),
        latent_variance=0.7 * torch.ones(n_latents, dtype=FLOAT),
        location=torch.zeros(d),
    )


def expert(reference, correction=None, mean=0.0, scale=1.0, log_partition=0.0):
    d = reference.n_features
    return Expert(
        reference,
        correction or (lambda x, z: torch.zeros_like(x[:, 0])),
        torch.full((d,), mean, dtype=FLOAT),
        torch.full((d,), scale, dtype=FLOAT),
        log_partition,
        True,
    )


def gaussian(centre, covariance, **units):
    return expert(mixture([1.0], [centre], [covariance]), **units)


def product_of_gaussians(means, covariances, weights):
    """Return mean, covariance and log Z of a product of powers of Gaussians, by linear algebra."""
    d = len(means[0])
    precisions = [torch.linalg.inv(torch.tensor(c, dtype=FLOAT)) for c in covariances]
    means = [torch.tensor(m, dtype=FLOAT) for m in means]
    precision = sum(w * p for w, p in zip(weights, precisions, strict=True))
    pull = sum(w * p @ m for w, p, m in zip(weights, precisions, means, strict=True))
    covariance = torch.linalg.inv(precision)
    log_z = 0.5 * (pull @ covariance @ pull + d * math.log(2 * math.pi) - precision.logdet())
    for w, p, m in zip(weights, precisions, means, strict=True):
        log_z = log_z + 0.5 * w * (p.logdet() - d * math.log(2 * math.pi) - m @ p @ m)
    return covariance @ pull, covariance, float(log_z)


GAUSSIANS = (
    ([0.5, -1.0], [[1.0, 0.4], [0.4, 0.8]]),
    ([-0.3, 0.2], [[2.0, -0.3], [-0.3, 3.0]]),
)
POWERS = [(1.0, 1.0), (0.5,), (2.5,), (1.0, -0.5), (0.3, 0.7), (2.0, -0.7)]


@pytest.mark.parametrize("weights", POWERS, ids=str)
def test_products_of_powers_of_gaussians_have_the_closed_form(weights):
    parts = GAUSSIANS[: len(weights)]
    composition = Composition([gaussian(*p) for p in parts], list(weights), 2)
    mean, covariance, log_z = product_of_gaussians(*zip(*parts, strict=True), weights)
    generator = torch.Generator().manual_seed(0)
    n = 4000
    rows = composition.draw(n, generator)
    error = torch.sqrt(torch.diagonal(covariance) / n)
    assert ((rows.mean(0) - mean).abs() < SIGMAS * error).all()
    # standard error of a covariance of Gaussian rows
    diagonal = torch.diagonal(covariance)
    spread = torch.sqrt((diagonal[:, None] * diagonal + covariance.square()) / n)
    assert ((rows.T.cov() - covariance).abs() < SIGMAS * spread).all()
    result = composition.normalise(512, 0.05, generator).estimate
    assert result.lower - 1e-9 <= log_z <= result.upper + 1e-9
    assert abs(result.value - log_z) < SIGMAS * result.standard_error + 1e-9
    # the density itself, to rounding
    density = -composition.energy(rows[:10]) - log_z
    exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(rows[:10])
    assert torch.allclose(density, exact, atol=1e-9)


def test_gaussians_in_different_units_are_the_same_gaussians():
    # x ~ N(1, 4 * 2.25) and x ~ N(-1, 0.25) per coordinate, in the units of the data
    first = gaussian([0.5, 0.5], [[2.25, 0.0], [0.0, 2.25]], mean=0.0, scale=2.0)
    second = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], mean=-1.0, scale=0.5)
    composition = Composition([first, second], [1.0, 1.0], 2)
    mean, covariance, log_z = product_of_gaussians(
        ([1.0, 1.0], [-1.0, -1.0]),
        ([[9.0, 0.0], [0.0, 9.0]], [[0.25, 0.0], [0.0, 0.25]]),
        (1.0, 1.0),
    )
    x = torch.tensor([[0.3, -0.7], [2.0, 1.0]], dtype=FLOAT)
    exact = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    assert torch.allclose(-composition.energy(x) - log_z, exact, atol=1e-9)
    result = composition.normalise(256, 0.05, torch.Generator().manual_seed(1)).estimate
    # a product of Gaussians is its own reference: no Monte Carlo error is left
    assert abs(result.value - log_z) < 1e-8


WAVE = mixture([0.3, 0.7], [[-1.5], [1.0]], [[[0.2]], [[0.4]]])
WIDE = mixture([0.6, 0.4], [[0.0], [2.0]], [[[1.5]], [[0.8]]])


def bend(x, z):
    return 1.5 * torch.tanh(torch.sin(3.0 * x[:, 0]))


def quadrature(log_density, low=-14.0, high=14.0, n=28_001):
    """Return a grid, normalised densities and log Z of a function of rows (N, 1)."""
    grid = torch.linspace(low, high, n, dtype=FLOAT)
    values = log_density(grid[:, None])
    step = float(grid[1] - grid[0])
    log_z = float(torch.logsumexp(values, 0)) + math.log(step)
    return grid, torch.exp(values - log_z) * step, log_z


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, -0.4), (0.5, 0.8), (1.0, -0.25)], ids=str)
def test_corrected_mixtures_agree_with_quadrature(weights):
    """Two mixtures, one with a correction: log Z, mean, variance and a tail probability."""
    composition = Composition(
        [expert(WAVE, bend, log_partition=0.3), expert(WIDE)], list(weights), 2
    )

    def log_density(x):
        first = WAVE.log_marginal(x) - bend(x, None) - 0.3
        return weights[0] * first + weights[1] * WIDE.log_marginal(x)

    grid, shares, log_z = quadrature(log_density)
    generator = torch.Generator().manual_seed(2)
    result = composition.normalise(1024, 0.02, generator).estimate
    assert result.lower <= log_z <= result.upper
    assert abs(result.value - log_z) < SIGMAS * result.standard_error
    assert result.standard_error < 0.03
    rows = composition.draw(4000, generator)[:, 0]
    for statistic in (lambda x: x, torch.square, lambda x: (x > 0.5).to(x)):
        exact = float(shares @ statistic(grid))
        spread = float(shares @ (statistic(grid) - exact).square()) ** 0.5
        # draws that were resampled are worth fewer: at least a quarter of them
        assert abs(float(statistic(rows).mean()) - exact) < SIGMAS * spread / 1000**0.5


def test_a_wrong_weight_would_be_noticed():
    """The tolerances above tell the weights (1, 1) from (1, 0.9), in log Z and in draws."""
    composition = Composition([expert(WAVE, bend), expert(WIDE)], [1.0, 1.0], 2)
    grid, shares, log_z = quadrature(
        lambda x: WAVE.log_marginal(x) - bend(x, None) + 0.9 * WIDE.log_marginal(x)
    )
    generator = torch.Generator().manual_seed(3)
    result = composition.normalise(1024, 0.02, generator).estimate
    assert not result.lower <= log_z <= result.upper
    assert abs(result.value - log_z) > SIGMAS * result.standard_error


def wave_of_both(x, z):
    """A correction that ties the latent to the row."""
    return torch.sin(2.0 * x[:, 0] + z[:, 0]) + 0.5 * torch.tanh(x[:, 0] * z[:, 0])


def integrated(reference, correction, x, n=4001):
    """Return `log p(x)` of rows (N, 1), the latent integrated by the trapezoidal rule."""
    e = torch.linspace(-8.0, 8.0, n, dtype=FLOAT)
    rows = x.repeat_interleave(n, 0)
    z = reference.to_latents(rows, e.repeat(len(x))[:, None])
    log_normal = -0.5 * e.square() - 0.5 * math.log(2 * math.pi) + math.log(float(e[1] - e[0]))
    inner = log_normal - correction(rows, z).reshape(len(x), n)
    return reference.log_marginal(x) + torch.logsumexp(inner, 1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.5), (2.0, -0.3)], ids=str)
def test_latents_are_integrated_out_of_products(weights):
    """Weight 1 carries latents along, other weights need nodes: both agree with quadrature."""
    parts = [
        mixture(w, m, c, 1)
        for w, m, c in (
            ([0.3, 0.7], [[-1.5], [1.0]], [[[0.2]], [[0.4]]]),
            ([0.6, 0.4], [[0.0], [2.0]], [[[1.5]], [[0.8]]]),
        )
    ]
    composition = Composition([expert(p, wave_of_both) for p in parts], list(weights), 64)
    assert composition.n_latents == sum(w == 1.0 for w in weights)

    def log_density(x):
        return sum(
            w * integrated(p, wave_of_both, x, 401) for w, p in zip(weights, parts, strict=True)
        )

    grid, shares, log_z = quadrature(log_density, -10.0, 10.0, 2001)
    result = composition.normalise(512, 0.1, torch.Generator().manual_seed(4)).estimate
    # nodes leave about a thousandth of a nat
    assert result.lower - 5e-3 <= log_z <= result.upper + 5e-3
    assert abs(result.value - log_z) < SIGMAS * result.standard_error + 5e-3
    x = torch.linspace(-3.0, 3.0, 13, dtype=FLOAT)[:, None]
    # a single row's error is larger: that of the nodes does not average out
    assert torch.allclose(composition.energy(x), -log_density(x), atol=0.06, rtol=0.0)
    rows = composition.draw(800, torch.Generator().manual_seed(5))[:, 0]
    mean = float(shares @ grid)
    spread = float(shares @ (grid - mean).square()) ** 0.5
    assert abs(float(rows.mean()) - mean) < SIGMAS * spread / 200**0.5


def test_a_power_of_an_integral_is_no_integral_of_a_power():
    """Carrying latents along with weight 0.5 would be another density, by 0.04 nats."""
    reference = mixture([1.0], [[0.0]], [[[1.0]]], 1)
    _, _, right = quadrature(
        lambda x: 0.5 * integrated(reference, wave_of_both, x, 401), -12.0, 12.0, 2401
    )
    _, _, wrong = quadrature(
        lambda x: (
            0.5 * reference.log_marginal(x)
            + integrated(reference, lambda x, z: 0.5 * wave_of_both(x, z), x, 401)
            - reference.log_marginal(x)
        ),
        -12.0,
        12.0,
        2401,
    )
    assert abs(right - wrong) > 0.03
    composition = Composition([expert(reference, wave_of_both)], [0.5], 64)
    result = composition.normalise(1024, 0.02, torch.Generator().manual_seed(6)).estimate
    assert abs(result.value - right) < SIGMAS * result.standard_error + 5e-3
    assert abs(result.value - wrong) > SIGMAS * result.standard_error + 5e-3


RARE = 1e-5  # weight of a component where fewer than one walker in a hundred runs starts
BROAD = mixture([1.0], [[0.0]], [[[16.0]]])
BESIDE = mixture([1.0], [[8.0]], [[[64.0]]])


def with_far_component(n_latents=0):
    """Return a mixture with a rare, narrow component that nothing leads to."""
    return mixture(
        [0.6, 0.4 - RARE, RARE],
        [[-1.0], [1.0], [17.5]],
        [[[1.0]], [[0.3]], [[0.01]]],
        n_latents,
    )


def lift(x, z):
    """Lower the energy by ten nats where only the missed component is."""
    return -10.0 * torch.sigmoid(5.0 * (x[:, 0] - 12.0))


LIFTED = {
    "one model": ([expert(with_far_component(), lift)], (1.0,)),
    "a power": ([expert(with_far_component(), lift)], (1.1,)),
    "a product": ([expert(with_far_component(), lift), expert(BESIDE)], (1.0, 0.5)),
    "latents of their own": (
        [expert(with_far_component(1), lift), expert(BESIDE)],
        (1.0, 1.0),
    ),
    # 1 / BROAD is 9.6 nats higher there than where the others are: division alone lifts it
    "a quotient": ([expert(with_far_component()), expert(BROAD)], (1.0, -1.0)),
}


@pytest.mark.parametrize("case", LIFTED)
def test_lifted_rare_components_are_counted_and_drawn(case):
    """Log Z and the share of the missed component, a tenth to a fifth, beside quadrature."""
    experts, weights = LIFTED[case]
    composition = Composition(experts, list(weights), 2)
    grid, shares, log_z = quadrature(lambda x: -composition.energy(x), -40.0, 60.0, 50_001)
    held = float(shares[grid > 12.0].sum())
    assert 0.1 < held < 0.25
    generator = torch.Generator().manual_seed(8)
    result = composition.normalise(256, 0.05, generator).estimate
    assert result.lower <= log_z <= result.upper
    assert abs(result.value - log_z) < SIGMAS * result.standard_error
    assert result.standard_error < 0.01
    n = 1000
    share = float((composition.draw(n, generator)[:, 0] > 12.0).double().mean())
    # draws that were resampled are worth fewer: at least half of them
    assert abs(share - held) < SIGMAS * math.sqrt(held * (1.0 - held) / (n / 2))


def test_lifted_rare_components_would_be_missed(monkeypatch):
    """Starts by weight alone leave the bracket too low by what the missed component holds."""
    experts, weights = LIFTED["a quotient"]
    composition = Composition(experts, list(weights), 2)
    _, _, log_z = quadrature(lambda x: -composition.energy(x), -40.0, 60.0, 50_001)
    none = MissedComponents(torch.zeros(0, dtype=torch.long), *torch.zeros(2, 0, dtype=FLOAT))
    monkeypatch.setattr(sklvebm.inference.products, "missed_components", lambda *_, **__: none)
    generator = torch.Generator().manual_seed(8)
    result = composition.normalise(256, 0.05, generator).estimate
    assert result.upper < log_z - 0.1
    assert log_z - result.value > SIGMAS * result.standard_error
    assert not (composition.draw(1000, generator) > 12.0).any()


# The reference -----------------------------------------------------------------------------------


def values(part, u):
    """Return the log of a sum of Gaussian functions at rows u (N, D)."""
    laws = torch.distributions.MultivariateNormal(part.means, precision_matrix=part.precisions)
    return torch.logsumexp(part.log_weights + laws.log_prob(u[:, None]), 1)


def test_the_product_of_mixtures_is_the_product_of_their_values(mixture_reference):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(20, 3, generator=generator, dtype=FLOAT)
    zero, one = torch.zeros(3, dtype=FLOAT), torch.ones(3, dtype=FLOAT)
    full, diagonal = mixture_reference(seed=1), mixture_reference(diagonal=True, seed=2)
    parts = [components(expert(r), zero, one) for r in (full, diagonal)]
    for part, reference in zip(parts, (full, diagonal), strict=True):
        assert torch.allclose(values(part, u), reference.log_marginal(u), atol=1e-8)
    assert torch.allclose(values(multiply(*parts), u), sum(values(p, u) for p in parts), atol=1e-8)


def test_components_follow_a_change_of_units(mixture_reference):
    one = expert(mixture_reference(), mean=0.5, scale=3.0)
    mean, scale = torch.tensor([1.0, 0.0, -1.0], dtype=FLOAT), torch.tensor([2.0, 1.0, 0.5])
    u = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
    x = (mean + scale.double() * u - one.mean) / one.scale
    log_jacobian = float(torch.log(scale.double() / one.scale).sum())
    part = components(one, mean, scale.double())
    assert torch.allclose(values(part, u), one.reference.log_marginal(x) + log_jacobian, atol=1e-8)


def test_a_power_of_a_single_component_is_exact():
    part = components(gaussian(*GAUSSIANS[0]), torch.zeros(2).double(), torch.ones(2).double())
    u = torch.randn(9, 2, generator=torch.Generator().manual_seed(2), dtype=FLOAT)
    for weight in (0.3, 1.0, 4.0):
        assert torch.allclose(values(power(part, weight), u), weight * values(part, u))


def test_pruning_keeps_heavy_components_and_the_widest():
    identity = torch.eye(2, dtype=FLOAT)
    part = Components(
        torch.tensor([0.0, -1.0, -2.0, -9.0], dtype=FLOAT),
        torch.zeros(4, 2, dtype=FLOAT),
        torch.stack([5.0 * identity, 4.0 * identity, 3.0 * identity, 0.1 * identity]),
    )
    kept = keep_heaviest(part, 2)
    assert kept.log_weights.tolist() == [0.0, -9.0]
    assert keep_heaviest(part, 4) is part


def one_component(*variances):
    return Components(
        torch.zeros(1, dtype=FLOAT),
        torch.zeros(1, len(variances), dtype=FLOAT),
        torch.diag(1.0 / torch.tensor(variances, dtype=FLOAT))[None],
    )


def test_the_tails_of_a_quotient_decide_whether_it_is_integrable():
    narrow, wide = one_component(1.0, 1.0), one_component(4.0, 4.0)
    assert tail_component([narrow, wide], [1.0, 1.0]) is None
    tail = tail_component([narrow, wide], [1.0, -2.0])
    assert torch.allclose(tail.precisions[0], torch.diag(torch.full((2,), 0.5, dtype=FLOAT)))
    # just inside, on the boundary, outside
    assert tail_component([narrow, wide], [1.0, -3.99]) is not None
    for weight in (-4.0, -5.0):
        with pytest.raises(ValueError, match="cannot be shown to be integrable"):
            tail_component([narrow, wide], [1.0, weight])
    # a single direction is enough
    with pytest.raises(ValueError, match="cannot be shown to be integrable"):
        tail_component([one_component(1.0, 9.0), wide], [1.0, -0.5])
    with pytest.raises(ValueError, match="At least one weight must be positive"):
        tail_component([narrow, wide], [-1.0, -0.5])


def test_the_widest_component_of_a_mixture_sets_its_tails():
    both = Components(
        *(
            torch.cat(pair)
            for pair in zip(one_component(0.01, 0.01), one_component(4.0, 4.0), strict=True)
        )
    )
    # dividing by the narrow component would not be integrable: the wide one shields it
    assert tail_component([one_component(1.0, 1.0), both], [1.0, -1.0]) is not None
    # and multiplying by a narrow component does not help where a wide one decides
    with pytest.raises(ValueError, match="cannot be shown to be integrable"):
        tail_component([both, one_component(1.0, 1.0)], [1.0, -1.0])


def test_draws_are_more_than_annealed_ones_and_repeat_by_seed():
    composition = Composition([expert(WAVE, bend)], [2.0], 2)
    one, two = (
        composition.equilibrated(5, torch.Generator().manual_seed(7)).chains for _ in range(2)
    )
    assert torch.equal(one.position, two.position)
    assert len(torch.unique(one.position)) == 5
