"""`MixtureStack`: an exact density, what it is made of, and the reference of energies."""

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import MixtureStack, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM, compose

TYPES = ("full", "tied", "diag")


@pytest.fixture(scope="module")
def rows():
    X, _ = make_moons(300, noise=0.1, random_state=0)
    X = X * [3.0, 0.01] + [100.0, 0.0]  # columns of different units
    X.flags.writeable = False
    return X


@pytest.fixture(scope="module")
def stack(rows):
    return MixtureStack(random_state=0).fit(rows)


def log_components(stack, X):
    """Return log densities under every weighted component, computed by SciPy, (N, K)."""
    columns = []
    for share, member in zip(stack.weights_, stack.members_, strict=True):
        covariances, of = member.covariance_matrices()
        for weight, mean, k in zip(member.weights, member.means, of, strict=True):
            density = multivariate_normal(mean, covariances[k])
            columns.append(np.log(share * weight) + density.logpdf(X))
    return np.stack(columns, 1)


def test_the_density_is_that_of_the_members_and_integrates_to_one(stack, rows):
    own = logsumexp(log_components(stack, rows), axis=1)
    scores = stack.score_samples(rows)
    # what the defensive components add is positive, and as small as their weight
    assert (scores >= own - 1e-9).all()
    assert 0.0 < stack.tail_weight_ < 0.05
    tails = np.exp(scores) - np.exp(own)
    assert tails.max() < stack.tail_weight_ * np.exp(own.max())
    assert stack.weights_.sum() + stack.tail_weight_ == pytest.approx(1.0)
    # quadrature over ten standard deviations; the tails beyond hold less than their weight
    sides = [
        np.linspace(m - 10 * s, m + 10 * s, 600)
        for m, s in zip(rows.mean(0), rows.std(0), strict=True)
    ]
    grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    cell = np.prod([side[1] - side[0] for side in sides])
    mass = np.exp(stack.score_samples(grid)).sum() * cell
    assert 1.0 - stack.tail_weight_ - 1e-3 < mass < 1.0 + 1e-3


def test_probabilities_are_the_shares_of_the_components(stack, rows):
    probabilities = stack.predict_proba(rows)
    assert probabilities.shape == (len(rows), stack.n_components_ + 1)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    expected = np.exp(log_components(stack, rows) - stack.score_samples(rows)[:, None])
    np.testing.assert_allclose(probabilities[:, :-1], expected, rtol=1e-6, atol=1e-12)


def test_draws_follow_the_density(stack):
    X = stack.sample(20_000, random_state=0)
    # moments of the members, with the defensive components left out of both sides
    main = X[np.abs((X - stack.mean_) / stack.scale_).max(1) < 6.0]
    mean = sum(w * m.weights @ m.means for w, m in zip(stack.weights_, stack.members_, strict=True))
    mean = mean / stack.weights_.sum()
    error = main.std(0) / np.sqrt(len(main))
    # five standard errors, and what tails of that weight within six scales can move the mean
    slack = 5.0 * error + 6.0 * stack.tail_weight_ * stack.scale_
    assert (np.abs(main.mean(0) - mean) < slack).all()
    # the mean probability of a component over draws is its weight
    weights = np.concatenate(
        [w * m.weights for w, m in zip(stack.weights_, stack.members_, strict=True)]
    )
    probabilities = stack.predict_proba(X)
    expected = np.append(weights, stack.tail_weight_)
    scatter = np.sqrt(expected / len(X))  # of a share of counts, which mean probabilities undercut
    assert (np.abs(probabilities.mean(0) - expected) < 5.0 * scatter).all()
    np.testing.assert_array_equal(stack.sample(3, random_state=1), stack.sample(3, random_state=1))
    assert not np.array_equal(stack.sample(3), stack.sample(3))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_not_below_the_mixture_that_cross_validation_would_choose(seed):
    X, _ = make_moons(600, noise=0.1, random_state=seed)
    new, _ = make_moons(4000, noise=0.1, random_state=100 + seed)
    grid = {"n_components": [1, 2, 4, 8, 16], "covariance_type": list(TYPES)}
    single = GridSearchCV(GaussianMixture(random_state=0), grid, cv=5).fit(X).best_estimator_
    gain = MixtureStack(random_state=0).fit(X).score_samples(new) - single.score_samples(new)
    assert gain.mean() > -4.0 * gain.std() / np.sqrt(len(new))


def test_parameters_restrict_what_is_stacked(rows):
    stack = MixtureStack(covariance_types=["tied"], max_components=2, random_state=0).fit(rows)
    assert {member.covariance_type for member in stack.members_} == {"tied"}
    assert max(len(member.weights) for member in stack.members_) <= 2
    few = MixtureStack(covariance_types=["tied"], random_state=0).fit(rows[:3])
    assert {member.covariance_type for member in few.members_} == {"tied"}


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("covariance_types", "full", TypeError),
        ("covariance_types", 3, TypeError),
        ("covariance_types", [], ValueError),
        ("covariance_types", ["full", "full"], ValueError),
        ("covariance_types", ["spherical"], ValueError),
        ("max_components", 0, ValueError),
        ("max_components", 2.5, TypeError),
        ("random_state", -1, ValueError),
        ("verbose", -1, ValueError),
    ],
)
def test_bad_parameters_are_named(rows, name, value, kind):
    with pytest.raises(kind, match=name):
        MixtureStack(**{name: value}).fit(rows)
    if name != "random_state":
        with pytest.raises(
            kind, match=name if name in ("covariance_types", "max_components") else ""
        ):
            ParticleLVEBM(reference=MixtureStack(**{name: value}), max_iter=0).fit(rows)


@pytest.mark.parametrize("kind", [ParticleLVEBM, WassersteinFlowEBM, PotentialFlowEBM])
def test_it_is_a_reference_of_energies(rows, kind):
    stack = MixtureStack(covariance_types=("diag",), max_components=4)
    model = kind(reference=stack, max_iter=0, random_state=0).fit(rows)
    choice = model._training.choice
    assert {part.candidate.covariance_type for part in choice.parts} == {"diag"}
    assert max(part.candidate.n_components for part in choice.parts) <= 4
    assert not hasattr(stack, "members_")  # a template, which stays as it is
    default = kind(max_iter=0, random_state=0).fit(rows)
    same = kind(reference=MixtureStack(), max_iter=0, random_state=0).fit(rows)
    np.testing.assert_array_equal(same.score_samples(rows), default.score_samples(rows))
    assert pickle.loads(pickle.dumps(model)).get_params()["reference"].max_components == 4
    clone(model)


def test_the_class_is_no_reference(rows):
    with pytest.raises(TypeError, match="a MixtureStack or a MixtureReference, got"):
        ParticleLVEBM(reference=MixtureStack, max_iter=0).fit(rows)


def test_stored_and_composed_it_says_the_same(stack, rows):
    again = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(again.score_samples(rows), stack.score_samples(rows))
    np.testing.assert_array_equal(again.sample(3, random_state=0), stack.sample(3, random_state=0))
    np.testing.assert_array_equal(again.members_[0].means, stack.members_[0].means)
    product = compose([(stack, 1.0)])
    # a composition is annealed from a reference of its own, whose tails are rarely drawn: that
    # they hold less than a thousandth is not seen by its standard error
    assert product.log_partition(random_state=0).value == pytest.approx(0.0, abs=2e-3)
    np.testing.assert_allclose(product.score_samples(rows), stack.score_samples(rows), atol=5e-3)


def test_frames_pipelines_and_searches(rows):
    frame = pd.DataFrame(rows, columns=["a", "b"])
    stack = MixtureStack(max_components=4, random_state=0).fit(frame)
    with config_context(transform_output="pandas"):
        assert list(stack.sample(3).columns) == ["a", "b"]
    assert list(stack.feature_names_in_) == ["a", "b"]
    pipeline = make_pipeline(StandardScaler(), MixtureStack(max_components=4, random_state=0))
    assert np.isfinite(cross_val_score(pipeline, rows, cv=2)).all()
    search = GridSearchCV(MixtureStack(random_state=0), {"max_components": [1, 8]}, cv=2)
    assert search.fit(rows).best_params_ == {"max_components": 8}


def test_what_must_not_change_does_not(stack, rows):
    same = MixtureStack(random_state=0).fit(rows)
    np.testing.assert_array_equal(same.score_samples(rows), stack.score_samples(rows))
    single = stack.score_samples(rows[:7].astype(np.float32))
    assert single.dtype == np.float32
    one_by_one = [stack.score_samples(rows[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(one_by_one, stack.score_samples(rows[:5]), rtol=1e-12)
    with pytest.raises(NotFittedError):
        MixtureStack().score_samples(rows)
    with pytest.raises(ValueError, match="n_samples"):
        stack.sample(0)


def test_a_far_row_costs_the_logarithm_of_its_distance(stack):
    far = stack.mean_ + stack.scale_ * 10.0 ** np.arange(2, 9)[:, None]
    scores = stack.score_samples(far)
    # a Student-like tail of three degrees of freedom in two columns: five nats a factor e
    slopes = -np.diff(scores) / np.log(10.0)
    assert (slopes > 0.0).all()
    assert slopes[2:].max() < 7.0


def test_rows_out_of_reach_are_named():
    X = load_iris().data.copy()
    X[3, 1] = 1e40
    with pytest.raises(ValueError, match=r"Rows \[3\].*columns \[1\]"):
        MixtureStack(random_state=0).fit(X)
