"""When latents follow the rows, and that nothing but the latents changes."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsRegressor

from sklvebm import MLPEnergy, ParticleLVEBM, PerceptronLatentMap
from sklvebm.datasets import make_kepler_orbits
from sklvebm.latent_maps import selection
from sklvebm.latent_maps.autoencoder import (
    N_TRIAL_STEPS,
    _nearest,
    _ResidualPerceptron,
    fit_bottleneck,
)
from sklvebm.metrics import factor_recovery
from sklvebm.models.energies import MappedEnergy


def helix(n, seed):
    """Return rows along a helix, and where on it they are."""
    random = np.random.RandomState(seed)
    angle = 2.0 * np.pi * random.uniform(size=n)
    X = np.stack([np.cos(2.0 * angle), np.sin(2.0 * angle), angle / np.pi - 1.0], 1)
    return X + 0.1 * random.standard_normal(X.shape), angle


def spiral(n, seed):
    """Return rows along a spiral whose turns are six standard deviations of the noise apart."""
    random = np.random.RandomState(seed)
    angle = 2.0 * np.pi * random.uniform(size=n)
    turn = 1.5 * np.pi + 1.5 * angle
    X = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / 10.0
    return X + 0.1 * random.standard_normal(X.shape), angle


def untrained(X, n_components=1, **parameters):
    """Fit nothing but the latents, and one Gaussian where no mixture is asked for."""
    parameters = {"reference": "gaussian", **parameters}
    return ParticleLVEBM(n_components, max_iter=0, random_state=0, **parameters).fit(X)


@pytest.mark.parametrize("draw", [helix, spiral])
def test_one_latent_finds_the_position_along_a_curve(draw):
    X, angle = draw(1500, 0)
    fresh, truth = draw(1000, 1)
    model = untrained(X, reference="mixture")
    assert isinstance(model.energy_, MappedEnergy)

    def recovered(transform):
        regressor = KNeighborsRegressor(10).fit(transform(X), angle)
        return regressor.score(transform(fresh), truth)

    assert recovered(model.transform) > 0.95
    assert recovered(PCA(1).fit(X).transform) < 0.9
    # and the median row comes back from it but for its noise, 0.1 in each direction
    back = model.inverse_transform(model.transform(fresh[:200]))
    assert np.median(np.linalg.norm(back - fresh[:200], axis=1)) < 0.2


def test_a_chart_changes_latents_and_nothing_else():
    X, _ = make_moons(300, noise=0.1, random_state=0)
    charted, linear = (
        untrained(X, latent_map=kind, reference="mixture") for kind in ("manifold", "linear")
    )
    np.testing.assert_array_equal(charted.score_samples(X), linear.score_samples(X))
    np.testing.assert_array_equal(
        charted.sample(20, random_state=0), linear.sample(20, random_state=0)
    )
    assert np.abs(charted.transform(X) - linear.transform(X)).max() > 0.1
    # latents of draws follow the same latent_map: their mean given the row is the map itself
    draws, Z = charted.sample(2000, random_state=0, return_latents=True)
    residual = Z - charted.transform(draws)
    scale = charted.energy_.latent_map.scale.numpy()
    # five standard errors of a mean of 2,000, and of a variance
    assert abs(residual.mean()) < 5.0 * scale / np.sqrt(2000)
    assert abs(residual.std() / scale - 1.0) < 5.0 / np.sqrt(2 * 2000)


def test_a_charted_energy_has_the_density_that_is_scored():
    X, _ = make_moons(300, noise=0.1, random_state=0)
    model = ParticleLVEBM(1, max_iter=5, early_stopping=False, random_state=0).fit(X)
    x = torch.from_numpy((X[:5] - model.mean_) / model.scale_)
    grid = torch.linspace(-12.0, 12.0, 8001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        logs = [torch.logsumexp(-model.energy_(row.expand(8001, 2), grid), 0) for row in x]
    evidence = torch.stack(logs).numpy() + np.log(24.0 / 8000)
    expected = evidence - model.log_partition_.upper - np.log(model.scale_).sum()
    np.testing.assert_allclose(model.score_samples(X[:5]), expected, atol=0.02)


@pytest.mark.parametrize(
    ("n_rows", "n_components"), [(300, 2), (300, 5), (60, 1)], ids=["as many", "more", "few rows"]
)
def test_nothing_is_bent_without_need(n_rows, n_components):
    X, _ = make_moons(n_rows, noise=0.1, random_state=0)
    assert untrained(X, n_components)._model.latent_map is None


def test_straight_rows_keep_the_linear_map():
    random = np.random.RandomState(0)
    X = random.standard_normal((500, 1)) @ random.standard_normal((1, 4))
    X += 0.3 * random.standard_normal(X.shape)
    assert untrained(X)._model.latent_map is None


def test_an_energy_of_the_users_keeps_its_latents():
    X, _ = make_moons(100, noise=0.1, random_state=0)
    model = untrained(X, energy=lambda d, latents: Quartic(), latent_map="manifold")
    assert model._model.latent_map is None


class Quartic(MLPEnergy):
    """An integrable energy of rows and latents."""

    def __init__(self):
        super().__init__(2, 1, (4,), generator=torch.Generator().manual_seed(0))

    def forward(self, x, z):
        return 0.25 * x.pow(4).sum(1) + 0.5 * z.square().sum(1)


def test_latents_of_a_closed_surface_come_from_a_bottleneck():
    """Orbits fill three dimensions of four, and phases come round again."""
    X, fresh = make_kepler_orbits(1500, random_state=0), make_kepler_orbits(60, random_state=1)
    bent, linear = (
        untrained(X, 3, latent_map=kind, reference="mixture") for kind in ("auto", "linear")
    )
    assert isinstance(bent._model.latent_map, PerceptronLatentMap)
    np.testing.assert_array_equal(bent.score_samples(fresh), linear.score_samples(fresh))

    def lost(model):
        return np.square(model.inverse_transform(model.transform(fresh)) - fresh).mean()

    # three of four whitened columns miss the fourth (mean square 0.034); what is left is the noise
    # of the bottleneck and the posterior's width (0.001), with room for another draw of weights
    assert lost(bent) < 0.25 * lost(linear)
    again = pickle.loads(pickle.dumps(bent))
    np.testing.assert_array_equal(again.transform(fresh), bent.transform(fresh))


def test_two_latents_do_not_wind_through_noise():
    """Rows without structure would be rebuilt from a crumpled sheet with half the error."""
    X = np.random.RandomState(0).standard_normal((600, 3))
    assert untrained(X, 2)._model.latent_map is None


def test_a_bottleneck_keeps_what_no_linear_map_does():
    """Rows around a cylinder; the map that it starts from sees the circle and no height."""
    random = np.random.RandomState(0)
    angle, height = 2.0 * np.pi * random.uniform(size=800), random.uniform(-1.5, 1.5, size=800)
    X = np.stack([np.cos(angle), np.sin(angle), height], 1) * 1.4
    latent_map = fit_bottleneck(X, np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), 0)
    Z = latent_map.mean(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(Z.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(Z.std(0), 1.0, atol=1e-6)
    known = KNeighborsRegressor(10).fit(Z[:600], X[:600]).score(Z[600:], X[600:])
    assert known > 0.9  # the linear map knows two of three columns


def test_rows_that_are_not_curved_have_a_short_fit_only(monkeypatch):
    """Neighbours in thirteen columns know more than two latents, by whichever map."""
    steps = []

    def counting(*args, n_steps=1000, **how):
        steps.append(n_steps)
        return fit_bottleneck(*args, n_steps=n_steps, **how)

    monkeypatch.setattr(selection, "fit_bottleneck", counting)
    monkeypatch.setattr(selection, "_MAX_FLOOR_RATIO", 1.0)
    random = np.random.RandomState(0)
    X = random.standard_normal((600, 4)) @ random.standard_normal((4, 13))
    assert untrained(X, 2)._model.latent_map is None
    assert steps == [N_TRIAL_STEPS]
    steps.clear()
    bent = untrained(make_kepler_orbits(1000, random_state=0), 2, reference="mixture")
    assert isinstance(bent._model.latent_map, PerceptronLatentMap)
    assert steps == [N_TRIAL_STEPS, 1000, 1000]


def test_latents_of_nearest_points_know_more_of_an_orbit():
    X = make_kepler_orbits(2000, random_state=0)
    fresh, factors = make_kepler_orbits(1000, return_factors=True, random_state=1)
    mean, scale = X.mean(0), X.std(0)
    X, fresh = (X - mean) / scale, torch.from_numpy((fresh - mean) / scale)
    start = np.linalg.eigh(np.cov(X.T))[1][:, :0:-1].T

    def lost(exact):
        latent_map = fit_bottleneck(X, start, 0, exact=exact)
        found = factor_recovery(latent_map.mean(fresh), factors, circular=(2,), random_state=0)
        return 1.0 - found.nearest_neighbours[0]

    # the variance of the energy that neighbours miss: 0.05 of 0.10 on three draws, and 0.09 with
    # the wider networks alone
    assert lost(exact=True) < 0.75 * lost(exact=False)


def test_nearest_points_of_a_plane_are_those_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(6, 2, generator=generator))[0]
    back = _ResidualPerceptron(plane, 8, generator).requires_grad_(False)
    rows = torch.randn(500, 6, generator=generator)
    exact = rows @ plane
    found = _nearest(back, rows, exact + 0.2 * torch.randn(500, 2, generator=generator))
    # a start as far off as networks trained together are; half of latents' noise is left at most
    torch.testing.assert_close(found, exact, rtol=0.0, atol=0.05)


def test_a_bottleneck_repeats_whatever_the_default_dtype_and_leaves_global_noise_alone():
    X = np.random.RandomState(0).standard_normal((50, 4))
    before = torch.get_rng_state()
    first = fit_bottleneck(X, np.eye(2, 4), 3, exact=True)
    torch.set_default_dtype(torch.float64)
    try:
        second = fit_bottleneck(X, np.eye(2, 4), 3, exact=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize(("n_rows", "n_components"), [(3, 1), (12, 6)])
def test_too_few_rows_for_a_manifold_raise(n_rows, n_components):
    X = np.random.RandomState(0).standard_normal((n_rows, 8))
    with pytest.raises(ValueError, match="latent_map='manifold' needs at least .* got"):
        untrained(X, n_components, latent_map="manifold")


@pytest.mark.parametrize(("n_rows", "n_components"), [(7, 1), (14, 6)])
def test_few_rows_may_have_a_manifold(n_rows, n_components):
    X = np.random.RandomState(0).standard_normal((n_rows, 8))
    Z = untrained(X, n_components, latent_map="manifold").transform(X)
    assert Z.shape == (n_rows, n_components)
    assert np.isfinite(Z).all()


def test_charts_survive_pickling():
    X, _ = make_moons(300, noise=0.1, random_state=0)
    model = untrained(X)
    assert model._model.latent_map is not None
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    np.testing.assert_allclose(
        again.inverse_transform(model.transform(X[:3])),
        model.inverse_transform(model.transform(X[:3])),
    )
