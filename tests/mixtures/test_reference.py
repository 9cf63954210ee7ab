"""The reference density against scikit-learn, quadrature and automatic differentiation."""

import copy
import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.mixture import GaussianMixture
from torch.autograd.functional import jacobian

from sklvebm.mcmc.state import IndependentNoise, SharedNoise
from sklvebm.mixtures.components import products_by_component
from sklvebm.mixtures.expectation_maximization import from_scikit_learn
from sklvebm.mixtures.reference import MixtureReference

SIGMAS = 5.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def reference_of(mixture, n_latents=2, **wide):
    n_features = mixture.means_.shape[1]
    g = generator(7)
    covariances, covariance_of = from_scikit_learn(mixture).covariance_matrices()
    return MixtureReference(
        torch.from_numpy(mixture.weights_),
        torch.from_numpy(mixture.means_),
        torch.from_numpy(covariances),
        covariance_of=torch.from_numpy(covariance_of),
        latent_map=torch.randn(n_latents, n_features, generator=g, dtype=torch.float64),
        latent_variance=0.2 + torch.rand(n_latents, generator=g, dtype=torch.float64),
        location=torch.randn(n_features, generator=g, dtype=torch.float64),
        **wide,
    )


def fitted_mixture(covariance_type, n_components=3, n_features=3):
    random = np.random.RandomState(0)
    X = np.concatenate(
        [
            random.standard_normal((80, n_features))
            @ random.standard_normal((n_features, n_features))
            + 2.0 * random.standard_normal(n_features)
            for _ in range(n_components)
        ]
    )
    mixture = GaussianMixture(n_components, covariance_type=covariance_type, random_state=0)
    return mixture.fit(X), X


def small_reference(n_features=2, n_latents=1, covariance_type="full", defensive_weight=0.1):
    mixture, X = fitted_mixture(covariance_type, n_features=n_features)
    wide = torch.from_numpy(4.0 * np.cov(X.T).reshape(n_features, n_features))
    return reference_of(
        mixture, n_latents, defensive_weight=defensive_weight, defensive_covariance=wide
    )


@pytest.fixture(params=["full", "tied", "diag"])
def any_reference(request):
    return small_reference(covariance_type=request.param)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag"])
def test_log_marginal_is_the_score_of_the_fitted_mixture(covariance_type):
    mixture, X = fitted_mixture(covariance_type)
    reference = reference_of(mixture)
    # diagonal covariances stay diagonal because the pooled root is diagonal as well
    assert reference.is_diagonal == (covariance_type != "full")
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(), mixture.score_samples(X), rtol=1e-10
    )


@pytest.mark.parametrize("n_features", [2, 9])
def test_log_marginal_is_the_score_in_few_and_in_many_dimensions(n_features):
    # two routes to the quadratic forms: products of features, or a residual per component
    mixture, X = fitted_mixture("full", n_features=n_features)
    reference = reference_of(mixture)
    assert (n_features + 1 > 2 * mixture.n_components) == (n_features == 9)
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(), mixture.score_samples(X), rtol=1e-10
    )


# few features, a covariance per component (products of features); many (rows whitened by each)
@pytest.mark.parametrize("n_features", [2, 9])
def test_components_that_share_covariances_are_those_with_copies_of_them(n_features):
    mixture, X = fitted_mixture("full", n_features=n_features)
    g = generator(1)
    means = 2.0 * torch.randn((5, n_features), generator=g, dtype=torch.float64)
    covariances = torch.from_numpy(mixture.covariances_[:2])
    covariance_of = torch.tensor([1, 0, 0, 1, 0])
    weights = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15], dtype=torch.float64)
    maps = {
        "latent_map": torch.randn((1, n_features), generator=g, dtype=torch.float64),
        "latent_variance": torch.ones(1),
        "location": means[0],
        "defensive_weight": 0.1,
        "defensive_covariance": torch.from_numpy(9.0 * np.cov(X.T)),
    }
    shared = MixtureReference(weights, means, covariances, covariance_of=covariance_of, **maps)
    copied = MixtureReference(weights, means, covariances[covariance_of], **maps)
    assert (len(shared.factors), len(copied.factors)) == (3, 6)
    y = 2.0 * torch.randn((20, n_features), generator=g, dtype=torch.float64)
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(shared.log_components(y), copied.log_components(y))
    for ours, theirs in zip(
        shared.marginal_energy_and_grad(y), copied.marginal_energy_and_grad(y), strict=True
    ):
        close(ours, theirs)
    close(shared.sample(50, generator(2)), copied.sample(50, generator(2)))
    frames = [r.frame(y, IndependentNoise(generator(3))) for r in (shared, copied)]
    for name in ("whiten", "colour", "pull"):
        close(*(getattr(frame, name)(y) for frame in frames))
    z = torch.randn((4, 1), generator=g, dtype=torch.float64)
    conditionals = [r.feature_conditional(z) for r in (shared, copied)]
    close(conditionals[0].log_weights, conditionals[1].log_weights)
    close(conditionals[0].mean(), conditionals[1].mean())


@pytest.mark.parametrize(
    "covariance_of", [None, torch.tensor([0, 1]), torch.tensor([0, 2, 1]), torch.tensor([0, -1, 1])]
)
def test_covariances_that_fit_no_component_are_named(covariance_of):
    with pytest.raises(ValueError, match="covariance_of must name one of 2 .* of 3 components"):
        MixtureReference(
            torch.full((3,), 1.0 / 3.0),
            torch.zeros(3, 2),
            torch.eye(2).expand(2, 2, 2),
            covariance_of=covariance_of,
            latent_map=torch.zeros(1, 2),
            latent_variance=torch.ones(1),
            location=torch.zeros(2),
        )


def test_narrow_components_far_out_keep_their_digits():
    # standard deviation 1e-3 at a distance of 50: quadratic forms of 2.5e9 cancel to about one
    precise = GaussianMixture(2, covariance_type="full")
    precise.weights_, precise.means_ = np.array([0.5, 0.5]), np.array([[50.0, -50.0], [0.0, 0.0]])
    precise.covariances_ = np.stack([1e-6 * np.array([[1.0, 0.5], [0.5, 1.0]]), np.eye(2)])
    precise.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(precise.covariances_))
    precise.precisions_cholesky_ = precise.precisions_cholesky_.transpose(0, 2, 1)
    X = precise.means_[0] + 1e-3 * np.random.RandomState(0).standard_normal((100, 2))
    np.testing.assert_allclose(
        reference_of(precise).log_marginal(torch.from_numpy(X)).numpy(),
        precise.score_samples(X),
        atol=1e-5,  # 2.5e9 in steps of 5e-7, a dozen of them
    )


def test_log_marginal_counts_the_wide_component_at_the_location():
    mixture, X = fitted_mixture("full")
    defensive_covariance = 4.0 * np.cov(X.T)
    reference = reference_of(
        mixture, defensive_weight=0.05, defensive_covariance=torch.from_numpy(defensive_covariance)
    )
    expected = GaussianMixture(4, covariance_type="full")
    expected.weights_ = np.append(0.95 * mixture.weights_, 0.05)
    expected.means_ = np.vstack([mixture.means_, reference.location.numpy()])
    covariances = np.concatenate([mixture.covariances_, defensive_covariance[None]])
    expected.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(covariances)).transpose(
        0, 2, 1
    )
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(), expected.score_samples(X), rtol=1e-10
    )


def test_wide_component_of_a_diagonal_reference_is_the_diagonal_in_white_coordinates():
    mixture, X = fitted_mixture("tied")
    defensive_covariance = 4.0 * np.cov(X.T)
    reference = reference_of(
        mixture, defensive_weight=0.05, defensive_covariance=torch.from_numpy(defensive_covariance)
    )
    root = scipy.linalg.sqrtm(mixture.covariances_)  # symmetric, as the coordinates are
    white = np.linalg.inv(root) @ defensive_covariance @ np.linalg.inv(root).T
    reduced = root @ np.diag(np.diag(white)) @ root.T
    expected = GaussianMixture(4, covariance_type="full")
    expected.weights_ = np.append(0.95 * mixture.weights_, 0.05)
    expected.means_ = np.vstack([mixture.means_, reference.location.numpy()])
    covariances = np.stack([mixture.covariances_] * 3 + [reduced])
    expected.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(covariances)).transpose(
        0, 2, 1
    )
    assert reference.is_diagonal
    np.testing.assert_allclose(
        reference.log_marginal(torch.from_numpy(X)).numpy(), expected.score_samples(X), rtol=1e-10
    )


def test_energy_is_normalised():
    reference = small_reference(n_features=1, n_latents=1)
    x = torch.linspace(-40.0, 40.0, 1601, dtype=torch.float64)
    # in z the conditional moves with x, hence nodes relative to its mean
    e = torch.linspace(-10.0, 10.0, 201, dtype=torch.float64)
    rows, nodes = torch.cartesian_prod(x, e).split(1, 1)
    z = reference.to_latents(rows, nodes)
    cell = (x[1] - x[0]) * (e[1] - e[0]) * reference.latent_scale[0]
    total = torch.exp(-reference.energy(rows, z)).sum() * cell
    assert float(total) == pytest.approx(1.0, abs=1e-8)


def test_energy_is_the_sum_of_its_two_parts(any_reference):
    g = generator()
    x, z = torch.randn(6, 2, generator=g).double(), torch.randn(6, 1, generator=g).double()
    normal = torch.distributions.Normal(
        any_reference.latent_mean(x), any_reference.latent_scale
    ).log_prob(z)
    expected = -any_reference.log_marginal(x) - normal.sum(1)
    torch.testing.assert_close(any_reference.energy(x, z), expected, rtol=1e-12, atol=1e-12)


def test_marginal_gradient_equals_automatic_differentiation(any_reference):
    y = 2.0 * torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    y.requires_grad_()
    energy, grad = any_reference.marginal_energy_and_grad(y)
    (expected,) = torch.autograd.grad(energy.sum(), y)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)


def test_marginal_energy_differs_from_log_marginal_by_the_jacobian(any_reference):
    y = 2.0 * torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    energy, _ = any_reference.marginal_energy_and_grad(y)
    log_marginal = any_reference.log_marginal(any_reference.to_features(y))
    jacobian_term = torch.linalg.slogdet(any_reference.root).logabsdet
    torch.testing.assert_close(-energy, log_marginal + jacobian_term, rtol=1e-11, atol=1e-11)


def test_single_precision_keeps_the_digits_of_narrow_components():
    covariances = torch.stack([1e-4 * torch.eye(2), torch.eye(2)])
    reference = MixtureReference(
        torch.tensor([0.5, 0.5]),
        torch.tensor([[50.0, 50.0], [0.0, 0.0]]),
        covariances,
        latent_map=torch.zeros(1, 2),
        latent_variance=torch.ones(1),
        location=torch.zeros(2),
    )
    # on a grid of powers of two the coordinates are exact in both precisions
    single = reference.float()
    y = single.means[0] + torch.tensor([[0.0, 0.0], [1 / 64, -1 / 64]])
    energy, grad = single.marginal_energy_and_grad(y)
    exact_energy, exact_grad = single.double().marginal_energy_and_grad(y.double())
    torch.testing.assert_close(energy.double(), exact_energy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-6, atol=1e-6)


def test_coordinate_maps_are_inverse_to_each_other(any_reference):
    position = torch.randn(9, 3, generator=generator(), dtype=torch.float64)
    x, z = any_reference.split(position)
    torch.testing.assert_close(any_reference.from_features(x), position[:, :2])
    torch.testing.assert_close(any_reference.from_latents(x, z), position[:, 2:])
    torch.testing.assert_close(any_reference.to_features(position[:, :2]), x)


def test_features_map_through_the_root_of_the_pooled_covariance():
    mixture, _ = fitted_mixture("full")
    reference = reference_of(mixture)
    pooled = np.einsum("m,mde->de", mixture.weights_, mixture.covariances_)
    np.testing.assert_allclose((reference.root @ reference.root.T).numpy(), pooled, rtol=1e-10)


def test_sample_moments_match_the_mixture(any_reference):
    n = 40_000
    draws = any_reference.sample(n, generator(3))
    y, e = draws[:, :2], draws[:, 2:]
    weights = torch.exp(any_reference.log_weights)
    covariances = (
        torch.diag_embed(any_reference.factors**-2)
        if any_reference.is_diagonal
        else torch.linalg.inv(any_reference.factors @ any_reference.factors.transpose(1, 2))
    )
    mean = weights @ any_reference.means
    second = torch.einsum(
        "m,mde->de", weights, covariances + torch.einsum("md,me->mde", *[any_reference.means] * 2)
    )
    for statistic, expected in [
        (y, mean),
        (torch.einsum("bd,be->bde", y, y), second),
        (e, torch.zeros(1).double()),
        (e.square(), torch.ones(1).double()),
        (y * e, torch.zeros(2).double()),
    ]:
        error = statistic.std(0) / math.sqrt(n)
        assert torch.all((statistic.mean(0) - expected).abs() < SIGMAS * error)


def test_sample_visits_components_at_their_weights():
    # components 200 standard deviations apart, so that the nearest mean names the component
    reference = MixtureReference(
        torch.tensor([0.2, 0.7, 0.1]),
        torch.tensor([[-200.0], [0.0], [200.0]]),
        torch.ones(3, 1, 1),
        latent_map=torch.ones(1, 1),
        latent_variance=torch.ones(1),
        location=torch.zeros(1),
    )
    n = 20_000
    x, _ = reference.split(reference.sample(n, generator(1)))
    nearest = (x / 200.0).round().long().squeeze(1) + 1
    frequency = torch.bincount(nearest, minlength=3) / n
    weights = torch.tensor([0.2, 0.7, 0.1])
    error = torch.sqrt(weights * (1.0 - weights) / n)
    assert torch.all((frequency - weights).abs() < SIGMAS * error)


def test_sampled_latents_follow_the_conditional_law(any_reference):
    n = 40_000
    x, z = any_reference.split(any_reference.sample(n, generator(5)))
    residual = z - (x - any_reference.location) @ any_reference.latent_map.T
    variance = any_reference.latent_scale.square()
    for statistic, expected in [
        (residual, 0.0 * variance),
        (residual.square(), variance),
        (residual * (x - any_reference.location), torch.zeros(2).double()),
    ]:
        error = statistic.std(0) / math.sqrt(n)
        assert torch.all((statistic.mean(0) - expected).abs() < SIGMAS * error)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_feature_conditional_is_bayes_rule_on_a_grid(covariance_type):
    reference = small_reference(n_features=2, n_latents=1, covariance_type=covariance_type)
    z = torch.tensor([[-1.5], [0.3], [2.0]], dtype=torch.float64)
    conditional = reference.feature_conditional(z)
    axis = torch.linspace(-14.0, 14.0, 561, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    energy, _ = reference.marginal_energy_and_grad(grid)
    x = reference.to_features(grid)
    for row in range(len(z)):
        log_joint = -energy + reference.log_conditional(x, z[row].expand(len(x), 1))
        expected = torch.softmax(log_joint, 0) / (axis[1] - axis[0]) ** 2
        density = torch.zeros_like(expected)
        for m in range(conditional.roots.shape[0]):
            law = torch.distributions.MultivariateNormal(
                conditional.means[row, m], scale_tril=conditional.roots[m], validate_args=False
            )
            density += torch.exp(conditional.log_weights[row, m] + law.log_prob(grid))
        # the trapezoidal rule is exact to rounding for smooth densities inside the box
        torch.testing.assert_close(density, expected, rtol=1e-6, atol=1e-9 * float(expected.max()))


def test_feature_conditional_samples_have_its_moments():
    reference = small_reference(n_features=2, n_latents=1)
    n = 40_000
    z = torch.full((1, 1), 0.7, dtype=torch.float64)
    conditional = reference.feature_conditional(z)
    y = conditional.sample(torch.zeros(n, dtype=torch.long), IndependentNoise(generator(2)))
    weights, means = conditional.log_weights[0].exp(), conditional.means[0]
    covariances = conditional.roots @ conditional.roots.transpose(1, 2)
    mean = weights @ means
    second = torch.einsum(
        "m,mde->de", weights, covariances + torch.einsum("md,me->mde", means, means)
    )
    for statistic, expected in [(y, mean), (torch.einsum("bd,be->bde", y, y), second)]:
        error = statistic.std(0) / math.sqrt(n)
        assert torch.all((statistic.mean(0) - expected).abs() < SIGMAS * error)


def conditional_frame(reference, y):
    z = torch.zeros(len(y), reference.n_latents, dtype=torch.float64)
    component = reference.draw_components(y, IndependentNoise(generator(4)))
    return reference.feature_conditional(z).frame(torch.arange(len(z)), component)


def marginal_frame(reference, y):
    return reference.frame(y, IndependentNoise(generator(4)))


@pytest.mark.parametrize("make_frame", [marginal_frame, conditional_frame])
def test_frames_whiten_and_colour_inversely(any_reference, make_frame):
    y = torch.randn(12, 2, generator=generator(), dtype=torch.float64)
    frame = make_frame(any_reference, y)
    torch.testing.assert_close(frame.whiten(frame.colour(y)), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(frame.colour(frame.whiten(y)), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make_frame", [marginal_frame, conditional_frame])
def test_frames_pull_gradients_by_the_transposed_jacobian(any_reference, make_frame):
    y = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    grad = torch.randn(5, 2, generator=generator(9), dtype=torch.float64)
    frame = make_frame(any_reference, y)
    matrices = jacobian(lambda s: frame.colour(s).sum(0), frame.whiten(y)).permute(1, 0, 2)
    expected = torch.einsum("bde,bd->be", matrices, grad)
    torch.testing.assert_close(frame.pull(grad), expected, rtol=1e-10, atol=1e-10)


def test_the_frame_of_the_drawn_component_makes_that_component_standard_normal(any_reference):
    y = any_reference.sample(50, generator(6))[:, :2]
    component = any_reference.draw_components(y, IndependentNoise(generator(4)))
    frame = any_reference.frame(y, IndependentNoise(generator(4)))
    moved = y + torch.randn(50, 2, generator=generator(8), dtype=torch.float64)
    rows = torch.arange(50)
    difference = (
        any_reference.log_components(moved)[rows, component]
        - any_reference.log_components(y)[rows, component]
    )
    white = 0.5 * (frame.whiten(y).square() - frame.whiten(moved).square()).sum(1)
    torch.testing.assert_close(difference, white, rtol=1e-9, atol=1e-9)


def test_a_single_component_is_standard_normal_in_its_frame():
    mixture, X = fitted_mixture("full", n_components=1)
    reference = reference_of(mixture)
    y = reference.from_features(torch.from_numpy(X[:30]))
    energy, _ = reference.marginal_energy_and_grad(y)
    white = reference.frame(y, IndependentNoise(generator())).whiten(y)
    half = 0.5 * white.square().sum(1)
    torch.testing.assert_close(energy - energy[0], half - half[0], rtol=1e-10, atol=1e-10)


def test_components_are_drawn_from_their_probability_given_the_position():
    reference = small_reference(n_features=1)
    n = 20_000
    y = torch.full((n, 1), 0.4, dtype=torch.float64)
    drawn = reference.draw_components(y, IndependentNoise(generator(1)))
    probability = torch.softmax(reference.log_components(y[:1])[0], 0)
    frequency = torch.bincount(drawn, minlength=len(probability)) / n
    error = torch.sqrt(probability * (1.0 - probability) / n)
    assert torch.all((frequency - probability).abs() < SIGMAS * error + 1e-12)


def test_shared_noise_draws_the_same_for_every_row():
    reference = small_reference()
    z = torch.tensor([[0.5], [0.5]], dtype=torch.float64).repeat_interleave(8, 0)
    row = torch.arange(2).repeat_interleave(8)
    y = reference.feature_conditional(z[::8]).sample(row, SharedNoise(generator(), 8))
    y = y.reshape(2, 8, 2)
    assert torch.equal(y[0], y[1])
    assert len(torch.unique(y[0], dim=0)) == 8


def test_products_by_component_are_those_of_a_matrix_per_row():
    # above eight features matrices are not gathered for each row
    source = generator(3)
    rows = torch.randn(50, 9, generator=source, dtype=torch.float64)
    matrices = torch.randn(4, 9, 9, generator=source, dtype=torch.float64)
    component = torch.randint(4, (50,), generator=source)
    expected = torch.einsum("bd,bde->be", rows, matrices[component])
    torch.testing.assert_close(products_by_component(rows, matrices, component), expected)
    few = torch.einsum("bd,bde->be", rows[:, :3], matrices[component, :3, :3])
    torch.testing.assert_close(
        products_by_component(rows[:, :3].contiguous(), matrices[:, :3, :3], component), few
    )


def test_stratified_draws_share_themselves_out_among_components():
    reference = small_reference()
    n = 1000
    draws = reference.sample(n, generator(), stratified=True)
    independent = reference.sample(40_000, generator(1))
    for moment in (1, 2):
        expected, error = independent.pow(moment).mean(0), independent.pow(moment).std(0)
        assert torch.all((draws.pow(moment).mean(0) - expected).abs() < SIGMAS * error / n**0.5)
    # in the order of the components, each with its share of the draws up to rounding
    ends = torch.cumsum((n * reference.log_weights.exp()).round().long(), 0)
    first = draws[: int(ends[0]) - 1, : reference.n_features]
    alone = reference.means[0]
    spread = first.std(0) / len(first) ** 0.5
    assert torch.all((first.mean(0) - alone).abs() < SIGMAS * spread)


def test_copies_share_tensors_and_change_alone(any_reference):
    twin = copy.deepcopy(any_reference)
    assert twin.means.data_ptr() == any_reference.means.data_ptr()
    twin.float()
    twin.log_weights = twin.log_weights - 1.0
    assert any_reference.means.dtype == torch.float64
    assert float(any_reference.log_weights.exp().sum()) == pytest.approx(1.0)


def test_reference_without_latents_is_the_marginal_of_the_features(any_reference):
    marginal = any_reference.without_latents()
    assert (marginal.n_features, marginal.n_latents) == (any_reference.n_features, 0)
    draws = any_reference.sample(20, generator())
    x, _ = any_reference.split(draws)
    empty = x[:, :0]
    torch.testing.assert_close(marginal.log_marginal(x), any_reference.log_marginal(x))
    torch.testing.assert_close(marginal.energy(x, empty), -any_reference.log_marginal(x))
    position = marginal.sample(5, generator(1))
    assert position.shape == (5, any_reference.n_features)
    assert marginal.split(position)[1].shape == (5, 0)
    # the other one is left alone
    assert any_reference.n_latents > 0
