"""The mixture that cross-validation chooses, and ensembles of mixtures."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, norm
from sklearn.mixture import GaussianMixture

from sklvebm.datasets import make_concentric_shells
from sklvebm.mixtures import choice, stacking
from sklvebm.mixtures.choice import choose_mixture
from sklvebm.mixtures.search import (
    TAIL_SHARES,
    Candidate,
    HeldOutLosses,
    column_scales,
    log_defensive_components,
    one_fold,
    plain_arrays_on_one_thread,
)
from sklvebm.mixtures.stacking import (
    MixtureChoice,
    MixtureEnsemble,
    MixturePart,
    fit_ensemble,
    fitted_defensive_shares,
    fitted_defensive_weight,
    likeliest_weights,
)
from sklvebm.preprocessing.scaling import without_outliers
from sklvebm.preprocessing.splitting import repeats_together


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


def n_members(choice):
    return sum(part.n_members for part in choice.parts)


def chosen(X):
    choice = choose_mixture(X, random_state())
    return choice, fit_ensemble(X, choice, random_state())


def test_well_separated_clusters_are_counted():
    X, centres = clusters()
    choice, ensemble = chosen(X)
    assert [part.candidate.n_components for part in choice.parts] == [4]
    for mixture in ensemble.members:
        nearest = np.linalg.norm(mixture.means[:, None] - centres[None], axis=2).argmin(axis=1)
        assert sorted(nearest) == [0, 1, 2, 3]
        for mean, k in zip(mixture.means, nearest, strict=True):
            # five standard errors of the mean of 120 unit normals
            assert np.abs(mean - centres[k]).max() < 5.0 / np.sqrt(120)


def test_one_member_where_all_starts_lead_to_the_same_fit():
    choice, ensemble = chosen(rows(400, 3))
    assert (n_members(choice), len(ensemble.members)) == (1, 1)


def test_an_ensemble_beats_the_mean_of_its_members_on_curved_data():
    X, fresh = ring(600), ring(20_000, seed=1)
    choice, ensemble = chosen(X)
    assert n_members(choice) > 4
    own = np.array([member.score_samples(fresh) for member in ensemble.members])
    # the mean density is above the geometric mean of the densities at every row
    gain = ensemble.score_samples(fresh) - ensemble.weights @ own
    assert gain.min() >= 0.0
    # and what was chosen is better than the best single mixture by BIC, by four standard errors
    singles = [GaussianMixture(k, random_state=0).fit(X) for k in range(1, 30)]
    best = min(singles, key=lambda mixture: mixture.bic(X))
    difference = ensemble.score_samples(fresh) - best.score_samples(fresh)
    assert difference.mean() > 4.0 * difference.std() / np.sqrt(len(fresh))


def test_an_ensemble_is_a_density():
    X = ring(300)
    parts = (
        MixturePart(Candidate(5, "full", 1e-3), n_members=3, weight=0.75),
        MixturePart(Candidate(8, "diag", 1e-3), n_members=1, weight=0.25),
    )
    choice = MixtureChoice(parts, defensive_weight=0.01)
    ensemble = fit_ensemble(X, choice, random_state())
    axis = np.linspace(-3.0, 3.0, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(ensemble.score_samples(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-4)
    assert isinstance(ensemble, MixtureEnsemble)
    np.testing.assert_allclose(ensemble.weights, 0.25)
    means = {member.means.tobytes() for member in ensemble.members}
    assert len(means) == 4  # starts of their own


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
    choice = choose_mixture(X, random_state())
    assert max(choice.parts, key=lambda part: part.weight).candidate.n_components > 10


def test_little_is_lost_against_the_right_family():
    # cross-validation is lucky with something too fine now and then: five draws
    losses, weights = [], []
    for seed in range(5):
        both = rows(4400, 3, seed)
        X, fresh = both[:400], both[400:]
        choice, ensemble = chosen(X)
        losses.append(GaussianMixture(1).fit(X).score(fresh) - ensemble.score_samples(fresh).mean())
        weights.append(choice.defensive_weight)
    assert np.median(losses) < 0.01
    assert max(losses) < 0.1
    assert max(weights) < 0.1


@pytest.mark.parametrize("n_samples", [2, 4, 9])
def test_few_rows_get_one_component(n_samples):
    choice = choose_mixture(rows(n_samples, 2), random_state())
    assert [(part.candidate.n_components, part.n_members) for part in choice.parts] == [(1, 1)]


@pytest.mark.parametrize("n_features", [2, 40])
def test_ensembles_stay_within_their_budget(n_features):
    X = np.concatenate([ring(2000), np.zeros((2000, n_features - 2))], 1)
    X += 0.05 * random_state(1).standard_normal(X.shape)
    choice = choose_mixture(X, random_state())
    parts = choice.parts
    is_diagonal = {part.candidate.covariance_type for part in parts} == {"diag"}
    per_component = n_features * (2 if is_diagonal else 1 + n_features)
    n_components = sum(part.n_members * part.candidate.n_components for part in parts)
    # two members of each kind at least, whatever the budget says
    slack = 2 * sum(part.candidate.n_components for part in parts)
    assert n_components <= 1000 + slack
    assert n_components * per_component <= 120_000 + slack * per_component
    assert n_members(choice) > 1


def test_different_kinds_share_a_density_that_neither_has():
    # half of the rows around a ring, half in one stretched cloud of another place
    def draw(n, seed):
        cloud = random_state(seed + 10).standard_normal((n, 2)) @ [[1.0, 0.9], [0.0, 0.3]]
        return random_state(seed).permutation(np.concatenate([ring(n, seed), cloud + 4.0]))

    X, fresh = draw(200, 0), draw(5000, 1)
    choice, ensemble = chosen(X)
    assert sum(part.weight for part in choice.parts) == pytest.approx(1.0)
    # no member is as good as all of them
    scores = [member.score_samples(fresh).mean() for member in ensemble.members]
    assert ensemble.score_samples(fresh).mean() > max(scores)


def test_likeliest_weights_are_those_of_the_draws():
    # a known mixture of three known densities: 0.6, 0.3, 0.1
    random = random_state()
    centres = np.array([-2.0, 0.0, 3.0])
    x = centres[random.choice(3, 20_000, p=[0.6, 0.3, 0.1])] + random.standard_normal(20_000)
    weights = likeliest_weights(norm(centres, 1.0).logpdf(x[:, None]))
    # five standard errors of a share of 20,000 rows, twice that for the overlap
    np.testing.assert_allclose(weights, [0.6, 0.3, 0.1], atol=10.0 * 0.5 / np.sqrt(20_000))
    assert weights.sum() == pytest.approx(1.0)


def test_the_weight_of_the_wide_component_is_the_likeliest():
    # a fifth of the rows from a Gaussian four times as wide
    random = random_state()
    x = random.standard_normal(5000) * np.where(random.uniform(size=5000) < 0.2, 4.0, 1.0)
    main, wide = norm(scale=1.0).logpdf(x), norm(scale=4.0).logpdf(x)
    weight = fitted_defensive_weight(main, wide)

    def loss(w):
        return -np.logaddexp(np.log1p(-w) + main, np.log(w) + wide).mean()

    best = minimize_scalar(loss, bounds=(0.01, 0.3), method="bounded", options={"xatol": 1e-6}).x
    assert weight == pytest.approx(best, abs=1e-4)
    # far tails keep a quarter of a row, and heavy ones a ceiling
    assert fitted_defensive_weight(main, main - 50.0) == pytest.approx(0.25 / 5000)
    assert fitted_defensive_weight(main, main + 50.0) == pytest.approx(0.3)


def test_heavy_tails_raise_the_weight_of_the_wide_component():
    tails = random_state().standard_t(2.0, size=(400, 2))
    tails /= tails.std(axis=0)
    light = choose_mixture(rows(400, 2), random_state())
    heavy = choose_mixture(tails, random_state())
    assert light.defensive_weight < heavy.defensive_weight


def test_all_rows_are_asked_for_the_weight_of_the_wide_component():
    # one fold of 500 compares candidates; no row of any fold needs the defensive component here
    assert choose_mixture(rows(2000, 2), random_state()).defensive_weight == pytest.approx(
        0.25 / 2000
    )


def shrink_limits(monkeypatch, *, fitted, choosing, growing):
    """Make a few thousand rows many."""
    for module in (stacking, choice):
        monkeypatch.setattr(module, "MAX_FITTED_ROWS", fitted)
        monkeypatch.setattr(module, "MAX_SELECTION_ROWS", choosing)
    policy = dataclasses.replace(choice.DEFAULT_POLICY, min_growth_rows=growing)
    monkeypatch.setattr(choice, "DEFAULT_POLICY", policy)


def test_members_of_many_rows_see_all_of_them(monkeypatch):
    """Rows beyond the limit of a member are others' rows."""
    shrink_limits(monkeypatch, fitted=100, choosing=6000, growing=12_000)
    X = np.concatenate([np.zeros(150), np.ones(150)])[:, None]
    X += 1e-3 * random_state().standard_normal(X.shape)
    part = MixturePart(Candidate(2, "full", 1e-6), n_members=30, weight=1.0)
    members = fit_ensemble(X, MixtureChoice((part,), 0.01), random_state()).members
    shares = np.array([member.weights[member.means.ravel().argmin()] for member in members])
    # 100 of 300 rows without replacement; five standard errors of 30 such shares
    scatter = np.sqrt(0.25 / 100 * 2 / 3)
    assert shares.mean() == pytest.approx(0.5, abs=5.0 * scatter / np.sqrt(30))
    assert shares.std() == pytest.approx(scatter, rel=5.0 / np.sqrt(2 * 30))


def test_more_rows_bear_more_components(monkeypatch):
    X = make_concentric_shells(8000, random_state=0)
    fresh = make_concentric_shells(20_000, random_state=1)
    shrink_limits(monkeypatch, fitted=20_000, choosing=1000, growing=100_000)
    few = choose_mixture(X, random_state())
    shrink_limits(monkeypatch, fitted=20_000, choosing=1000, growing=2000)
    many = choose_mixture(X, random_state())
    counts = [max(part.candidate.n_components for part in c.parts) for c in (few, many)]
    assert counts[1] > counts[0]
    kinds = [{part.candidate.covariance_type for part in c.parts} for c in (few, many)]
    assert kinds[0] == kinds[1]
    fits = [fit_ensemble(X, choice, random_state()) for choice in (few, many)]
    gain = fits[1].score_samples(fresh) - fits[0].score_samples(fresh)
    # four standard errors
    assert gain.mean() > 4.0 * gain.std() / np.sqrt(len(fresh))


def test_components_grow_no_further_than_rows_want(monkeypatch):
    shrink_limits(monkeypatch, fitted=20_000, choosing=400, growing=800)
    choice = choose_mixture(rows(4000, 2), random_state())
    assert [part.candidate.n_components for part in choice.parts] == [1]
    X = random_state(1).permutation(clusters(1000)[0])
    assert [p.candidate.n_components for p in choose_mixture(X, random_state()).parts] == [4]


def test_components_that_other_rows_cannot_support_stay():
    X = np.repeat(random_state().standard_normal((12, 2)), 100, axis=0)
    fold = one_fold(X, X, random_state().permutation(len(X)), (1000, 1000))
    losses = HeldOutLosses([fold], 0, column_scales(X), stacking.DEFAULT_POLICY)
    shares = {Candidate(4, "full", 1e-3): 1.0}  # twelve distinct rows support two
    assert stacking.grown(losses, shares) == shares


def test_a_single_covariance_is_fitted_once():
    X = rows(200, 3)
    fold = one_fold(X, X, random_state().permutation(len(X)), (1000, 1000))
    losses = HeldOutLosses([fold], 0, column_scales(X), stacking.DEFAULT_POLICY)
    full, tied = (losses.log_density(Candidate(1, kind, 1e-3), 2) for kind in ("full", "tied"))
    np.testing.assert_array_equal(full, tied)
    assert len(losses._members) == 1
    covariance = np.cov(fold.train.T, bias=True) + 1e-3 * np.eye(3)
    truth = multivariate_normal(fold.train.mean(0), covariance).logpdf(fold.test)
    np.testing.assert_allclose(full, truth, rtol=1e-9)


def test_one_fold_holds_a_quarter_out_within_limits():
    X = np.arange(100.0)[:, None]
    fold = one_fold(X, X, np.arange(len(X)), (60, 1000))
    assert (len(fold.train), len(fold.test)) == (60, 25)
    assert not set(fold.train.ravel()) & set(fold.test.ravel())
    fold = one_fold(X, X, np.arange(len(X)), (1000, 10))
    assert (len(fold.train), len(fold.test)) == (90, 10)
    expected = norm(X[10:].mean(), 2.0 * X[10:].std()).logpdf(X[:10]).ravel()
    np.testing.assert_allclose(fold.wide[:, 0], expected, rtol=1e-6)


def test_the_unit_of_ridges_is_one_but_where_rows_are_of_two_sizes():
    random = np.random.RandomState(0)
    normal = random.standard_normal(600)
    both = np.concatenate([normal[:240], 1e4 * normal[240:]])
    whole = np.concatenate([np.round(normal[:240]), 1e4 * np.round(normal[240:])])
    X = np.stack([normal, both / both.std(), whole / both.std()], 1)
    scales = column_scales(X)
    assert scales.ridge_units[0] == 1.0
    small = 1.0 / both.std()
    # the densest tenth are a quarter of the small rows: 0.64 standard deviations wide, not 0.25
    assert 0.5 * small < scales.scale[1] < 3.0 * small
    assert abs(scales.centre[1]) < small
    assert scales.ridge_units[1] == pytest.approx((10.0 * scales.scale[1]) ** 2)
    # never finer than rounding: the floor is the variance of uniform noise of one step
    assert scales.ridge_units[2] == pytest.approx(1e6 * small**2 / 12.0)
    assert scales.ridge_units[2] > (10.0 * scales.scale[2]) ** 2
    # the start of a mixture sees the sizes of mixed columns beside the rows
    np.testing.assert_array_equal(scales.start_rows(X)[:, :3], X)
    assert scales.start_rows(X).shape == (600, 5)
    assert column_scales(X[:, :1]).start_rows(X[:, :1]) is not None


@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("ratio", [30.0, 1e4, 1e7])
def test_small_rows_beside_large_ones_lose_nothing_to_a_plain_mixture(share, ratio):
    losses = []
    for seed in range(3):
        random = np.random.RandomState(seed)
        n_small = int(600 * share)
        small, large = (random.standard_normal((n, 2)) for n in (n_small, 600 - n_small))
        X = np.concatenate([small, ratio * large])
        test = random.standard_normal((500, 2))
        scale = without_outliers(X).std(0)
        choice = choose_mixture(X / scale, random_state())
        ours = fit_ensemble(X / scale, choice, random_state()).score_samples(test / scale)
        theirs = GaussianMixture(2, n_init=3, random_state=0).fit(X).score_samples(test)
        losses.append((theirs - ours).mean() + np.log(scale).sum())
    # another family than the true one may be chosen, at the cost of some numbers more
    assert np.median(losses) < 0.04


def test_shares_of_the_tails_follow_rows_where_there_are_some_and_the_profile_beyond():
    random = np.random.RandomState(0)
    X = random.standard_t(1.5, size=(3000, 2))
    wide = log_defensive_components(X[:1000], X[1000:])
    main = norm.logpdf(X[1000:], 0.0, 1.0).sum(1)
    shares = np.array(fitted_defensive_shares(main, wide, 0.2))
    assert shares.sum() == pytest.approx(1.0)
    # heavier than the profile as far as there are rows, and as steep as it beyond
    assert shares[1] > 3.0 * TAIL_SHARES[1]
    np.testing.assert_allclose(shares[6:] / shares[6], TAIL_SHARES[6:] / TAIL_SHARES[6], rtol=1e-6)


def test_rows_that_repeat_each_other_are_neighbours():
    X = np.array([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [4.0, 5.0], [2.0, 3.0], [0.0, 1.0]])
    order = np.array([3, 0, 1, 2, 4, 5])
    assert repeats_together(X, order).tolist() == [3, 0, 2, 5, 1, 4]
    distinct = np.arange(12.0).reshape(6, 2)
    assert repeats_together(distinct, order) is order
