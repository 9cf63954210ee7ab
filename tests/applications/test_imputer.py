"""`ParticleImputer`: closed forms of Gaussian tables, the contract of scikit-learn's imputers."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import MixtureStack, ParticleImputer, ParticleLVEBM

N_ROWS, N_COLUMNS = 4000, 3
MEAN = np.array([10.0, -2.0, 0.5])
ROOT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-0.3, 0.2, 0.1]])
COVARIANCE = ROOT @ ROOT.T
GAUSSIAN = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
STRATEGIES = ("mean", "median", "sample")


def conditional(row):
    """Return mean and covariance of the missing cells of a Gaussian row, in closed form."""
    hidden = np.isnan(row)
    gain = np.linalg.solve(
        COVARIANCE[np.ix_(~hidden, ~hidden)], COVARIANCE[np.ix_(~hidden, hidden)]
    )
    mean = MEAN[hidden] + (row[~hidden] - MEAN[~hidden]) @ gain
    return mean, COVARIANCE[np.ix_(hidden, hidden)] - COVARIANCE[np.ix_(hidden, ~hidden)] @ gain


def with_holes(X, share, seed):
    holes = np.random.default_rng(seed).random(X.shape) < share
    return np.where(holes, np.nan, X)


@pytest.fixture(scope="module")
def table():
    X = MEAN + np.random.default_rng(0).normal(size=(N_ROWS, N_COLUMNS)) @ ROOT.T
    X = with_holes(X, 0.2, seed=1)
    X.flags.writeable = False
    return X


@pytest.fixture(scope="module")
def imputer(table):
    return ParticleImputer(GAUSSIAN, random_state=0).fit(table)


def asked(imputer, strategy, seed=0):
    """Return a copy of a fitted imputer, with another strategy."""
    return pickle.loads(pickle.dumps(imputer)).set_params(strategy=strategy, random_state=seed)


@pytest.mark.parametrize("strategy", ["mean", "median"])
def test_means_and_medians_are_those_of_the_gaussian(imputer, strategy):
    X = MEAN + np.random.default_rng(2).normal(size=(300, N_COLUMNS)) @ ROOT.T
    X = with_holes(X, 0.4, seed=3)
    filled = asked(imputer, strategy).transform(X)
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])
    deviations = []
    for row, full in zip(X, filled, strict=True):
        if np.isnan(row).any():
            mean, covariance = conditional(row)
            deviations.extend((full[np.isnan(row)] - mean) / np.sqrt(np.diag(covariance)))
    # a regression on p columns has the error sigma sqrt((p + 1) / n); about half of the rows
    # inform a coefficient
    standard_error = np.sqrt((N_COLUMNS + 1) / (0.5 * N_ROWS))
    assert np.sqrt(np.mean(np.square(deviations))) < 3.0 * standard_error


def test_draws_have_the_covariance_of_the_gaussian(imputer):
    row, n_draws = np.array([12.0, np.nan, np.nan]), 4000
    drawn = asked(imputer, "sample").transform(np.tile(row, (n_draws, 1)))
    mean, covariance = conditional(row)
    root = np.linalg.cholesky(covariance)
    standard = np.linalg.solve(root, (drawn[:, 1:] - mean).T)
    # the errors of the draws and of the fitted coefficients, four sigmas of both
    error = 4.0 * np.sqrt(1.0 / n_draws + (N_COLUMNS + 1) / (0.5 * N_ROWS))
    assert np.abs(standard.mean(1)).max() < error
    assert np.abs(np.cov(standard) - np.eye(2)).max() < np.sqrt(2.0) * error


def test_seeds_give_multiple_imputations_of_one_fit(imputer, table):
    first = asked(imputer, "sample", 0).transform(table)
    np.testing.assert_array_equal(first, asked(imputer, "sample", 0).transform(table))
    holes = np.isnan(table)
    other = asked(imputer, "sample", 1).transform(table)
    assert (first[holes] != other[holes]).mean() > 0.99
    np.testing.assert_array_equal(first[~holes], other[~holes])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_complete_rows_are_returned_unchanged(imputer, strategy):
    X = np.random.default_rng(0).normal(size=(5, N_COLUMNS))
    given = X.copy()
    filled = asked(imputer, strategy).transform(X)
    np.testing.assert_array_equal(filled, given)
    filled[:] = 0.0
    np.testing.assert_array_equal(X, given)


def test_rows_are_filled_independently_of_each_other(imputer, table):
    whole = imputer.transform(table[:50])
    single = np.concatenate([imputer.transform(row[None]) for row in table[:50]])
    np.testing.assert_allclose(whole, single, rtol=1e-10)


def test_a_row_without_observed_cells_gets_the_means(imputer):
    filled = imputer.transform(np.full((1, N_COLUMNS), np.nan))[0]
    error = np.sqrt(np.diag(COVARIANCE) / (0.8 * N_ROWS))
    assert (np.abs(filled - MEAN) < 4.0 * error).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_dtype_is_kept(imputer, table, dtype, strategy):
    assert asked(imputer, strategy).transform(table[:5].astype(dtype)).dtype == dtype


# Columns, names, frames ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame(table):
    X = pd.DataFrame(table[:200], columns=["a", "b", "c"], index=np.arange(200) + 7)
    X.insert(1, "empty", np.nan)
    X["full"] = np.arange(200.0)
    return X


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("indicator", [False, True])
def test_columns_and_names_are_those_of_scikit_learn(frame, keep, indicator):
    options = {"keep_empty_features": keep, "add_indicator": indicator}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = ParticleImputer(GAUSSIAN, **options).set_output(transform="pandas")
        theirs = SimpleImputer(**options).set_output(transform="pandas")
        filled, expected = ours.fit_transform(frame), theirs.fit_transform(frame)
    assert list(filled.columns) == list(expected.columns) == list(ours.get_feature_names_out())
    assert filled.index.equals(frame.index)
    assert not filled.isna().any(axis=None)
    same = [name for name in filled if "indicator" in name or name in ("empty", "full")]
    np.testing.assert_array_equal(filled[same].astype(float), expected[same].astype(float))


def test_empty_columns_are_named_in_a_warning(frame):
    with pytest.warns(UserWarning, match=r"Columns \['empty'\].*keep_empty_features"):
        ParticleImputer(GAUSSIAN).fit(frame)


def test_an_observed_cell_of_an_empty_column_is_kept():
    X = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan]])
    imputer = ParticleImputer(GAUSSIAN, keep_empty_features=True).fit(X)
    filled = imputer.transform([[3.0, 5.0], [3.0, np.nan]])
    np.testing.assert_array_equal(filled, [[3.0, 5.0], [3.0, 0.0]])


def test_names_of_columns_are_checked(frame):
    imputer = ParticleImputer(GAUSSIAN, keep_empty_features=True).fit(frame)
    with pytest.raises(ValueError, match="not equal to feature_names_in_"):
        imputer.get_feature_names_out(["x", "y", "z", "u", "v"])
    plain = ParticleImputer(GAUSSIAN, keep_empty_features=True).fit(frame.to_numpy())
    assert list(plain.get_feature_names_out()) == ["x0", "x1", "x2", "x3", "x4"]
    with pytest.raises(ValueError, match=r"\(5\), got 1"):
        plain.get_feature_names_out(["x"])


def test_another_marker_of_missing_cells(table):
    marked = np.where(np.isnan(table[:200]), -999.0, table[:200])
    ours = ParticleImputer(GAUSSIAN, missing_values=-999.0).fit(marked)
    expected = ParticleImputer(GAUSSIAN).fit_transform(table[:200])
    np.testing.assert_array_equal(ours.transform(marked), expected)
    assert not ours.__sklearn_tags__().input_tags.allow_nan
    with pytest.raises(ValueError, match="NaN"):
        ours.transform(table[:200])


# Around the estimator -----------------------------------------------------------------------------


def test_the_default_is_a_stack_with_the_seed_of_the_imputer(moons):
    X = with_holes(moons[:60], 0.1, seed=0)
    imputers = [ParticleImputer(random_state=seed).fit(X) for seed in (0, 0)]
    assert type(imputers[0].estimator_) is MixtureStack
    np.testing.assert_array_equal(*[imputer.transform(X) for imputer in imputers])
    assert imputers[0].estimator is None


def test_the_seed_of_the_estimator_is_kept(imputer):
    assert imputer.estimator_.random_state == 0
    assert GAUSSIAN.random_state == 0
    assert not hasattr(GAUSSIAN, "members_")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_energy_fills_cells(small, moons, strategy):
    X = with_holes(moons[:60], 0.2, seed=0)
    assert isinstance(small(), ParticleLVEBM)
    filled = ParticleImputer(small(), strategy=strategy, random_state=0).fit_transform(X)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])


def test_it_works_in_pipelines_and_searches(table):
    X, y = table[:300, :2], np.nan_to_num(table[:300, 0])
    pipeline = make_pipeline(StandardScaler(), ParticleImputer(GAUSSIAN), LinearRegression())
    grid = {
        "particleimputer__strategy": ["mean", "median"],
        "particleimputer__estimator__covariance_types": [["full"], ["diag"]],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    columns = make_column_transformer(
        (ParticleImputer(GAUSSIAN), [0, 1]), (SimpleImputer(), [2]), remainder="drop"
    )
    assert not np.isnan(columns.fit_transform(table[:300])).any()


def test_the_global_output_of_scikit_learn_is_followed(table):
    with config_context(transform_output="pandas"):
        filled = ParticleImputer(GAUSSIAN, add_indicator=True).fit_transform(table[:100])
    assert list(filled.columns)[-3:] == [f"missingindicator_x{i}" for i in range(3)]


def test_pickles_and_clones(imputer, table):
    stored = pickle.loads(pickle.dumps(imputer))
    np.testing.assert_array_equal(stored.transform(table[:9]), imputer.transform(table[:9]))
    assert not hasattr(clone(imputer), "estimator_")


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        ({"strategy": "mode"}, ValueError, "strategy must be one of 'mean'.*'mode'"),
        ({"strategy": 1}, TypeError, "strategy must be one of.*1 of type int"),
        ({"add_indicator": 1}, TypeError, "add_indicator must be True or False, got 1"),
        ({"keep_empty_features": "no"}, TypeError, "keep_empty_features must be .*'no'"),
        ({"random_state": -1}, ValueError, "random_state must be .*-1"),
        ({"missing_values": "NA"}, TypeError, "missing_values must be .*'NA'"),
        ({"missing_values": np.inf}, TypeError, "missing_values must be .*inf"),
        ({"estimator": GaussianMixture()}, TypeError, "GaussianMixture has no conditional_mean"),
    ],
)
def test_wrong_parameters_are_named(table, parameters, kind, message):
    with pytest.raises(kind, match=message):
        ParticleImputer(**parameters).fit(table[:20])


def test_wrong_rows_are_refused(imputer):
    with pytest.raises(ValueError, match="infinity"):
        imputer.transform([[np.inf, 0.0, 0.0]])
    with pytest.raises(ValueError, match="2 features"):
        imputer.transform([[0.0, 0.0]])
    with pytest.raises(ValueError, match="all cells are missing"):
        ParticleImputer().fit(np.full((3, 2), np.nan))
    with pytest.raises(NotFittedError):
        ParticleImputer().transform([[0.0]])


def test_a_failed_fit_changes_nothing(imputer, table):
    again = asked(imputer, "mean")
    with pytest.raises(ValueError, match="infinity"):
        again.fit(np.full((5, 2), np.inf))
    np.testing.assert_array_equal(again.transform(table[:5]), imputer.transform(table[:5]))
