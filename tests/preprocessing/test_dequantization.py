"""Rounded, repeated and extreme values: found, warned of, and given scores that mean something."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from sklvebm import (
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
    dequantize,
    resolution,
)
from sklvebm.baselines import VAE
from sklvebm.preprocessing import value_steps
from sklvebm.preprocessing.dequantization import warn_of_repeated_rows, warn_of_unbounded_density
from sklvebm.preprocessing.scaling import fit_standardisation
from sklvebm.row_weights import distinct_rows


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_resolution_finds_the_step_of_rounded_columns_only():
    X = normal(500, 4)
    X[:, 1] = np.round(X[:, 1], 1)
    X[:, 2] = 0.25 * np.round(4.0 * X[:, 2]) + 1000.0
    X[:, 3] = 7.0
    np.testing.assert_allclose(resolution(X), [0.0, 0.1, 0.25, 0.0], atol=1e-9)


def test_resolution_of_iris_is_a_millimetre():
    np.testing.assert_allclose(resolution(load_iris().data), 0.1)


def cents():
    return np.round(np.random.default_rng(0).lognormal(3.0, 1.0, 6000), 2)


def with_first(column, *values):
    column = np.array(column)
    column[: len(values)] = values
    return column


def integers(high, n=5000):
    return np.random.default_rng(0).integers(0, high, n)


def prices(level):
    return np.round(level + normal(2000), 1)


TENTHS = np.arange(-1.0, 1.05, 0.1)  # of two computations: the middle is -2e-16 and 0
DAYS = (18_000 + integers(1000)) * 86_400 * 10**9
STEPS = {
    "normal": (lambda: normal(500), 0.0),
    "one far value": (lambda: with_first(normal(500), 1e10), 0.0),
    "the largest numbers": (lambda: with_first(normal(500), 1.797e308, -1.797e308), 0.0),
    "half of the values far": (lambda: np.r_[normal(250), 1e10 * normal(250)], 0.0),
    "half of them rounded": (lambda: np.r_[np.round(normal(250), 1), 1e10 * normal(250)], 0.1),
    "microseconds": (lambda: 1.7e9 + 3600.0 * np.random.default_rng(0).uniform(size=5000), 0.0),
    "rounded microseconds": (lambda: np.round(1.7e9 + 1e-6 * integers(10_000), 6), 0.0),
    "two bursts": (
        lambda: 1.7e9 + np.r_[integers(100, 50), integers(100, 50) + 864e8] / 1e3,
        0.001,
    ),
    "normal, far from zero": (lambda: 1e15 + normal(500), 0.0),
    "integers, far from zero": (lambda: 1e15 + integers(9), 1.0),
    "cents": (cents, 0.01),
    "cents and a large amount": (lambda: with_first(cents(), 92445516.64), 0.01),
    "cents and huge ones": (lambda: with_first(cents(), 1e15, 1e17, 1e17 + 16.0, 1e300), 0.01),
    "single precision": (lambda: normal(500).astype(np.float32), 0.0),
    "a million in single precision": (lambda: normal(10**6).astype(np.float32), 0.0),
    "cents in single precision": (lambda: cents().astype(np.float32), 0.01),
    "cents that were": (lambda: with_first(cents(), 92445516.64).astype(np.float32) * 1.0, 0.01),
    "cents kept in double": (lambda: cents().astype(np.float32).astype(float), 0.01),
    "seven digits in single precision": (lambda: np.float32(1e7) + integers(99), 1.0),
    "products in single precision": (lambda: np.float32(0.1) * integers(99).astype("f4"), 0.1),
    "days in nanoseconds": (lambda: DAYS, 864e11),
    "days and the year 9999": (lambda: with_first(DAYS.astype(float), 2.534e20), 864e11),
    "milliseconds in nanoseconds": (lambda: 17 * 10**17 + integers(2000) * 10**6, 1e6),
    "differences of prices": (lambda: np.diff(prices(100.0)), 0.1),
    "differences of high prices": (lambda: np.diff(prices(10_000.0)), 0.1),
    "two ways to zero": (lambda: np.r_[TENTHS, np.round(TENTHS, 1), TENTHS], 0.1),
    "quarters of millions": (lambda: 1e6 + 0.25 * integers(50), 0.25),
    "binary": (lambda: integers(2), 1.0),
    "one value, computed twice": (lambda: np.where(normal(50) > 0.0, 0.3, 0.1 + 0.2), 0.0),
    "tiny": (lambda: 1e-300 * np.round(normal(500), 1), 1e-301),
    "huge": (lambda: 1e200 * np.round(normal(500), 1), 1e199),
}


@pytest.mark.parametrize("kind", STEPS)
def test_the_step_follows_the_rounding_of_each_value(kind):
    column, step = STEPS[kind]
    X = column()[:, None]
    with np.errstate(all="raise"):
        found = resolution(X)
    np.testing.assert_allclose(found, [step], rtol=1e-6)
    if step == 0.0:
        np.testing.assert_array_equal(dequantize(X, random_state=0), X)


@pytest.mark.parametrize("make", [ParticleLVEBM, WassersteinFlowEBM, PotentialFlowEBM, VAE])
def test_far_values_are_named_as_such(make):
    X = normal(200, 2)
    X[0, 0] = 1e10
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(max_iter=1, random_state=0).fit(X)
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(messages) == 1
    assert messages[0].startswith("Row 0 of column 0 is 1e10 scales from the others.")


def test_many_far_values_are_counted():
    X = normal(200, 5)
    X[:10] = 1e20
    with pytest.warns(UserWarning, match="Rows 0, 1, 2 and 7 more of column 0 are 1e20") as caught:
        fit_standardisation(X)
    assert "2 more columns" in str(caught[0].message)


def test_far_values_of_a_column_that_is_mostly_zero_do_not_set_its_scale():
    X = np.where(normal(200, 1, seed=1) > 0.0, normal(200, 1), 0.0)
    X[:120] = 0.0
    expected = fit_standardisation(X).scale
    X[150] = 1e10
    with pytest.warns(UserWarning, match="Row 150 of column 0"):
        standardisation = fit_standardisation(X)
    assert standardisation.scale < 10.0 * expected


@pytest.mark.parametrize("power", [-300, -200, -100, 0, 100])
def test_any_size_has_a_scale(power):
    X = normal(200, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        standardisation = fit_standardisation(X * 10.0**power)
    expected = fit_standardisation(X).scale * 10.0**power
    np.testing.assert_allclose(standardisation.scale, expected, rtol=1e-9, atol=0.0)


def test_a_column_is_constant_up_to_roundings_of_its_values():
    X = np.column_stack([1e15 + normal(50), np.where(normal(50) > 0.0, 0.3, 0.1 + 0.2)])
    with pytest.warns(UserWarning, match=r"Columns \[1\] of X are constant"):
        fit_standardisation(X)


def test_dequantize_adds_noise_of_one_step():
    X = np.round(normal(4000, 2), 1)
    X[:, 1] = normal(4000, seed=1)
    noise = dequantize(X, random_state=0) - X
    assert np.array_equal(noise[:, 1], np.zeros(4000))
    assert np.abs(noise[:, 0]).max() <= 0.05
    # variance of a uniform law, five standard errors (kurtosis 1.8)
    expected = 0.1**2 / 12.0
    assert abs(noise[:, 0].var() - expected) < 5.0 * expected * np.sqrt(0.8 / 4000)


def test_dequantize_repeats_with_a_seed_and_takes_given_steps():
    X = np.round(normal(50, 2), 1)
    np.testing.assert_array_equal(dequantize(X, random_state=3), dequantize(X, random_state=3))
    assert not np.array_equal(dequantize(X, random_state=3), dequantize(X, random_state=4))
    wide = dequantize(X, step=[0.0, 2.0], random_state=0) - X
    assert np.array_equal(wide[:, 0], np.zeros(50))
    assert 0.5 < np.abs(wide[:, 1]).max() <= 1.0


@pytest.mark.parametrize("step", [-1.0, np.nan, [0.1, 0.1, 0.1], "automatic", [np.inf, 1.0]])
def test_dequantize_names_a_bad_step(step):
    with pytest.raises(ValueError, match="step must be"):
        dequantize(normal(5, 2), step=step)


def warnings_of(X, **mixture):
    fitted = GaussianMixture(random_state=0, **mixture).fit(X)
    covariances = np.array([np.diag(v) if v.ndim == 1 else v for v in fitted.covariances_])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unbounded_density(
            X, fitted.weights_, covariances, np.arange(len(covariances)), fitted.reg_covar
        )
    return [str(w.message) for w in caught]


def test_narrow_peaks_on_rounded_values_are_named():
    X = np.column_stack([normal(600), np.repeat([-1.0, 0.0, 1.0], 200)])
    (message,) = warnings_of(X, n_components=3, covariance_type="diag")
    assert "Columns [1]" in message
    assert "dequantize" in message
    # one broad component does not see the steps, and noise removes them
    assert warnings_of(X, n_components=1) == []
    assert warnings_of(dequantize(X, random_state=0), n_components=3, covariance_type="diag") == []


def test_dependent_columns_and_point_masses_are_named():
    X = normal(300, 2)
    assert warnings_of(X, n_components=2) == []
    (message,) = warnings_of(np.column_stack([X, X.sum(1)]), n_components=1)
    assert "depend on each other" in message
    atom = np.concatenate([X, np.full((10, 2), 30.0)])
    (message,) = warnings_of(atom, n_components=2)
    assert "around a point" in message


def test_repeated_rows_are_counted():
    X = normal(100, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_repeated_rows(distinct_rows(X, None).repeated_share)
    with pytest.warns(UserWarning, match="50 % of the rows"):
        warn_of_repeated_rows(distinct_rows(np.concatenate([X, X]), None).repeated_share)


def test_raw_digits_warn_and_noise_calms():
    X = load_digits().data[:300]
    with pytest.warns(UserWarning, match=r"Columns \[.*few distinct values"):
        ParticleLVEBM(2, max_iter=0, random_state=0).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        noisy = dequantize(X, step=1.0, random_state=0)
        ParticleLVEBM(2, max_iter=0, random_state=0).fit(noisy)


# Data as they are --------------------------------------------------------------------------------


def with_outlier():
    X = normal(300, 2)
    X[7] = 1e6
    return X


DATA = {
    "outlier": with_outlier,
    "heavy tails": lambda: np.random.default_rng(0).standard_t(1.5, size=(400, 3)),
    "fewer rows than columns": lambda: normal(30, 50) @ (0.2 * normal(50, 50, seed=1)),
    "twenty rows": lambda: normal(20, 3),
    "tiny and huge columns": lambda: normal(300, 2) * [1e-9, 1e9] + [1.0, 1e12],
    "rounded": lambda: np.round(normal(300, 2), 1),
    "repeated rows": lambda: np.repeat(normal(60, 2), 5, axis=0),
    "constant column": lambda: np.column_stack([normal(200, 2), np.ones(200)]),
}
FRESH = {  # independent rows of the same laws
    "outlier": lambda: normal(500, 2, seed=5),
    "heavy tails": lambda: np.random.default_rng(5).standard_t(1.5, size=(500, 3)),
    "fewer rows than columns": lambda: normal(500, 50, seed=5) @ (0.2 * normal(50, 50, seed=1)),
    "twenty rows": lambda: normal(500, 3, seed=5),
    "tiny and huge columns": lambda: normal(500, 2, seed=5) * [1e-9, 1e9] + [1.0, 1e12],
}


def true_log_density(name, X):
    """Return the log density that the rows were drawn from, (n_samples,), nats."""
    if name == "heavy tails":
        return student(1.5).logpdf(X).sum(axis=1)
    if name == "fewer rows than columns":
        mixing = 0.2 * normal(50, 50, seed=1)
        white = X @ np.linalg.inv(mixing)
        return norm.logpdf(white).sum(axis=1) - np.linalg.slogdet(mixing)[1]
    if name == "tiny and huge columns":
        return norm([1.0, 1e12], [1e-9, 1e9]).logpdf(X).sum(axis=1)
    return norm.logpdf(X).sum(axis=1)


@pytest.fixture(scope="module", params=DATA)
def odd(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        X = DATA[request.param]()
        return request.param, X, ParticleLVEBM(2, max_iter=20, random_state=0).fit(X)


def test_odd_data_give_finite_answers(odd):
    _, X, model = odd
    assert np.isfinite(model.score_samples(X)).all()
    assert np.isfinite(model.transform(X)).all()
    assert np.isfinite(model.sample(50, random_state=0)).all()


def test_odd_data_give_densities_that_mean_something(odd):
    """On fresh rows the loss against the true density is what so few rows must cost."""
    name, X, model = odd
    if name not in FRESH:
        return
    fresh = FRESH[name]()
    loss = true_log_density(name, fresh) - model.score_samples(fresh)
    n_samples, n_features = X.shape
    if name == "heavy tails":
        # Gaussian tails lose hundreds of nats far out, where half of the rows are not
        assert -0.5 < np.median(loss) < 1.0
        return
    error = loss.std() / np.sqrt(len(loss))
    assert loss.mean() > -4.0 * error  # relative entropy is not negative
    if n_samples < n_features:
        diagonal = GaussianMixture(1, covariance_type="diag").fit(X)
        assert model.score(fresh) > diagonal.score(fresh)
        return
    # a fitted Gaussian costs half a nat per parameter and row on average; three times that
    n_parameters = n_features * (n_features + 3) / 2
    assert loss.mean() < 1.5 * n_parameters / n_samples + 4.0 * error


def test_a_single_outlier_keeps_its_place():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = ParticleLVEBM(2, max_iter=5, random_state=0).fit(with_outlier())
    # it does not set the units of the others
    assert np.all(model.scale_ < 10.0)
    scores = model.score_samples(np.array([[0.0, 0.0], [1e5, 1e5]]))
    assert scores[0] > scores[1] + 10.0


@pytest.mark.parametrize("kind", ["continuous", "rounded", "sums", "single", "around zero", "ties"])
def test_values_that_are_apart_need_no_comparison(kind, monkeypatch):
    """The shortcut for columns without ties changes no step."""
    random = np.random.default_rng(0)
    x = {
        "continuous": random.normal(size=60),
        "rounded": random.normal(size=60).round(1),
        "sums": np.repeat(random.normal(size=20).round(1), 3) + np.tile([0.0, 0.1, 0.2], 20),
        "single": random.normal(size=60).astype(np.float32).astype(np.float64),
        "around zero": np.append(random.normal(size=40), [1e-17, -1e-17, 3e-18]),
        "ties": np.repeat(random.normal(size=30), 2) * np.tile([1.0, 1.0 + 1e-15], 30),
    }[kind]
    assert value_steps._are_apart(x, 0.0) == (kind == "continuous")
    found = value_steps.step_of(x)
    monkeypatch.setattr(value_steps, "_are_apart", lambda column, least: False)
    assert found == value_steps.step_of(x)
