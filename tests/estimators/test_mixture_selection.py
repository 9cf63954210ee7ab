"""The mixture that cross-validation chooses, and ensembles of mixtures."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from sklvebm.estimators._mixture_selection import (
    MixtureChoice,
    MixtureEnsemble,
    choose_mixture,
    fit_ensemble,
    fitted_wide_weight,
    plain_arrays_on_one_thread,
)


@pytest.fixture(autouse=True)
def _one_thread():
    with plain_arrays_on_one_thread():
        yield


def random_state(seed=0):
    return np.random.RandomState(seed)


def rows(n=400, n_features=5, seed=0):
    random = random_state(seed)
    X = random.standard_normal((n, 3)) @ random.standard_normal((3, n_features))
    X = X + 0.5 * random.standard_normal((n, n_features))
    return (X - X.mean(axis=0)) / X.std(axis=0)


def clusters(n_per_cluster=120, seed=0):
    """Return four clusters twenty standard deviations apart, and their centres."""
    random = random_state(seed)
    centres = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    X = np.concatenate([c + random.standard_normal((n_per_cluster, 2)) for c in centres])
    return X, centres


def ring(n, seed=0):
    """Return rows around a circle, noise 0.1."""
    random = random_state(seed)
    angle = 2.0 * np.pi * random.uniform(size=n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * random.standard_normal((n, 2))


def chosen(X):
    choice = choose_mixture(X, random_state())
    return choice, fit_ensemble(X, choice, random_state())


def test_well_separated_clusters_are_counted():
    X, centres = clusters()
    choice, ensemble = chosen(X)
    assert choice.n_components == 4
    for mixture in ensemble.members:
        nearest = np.linalg.norm(mixture.means_[:, None] - centres[None], axis=2).argmin(axis=1)
        assert sorted(nearest) == [0, 1, 2, 3]
        for mean, k in zip(mixture.means_, nearest, strict=True):
            # five standard errors of the mean of 120 unit normals
            assert np.abs(mean - centres[k]).max() < 5.0 / np.sqrt(120)


def test_one_member_where_all_starts_lead_to_the_same_fit():
    choice, ensemble = chosen(rows(400, 3))
    assert (choice.n_members, len(ensemble.members)) == (1, 1)


def test_an_ensemble_beats_the_mean_of_its_members_on_curved_data():
    X, fresh = ring(600), ring(20_000, seed=1)
    choice, ensemble = chosen(X)
    assert choice.n_members > 4
    own = np.array([member.score_samples(fresh) for member in ensemble.members])
    # the mean density is above the geometric mean of the densities at every row
    gain = ensemble.score_samples(fresh) - own.mean(axis=0)
    assert gain.min() >= 0.0
    # and what was chosen is better than the best single mixture by BIC, by four standard errors
    singles = [GaussianMixture(k, random_state=0).fit(X) for k in range(1, 30)]
    best = min(singles, key=lambda mixture: mixture.bic(X))
    difference = ensemble.score_samples(fresh) - best.score_samples(fresh)
    assert difference.mean() > 4.0 * difference.std() / np.sqrt(len(fresh))


def test_an_ensemble_is_a_density():
    X = ring(300)
    choice = MixtureChoice(5, "full", 1e-3, n_members=3, wide_weight=0.01)
    ensemble = fit_ensemble(X, choice, random_state())
    axis = np.linspace(-3.0, 3.0, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(ensemble.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-4)
    assert isinstance(ensemble, MixtureEnsemble)
    means = {member.means_.tobytes() for member in ensemble.members}
    assert len(means) == 3  # starts of their own


def test_likelihoods_of_the_rows_fitted_do_not_mislead():
    # thirty rows in twenty dimensions: the likeliest full covariance is worthless on new rows
    both = rows(430, 20)
    X, fresh = both[:30], both[30:]
    _, ensemble = chosen(X)
    likeliest = GaussianMixture(1, covariance_type="full", reg_covar=1e-6).fit(X)
    assert likeliest.score(X) > ensemble.score_samples(X).mean()
    assert ensemble.score_samples(fresh).mean() > likeliest.score(fresh) + 10.0


def test_many_components_where_few_do_not_help():
    # two spheres, one inside the other: two or four Gaussians are no better than one
    random = random_state()
    X = random.standard_normal((2000, 3))
    X *= random.choice([0.5, 1.5], 2000)[:, None] / np.linalg.norm(X, axis=1, keepdims=True)
    X += 0.05 * random.standard_normal(X.shape)
    assert choose_mixture(X, random_state()).n_components > 10


def test_little_is_lost_against_the_right_family():
    both = rows(4400, 3)
    X, fresh = both[:400], both[400:]
    choice, ensemble = chosen(X)
    assert ensemble.score_samples(fresh).mean() > GaussianMixture(1).fit(X).score(fresh) - 0.05
    assert choice.wide_weight < 0.1


@pytest.mark.parametrize("n_samples", [2, 4, 9])
def test_few_rows_get_one_component(n_samples):
    choice = choose_mixture(rows(n_samples, 2), random_state())
    assert (choice.n_components, choice.n_members) == (1, 1)


@pytest.mark.parametrize("n_features", [2, 40])
def test_ensembles_stay_within_their_budget(n_features):
    X = np.concatenate([ring(2000), np.zeros((2000, n_features - 2))], 1)
    X += 0.05 * random_state(1).standard_normal(X.shape)
    choice = choose_mixture(X, random_state())
    per_component = n_features * (2 if choice.covariance_type == "diag" else 1 + n_features)
    assert choice.n_members * choice.n_components <= 1000
    assert choice.n_members * choice.n_components * per_component <= 120_000
    assert choice.n_members > 1


def test_the_weight_of_the_wide_component_is_the_likeliest():
    # a fifth of the rows from a Gaussian four times as wide
    random = random_state()
    x = random.standard_normal(5000) * np.where(random.uniform(size=5000) < 0.2, 4.0, 1.0)
    main, wide = norm(scale=1.0).logpdf(x), norm(scale=4.0).logpdf(x)
    weight = fitted_wide_weight(main, wide)

    def loss(w):
        return -np.logaddexp(np.log1p(-w) + main, np.log(w) + wide).mean()

    best = minimize_scalar(loss, bounds=(0.01, 0.3), method="bounded", options={"xatol": 1e-6}).x
    assert weight == pytest.approx(best, abs=1e-4)
    # far tails keep a floor, and heavy ones a ceiling
    assert fitted_wide_weight(main, main - 50.0) == pytest.approx(0.001)
    assert fitted_wide_weight(main, main + 50.0) == pytest.approx(0.3)


def test_heavy_tails_raise_the_weight_of_the_wide_component():
    tails = random_state().standard_t(2.0, size=(400, 2))
    tails /= tails.std(axis=0)
    light = choose_mixture(rows(400, 2), random_state())
    heavy = choose_mixture(tails, random_state())
    assert light.wide_weight < heavy.wide_weight
