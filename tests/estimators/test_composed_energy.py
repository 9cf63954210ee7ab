"""`compose` and `interpolate` on fitted models: closed forms, quadrature, complaints."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture

from sklvebm import (
    BridgedEnergy,
    MixtureReference,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
    compose,
)

SIGMAS = 5.0


def normal_model(estimator, mean, scale, **parameters):
    """Return a fitted model whose density is exactly normal, independent per coordinate."""
    mean, scale = np.asarray(mean), np.asarray(scale)
    d = len(mean)
    # rows with exactly this mean and spread: standardised units are then known
    X = np.concatenate([mean + scale * math.sqrt(d) * s * np.eye(d) for s in (-1.0, 1.0)])
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, d),
        torch.eye(d)[None],
        latent_map=0.2 * torch.ones(1, d),
        latent_variance=torch.ones(1),
        location=torch.zeros(d),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        return estimator(reference=reference, max_iter=0, random_state=0, **parameters).fit(X)


def log_normal(X, mean, variance):
    return -0.5 * ((X - mean) ** 2 / variance + np.log(2.0 * np.pi * variance)).sum(1)


LEFT, RIGHT = (
    (np.array([0.0, 5.0]), np.array([1.0, 2.0])),
    (
        np.array([1.0, 4.0]),
        np.array([2.0, 3.0]),
    ),
)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -0.5), (0.7, 2.0)], ids=str)
@pytest.mark.parametrize("estimator", [ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM])
def test_fitted_gaussians_compose_in_closed_form(estimator, weights):
    latents = {"n_components": 1} if estimator is ParticleLVEBM else {}
    models = [normal_model(estimator, *moments, **latents) for moments in (LEFT, RIGHT)]
    # the networks are zero: any nodes are exact
    composed = compose(zip(models, weights, strict=True), n_nodes=2)
    precision = sum(w / s**2 for w, (_, s) in zip(weights, (LEFT, RIGHT), strict=True))
    mean = sum(w * m / s**2 for w, (m, s) in zip(weights, (LEFT, RIGHT), strict=True)) / precision
    X = composed.sample(2000, random_state=0)
    error = np.sqrt(1.0 / precision / 2000)
    assert (np.abs(X.mean(0) - mean) < SIGMAS * error).all()
    relative = X.var(0) * precision - 1.0
    assert (np.abs(relative) < SIGMAS * math.sqrt(2.0 / 2000)).all()
    expected = sum(
        w * log_normal(X, m, s**2) for w, (m, s) in zip(weights, (LEFT, RIGHT), strict=True)
    )
    assert np.allclose(-composed.energy(X), expected, atol=1e-8)
    estimate = composed.log_partition(n_walkers=64, random_state=0)
    assert estimate is composed.log_partition_
    exact = float((expected - log_normal(X, mean, 1.0 / precision))[0])
    assert estimate.lower - 1e-8 <= exact <= estimate.upper + 1e-8
    error = np.abs(composed.score_samples(X) - log_normal(X, mean, 1.0 / precision))
    assert (error < SIGMAS * estimate.standard_error + 1e-8).all()


def grid_of(low, high, n=241):
    axes = [np.linspace(lo, hi, n) for lo, hi in zip(low, high, strict=True)]
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    return np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], 1), cell


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -0.4)], ids=str)
def test_moons_of_both_kinds_agree_with_quadrature(fitted, fitted_flow, weights):
    composed = compose([(fitted_flow, weights[0]), (fitted, weights[1])], n_nodes=32)
    # a narrower bracket takes five times as long and no less to be right: 0.03 is the error
    estimate = composed.log_partition(n_walkers=256, tolerance=0.4, random_state=0)
    assert estimate.standard_error < 0.05
    # twice as fine a grid changes the integral by 1e-3
    rows, cell = grid_of((-4.0, -3.5), (5.0, 4.0), 51)
    log_density = composed.score_samples(rows)
    total = float(np.log(np.exp(log_density).sum() * cell))
    # the normaliser by quadrature of the energy itself
    assert abs(total) < SIGMAS * estimate.standard_error + 0.02
    assert estimate.lower - 0.02 <= total + estimate.value <= estimate.upper + 0.02
    shares = np.exp(log_density) * cell / np.exp(total)
    X = composed.sample(400, random_state=1)
    mean = shares @ rows
    spread = np.sqrt(shares @ (rows - mean) ** 2)
    assert (np.abs(X.mean(0) - mean) < SIGMAS * spread / math.sqrt(100)).all()
    # the composition is neither of its parts
    alone = [shares_of(model, rows, cell) @ rows for model in (fitted_flow, fitted)]
    assert max(np.abs(part - mean).max() for part in alone) > 0.02


def shares_of(model, rows, cell):
    return np.exp(model.score_samples(rows)) * cell


def test_a_single_model_of_weight_one_is_that_model(fitted, fitted_flow, moons):
    flow = compose([(fitted_flow, 1.0)])
    expected = fitted_flow.score_samples(moons, method="energy")
    assert np.allclose(-flow.energy(moons), expected, atol=1e-8)
    one = compose([(fitted, 1.0)])
    log_z = fitted.log_partition_
    # its score takes the upper estimate of log Z, an energy the middle one
    expected = fitted.score_samples(moons) + log_z.upper - log_z.value
    assert np.allclose(-one.energy(moons), expected, atol=0.02)


def test_an_earlier_energy_of_the_flow_is_that_of_noised_rows(moons):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = PotentialFlowEBM(
            reference="gaussian", energy_time=0.8, max_iter=3, random_state=0
        ).fit(moons)
    expected = model.score_samples(moons, method="energy")
    assert np.allclose(-compose([(model, 1.0)]).energy(moons), expected, atol=1e-8)


def test_compositions_compose(fitted, fitted_flow, moons):
    inner = compose([(fitted_flow, 2.0), (fitted, 1.0)])
    outer = compose([(inner, 0.5), (fitted_flow, 1.0)])
    assert outer.weights == [1.0, 0.5, 1.0]
    by_hand = 0.5 * inner.energy(moons) + compose([(fitted_flow, 1.0)]).energy(moons)
    assert np.allclose(outer.energy(moons), by_hand, atol=0.02)


def test_seeds_repeat_dtypes_are_kept_and_pickles_work(fitted_flow, moons):
    composed = compose([(fitted_flow, 2.0)])
    X = composed.sample(7, random_state=3)
    assert X.shape == (7, 2)
    assert np.array_equal(X, composed.sample(7, random_state=3))
    assert not np.array_equal(X, composed.sample(7))
    assert composed.energy(moons.astype(np.float32)).dtype == np.float32
    composed.log_partition(n_walkers=64, tolerance=1.0, random_state=0)
    again = pickle.loads(pickle.dumps(composed))
    assert np.array_equal(again.score_samples(moons), composed.score_samples(moons))
    assert "2 * PotentialFlowEBM" in repr(again)


def test_models_are_copied_and_nothing_global_changes(small, moons):
    model = small().fit(moons)
    composed = compose([(model, 1.0)])
    before = composed.energy(moons)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    composed.sample(3, random_state=0)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    model.set_params(random_state=5).fit(moons + 1.0)
    assert np.array_equal(before, composed.energy(moons))


def test_scores_need_a_normaliser(fitted_flow, moons):
    with pytest.raises(NotFittedError, match=r"Call log_partition\(\)"):
        compose([(fitted_flow, 1.0)]).score_samples(moons)


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ([], ValueError, "must not be empty"),
        (3, TypeError, "must be pairs"),
        (["ab"], TypeError, r"must be a pair \(model, weight\), got 'ab'"),
        ([(GaussianMixture(), 1.0)], TypeError, "density of this package .* got GaussianMixture"),
        ([(ParticleLVEBM, 1.0)], TypeError, "got ParticleLVEBM"),
        ([(ParticleLVEBM(), 1.0)], NotFittedError, "not fitted"),
        ([(PotentialFlowEBM(), 1.0)], NotFittedError, "not fitted"),
    ],
)
def test_illegal_terms_are_named(terms, error, message):
    with pytest.raises(error, match=message):
        compose(terms)


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf, "1", True, None])
def test_illegal_weights_are_named(fitted_flow, weight):
    with pytest.raises((TypeError, ValueError), match=r"weight must be .* got"):
        compose([(fitted_flow, weight)])


def test_other_features_and_nodes_are_refused(fitted_flow):
    other = normal_model(PotentialFlowEBM, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"same number of features, got \[2, 3\]"):
        compose([(fitted_flow, 1.0), (other, 1.0)])
    with pytest.raises(ValueError, match="n_nodes must be a power of two, got 12"):
        compose([(fitted_flow, 1.0)], n_nodes=12)


def test_what_cannot_be_normalised_is_refused(fitted_flow):
    models = [normal_model(PotentialFlowEBM, *moments) for moments in (LEFT, RIGHT)]
    compose([(models[0], 1.0), (models[1], -2.0)])
    with pytest.raises(ValueError, match="cannot be shown to be integrable"):
        compose([(models[0], 1.0), (models[1], -2.3)])
    with pytest.raises(ValueError, match="cannot be shown to be integrable"):
        compose([(fitted_flow, 1.0), (fitted_flow, -1.0)])
    with pytest.raises(ValueError, match="At least one weight must be positive"):
        compose([(fitted_flow, -1.0)])


class Bowl(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, z):
        return self.offset + 0.5 * (x.square().sum(1) + z.square().sum(1))


def test_energies_of_the_users_own_take_positive_weights_from_one(small, moons):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = small(energy=Bowl(), max_iter=0, reference="gaussian").fit(moons)
    assert isinstance(model.energy_, BridgedEnergy)
    composed = compose([(model, 2.0)], n_nodes=16)
    X = composed.sample(300, random_state=0)
    # half the variance of the standard normal, in standardised units
    variance = ((X - model.mean_) / model.scale_).var(0)
    assert (np.abs(variance / 0.5 - 1.0) < SIGMAS * math.sqrt(2.0 / 300)).all()
    for weight in (0.5, -1.0):
        with pytest.raises(ValueError, match="its weight must be at least 1"):
            compose([(model, weight)])
