"""What holds of `ParticleLVEBM` for any rows: shapes, units, order of rows and of columns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklvebm import ParticleLVEBM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def few(n):
    """Settings of a property: n examples, the same ones in every run, on machines of any speed."""
    return settings(max_examples=n, deadline=None, derandomize=True)


def model_of(**parameters):
    return ParticleLVEBM(
        **{
            "n_components": 1,
            "hidden_layer_sizes": (8,),
            "n_chains": 16,
            "n_temperatures": 3,
            "early_stopping": False,
            "max_iter": 2,
            "random_state": 0,
            **parameters,
        }
    )


def rows_of(seed, n, d):
    """Return correlated rows in two clusters."""
    random_state = np.random.RandomState(seed)
    mixing = random_state.normal(size=(d, d))
    centres = 3.0 * random_state.normal(size=(2, d))
    return random_state.normal(size=(n, d)) @ mixing + centres[random_state.randint(2, size=n)]


seeds = st.integers(0, 2**16)


@few(8)
@given(
    seed=seeds,
    n=st.integers(2, 60),
    d=st.integers(1, 6),
    n_components=st.integers(1, 4),
    n_draws=st.integers(1, 5),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_results_have_the_shapes_and_precision_of_their_rows(
    seed, n, d, n_components, n_draws, dtype
):
    X = rows_of(seed, n, d).astype(dtype)
    model = model_of(n_components=n_components).fit(X)
    Z = model.transform(X)
    shapes = {
        "score_samples": (model.score_samples(X), (n,)),
        "transform": (Z, (n, n_components)),
        "inverse_transform": (model.inverse_transform(Z), (n, d)),
        "sample_posterior": (model.sample_posterior(X, n_draws), (n, n_draws, n_components)),
    }
    for name, (result, shape) in shapes.items():
        assert result.shape == shape, name
        assert result.dtype == dtype, name
        assert np.isfinite(result).all(), name
    draws, latents = model.sample(n_draws, return_latents=True)
    assert draws.shape == (n_draws, d)
    assert latents.shape == (n_draws, n_components)
    assert isinstance(model.score(X), float)


@few(8)
@given(
    seed=seeds,
    d=st.integers(1, 4),
    data=st.data(),
    reference=st.sampled_from(["gaussian", "mixture"]),
)
def test_scaling_and_shifting_change_the_score_by_the_log_jacobian(seed, d, data, reference):
    columns = st.lists(st.integers(-20, 20), min_size=d, max_size=d)
    scale = 2.0 ** np.array(data.draw(columns))
    shift = np.array(data.draw(columns), dtype=float) * scale
    # multiples of 1/1024 and a number of rows that is a power of two: no sum, mean, shift or scale
    # is rounded, so the standardised rows are the same to the last bit
    X = np.round(1024.0 * rows_of(seed, 64, d)) / 1024.0
    moved = X * scale + shift
    model, other = (model_of(reference=reference).fit(rows) for rows in (X, moved))
    difference = model.score_samples(X) - other.score_samples(moved)
    # what is left is rounding of the logarithms' sum and of the difference: 1e-16 of some 1e3 nats
    np.testing.assert_allclose(difference, np.log(scale).sum(), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(model.transform(X), other.transform(moved))
    draws = model.sample(5, random_state=0) * scale + shift
    # a draw is scaled and shifted in one rounding or in two
    np.testing.assert_allclose(other.sample(5, random_state=0), draws, rtol=1e-12, atol=1e-12)


@few(6)
@given(seed=seeds, n=st.integers(5, 60), d=st.integers(1, 4))
def test_permuting_rows_permutes_their_answers(seed, n, d):
    X = rows_of(seed, n, d)
    model = model_of().fit(X)
    order = np.random.RandomState(seed).permutation(n)
    for answer in (model.score_samples, model.transform):
        np.testing.assert_allclose(answer(X[order]), answer(X)[order], rtol=1e-7, atol=1e-7)


@few(6)
@given(seed=seeds, d=st.integers(2, 5), reference=st.sampled_from(["gaussian", "mixture"]))
def test_permuting_columns_leaves_the_score_of_the_reference(seed, d, reference):
    X = rows_of(seed, 80, d)
    order = np.random.RandomState(seed).permutation(d)
    scores = [
        model_of(max_iter=0, reference=reference).fit(rows).score_samples(rows)
        for rows in (X, X[:, order])
    ]
    # the mixture is found by iteration, from sums taken in another order
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-6)


@few(6)
@given(seed=seeds, d=st.integers(1, 3))
def test_scores_are_finite_and_fall_far_from_the_rows(seed, d):
    X = rows_of(seed, 60, d)
    model = model_of().fit(X)
    far = X.mean(axis=0) + 1e3 * X.std(axis=0)
    scores = model.score_samples(np.vstack([X, far]))
    assert np.isfinite(scores).all()
    # Student-like tails with three degrees of freedom lose (d + 3) log 500 nats, at least 24, from
    # where they begin; the least likely rows are a few nats below the others
    assert scores[-1] < scores[:-1].min() - 15.0
