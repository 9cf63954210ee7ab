"""`interpolate`: ends, spheres, straight lines and complaints."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import ParticleLVEBM, PotentialFlowEBM, interpolate
from sklvebm.estimators.interpolation import slerp


def test_a_flow_joins_the_rows_themselves(fitted_flow, moons):
    X = interpolate(fitted_flow, moons[0], moons[1], 6)
    assert X.shape == (6, 2)
    assert np.allclose(X[[0, -1]], moons[:2], atol=0.01)
    Z = fitted_flow.transform(X)
    angle = np.unwrap(np.arctan2(Z[:, 1], Z[:, 0]))
    assert np.allclose(np.diff(angle), np.diff(angle)[0], atol=0.01)
    assert np.allclose(np.diff(np.linalg.norm(Z, axis=1), 2), 0.0, atol=0.01)


def test_straight_lines_are_straight_among_the_latents(fitted_flow, moons):
    X = interpolate(fitted_flow, moons[0], moons[1], 6, path="linear")
    Z = fitted_flow.transform(X)
    assert np.allclose(np.diff(Z, 2, axis=0), 0.0, atol=0.01)
    assert np.allclose(Z[0], fitted_flow.transform(moons[:1])[0], atol=0.01)


def test_few_latents_are_joined_by_a_line_of_conditional_means(fitted, moons):
    X = interpolate(fitted, moons[3], moons[7], 5)
    ends = fitted.transform(moons[[3, 7]])
    Z = ends[0] + np.linspace(0.0, 1.0, 5)[:, None] * (ends[1] - ends[0])
    assert np.array_equal(X, fitted.inverse_transform(Z))


def test_dtypes_are_kept_and_pipelines_work(small, moons):
    model = make_pipeline(StandardScaler(), small()).fit(moons)
    X = interpolate(model, moons[0], moons[1], 3)
    assert X.shape == (3, 2)
    row = moons[0].astype(np.float32)
    assert interpolate(model[-1], row, row, 3).dtype == np.float32


def test_names_of_features_do_not_warn(small, moons, recwarn):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(moons, columns=["a", "b"])
    model = small().fit(frame)
    recwarn.clear()
    X = interpolate(model, frame.iloc[0], moons[1], 3)
    assert X.shape == (3, 2)
    assert not [w for w in recwarn if "feature names" in str(w.message)]


def test_slerp_turns_evenly():
    first, last = np.array([3.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    share = np.linspace(0.0, 1.0, 7)
    points = slerp(first, last, share)
    angle = share * np.pi / 2.0
    length = 3.0 - 2.0 * share
    expected = np.stack([length * np.cos(angle), length * np.sin(angle), 0.0 * angle], 1)
    assert np.allclose(points, expected, atol=1e-14)
    # where a line would leave the sphere by 1 - sqrt(1/2) = 0.29 of its radius
    assert np.allclose(np.linalg.norm(slerp(first / 3.0, last, share), axis=1), 1.0)


@pytest.mark.parametrize(
    ("first", "last"),
    [([1.0, 2.0], [2.0, 4.0]), ([1.0, 0.0], [-3.0, 0.0]), ([0.0, 0.0], [1.0, 1.0])],
)
def test_slerp_is_a_line_where_no_plane_is_given(first, last):
    first, last = np.array(first), np.array(last)
    share = np.linspace(0.0, 1.0, 5)
    assert np.allclose(slerp(first, last, share), np.linspace(first, last, 5))


def test_slerp_of_nearly_equal_ends_keeps_its_digits():
    first, last = np.array([1.0, 0.0]), np.array([1.0, 1e-5])
    points = slerp(first, last, np.array([0.0, 0.5, 1.0]))
    assert np.allclose(points[1], [1.0, 0.5e-5], rtol=1e-9, atol=1e-15)


def test_illegal_arguments_are_named(fitted_flow, moons):
    start, end = moons[:2]
    with pytest.raises(TypeError, match="must be fitted and have transform"):
        interpolate(LinearRegression(), start, end)
    with pytest.raises(TypeError, match="must be fitted and have transform"):
        interpolate(PotentialFlowEBM, start, end)
    with pytest.raises(NotFittedError):
        interpolate(ParticleLVEBM(), start, end)
    with pytest.raises(ValueError, match="n_steps must be an integer >= 2, got 1"):
        interpolate(fitted_flow, start, end, 1)
    with pytest.raises(ValueError, match="path must be one of .* got 'round'"):
        interpolate(fitted_flow, start, end, path="round")
    with pytest.raises(ValueError, match=r"start must be one row .* got \(2, 2\)"):
        interpolate(fitted_flow, moons[:2], end)
    with pytest.raises(ValueError, match="3 features"):
        interpolate(fitted_flow, np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="start and end"):
        interpolate(fitted_flow, np.zeros(2), np.zeros(3))
