"""What all data sets promise: shapes, seeds, factors, noise, and complaints about parameters."""

import inspect
import re

import numpy as np
import pytest

from sklvebm import datasets

SIGMAS = 5.0
# name -> number of features and factors at the defaults
SHAPES = {
    "make_concentric_rings": (2, 2),
    "make_concentric_shells": (3, 3),
    "make_coupled_oscillators": (10, 4),
    "make_double_well": (2, 2),
    "make_harmonic_rings": (2, 3),
    "make_kepler_orbits": (4, 3),
    "make_lorenz": (3, 3),
    "make_pendulum": (2, 2),
    "make_shape_images": (256, 5),
}
# seconds, not minutes: what is integrated needs no long time here
QUICK = {"make_lorenz": {"duration": 2.0}, "make_pendulum": {"duration": 5.0}}
every_set = pytest.mark.parametrize("name", sorted(SHAPES))


def make(name, n_samples, **parameters):
    return getattr(datasets, name)(n_samples, **{**QUICK.get(name, {}), **parameters})


def test_every_public_name_is_listed_once_in_order_and_made_here():
    assert datasets.__all__ == sorted(set(datasets.__all__))
    assert {name for name in datasets.__all__ if name.startswith("make_")} == set(SHAPES)
    for name in datasets.__all__:
        assert getattr(datasets, name).__module__.startswith("sklvebm.datasets.")


@pytest.mark.parametrize("name", datasets.__all__)
def test_docstrings_tell_the_signature_and_every_section(name):
    function = getattr(datasets, name)
    docstring = inspect.getdoc(function)
    for title in ("Parameters", "Returns", "Raises", "Examples"):
        assert re.search(rf"^{title}\n-+$", docstring, re.M), title
    parameters = docstring.split("Parameters\n")[1].split("Returns\n")[0]
    documented = re.findall(r"^(\w+) : ", parameters, re.M)
    signature = inspect.signature(function).parameters
    assert documented == list(signature)
    kinds = {p.kind for p in list(signature.values())[name.endswith("_log_density") :]}
    if name.startswith("make_"):
        assert documented[0] == "n_samples"
        kinds.discard(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@every_set
def test_rows_and_factors_have_the_promised_shapes(name):
    X, factors = make(name, 7, return_factors=True, random_state=0)
    n_features, n_factors = SHAPES[name]
    assert X.shape == (7, n_features)
    assert factors.shape == (7, n_factors)
    assert X.dtype == factors.dtype == np.float64
    assert np.isfinite(X).all()
    assert np.isfinite(factors).all()


@every_set
def test_a_seed_fixes_rows_and_asking_for_factors_changes_nothing(name):
    X = make(name, 20, random_state=3)
    again, _ = make(name, 20, random_state=np.random.RandomState(3), return_factors=True)
    assert np.array_equal(X, again)
    assert not np.isclose(X, make(name, 20, random_state=4)).all(axis=1).any()


@every_set
def test_the_global_generator_is_left_alone_unless_it_is_asked_for(name):
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make(name, 5, random_state=0)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@every_set
def test_rows_are_not_repeated_and_none_depends_on_its_place(name):
    X = make(name, 2000, random_state=0)
    assert len(np.unique(X[:, -1])) == 2000
    first, second = X[:1000, -1], X[1000:, -1]
    error = np.sqrt((first.var() + second.var()) / 1000)
    assert abs(first.mean() - second.mean()) < SIGMAS * error


@every_set
def test_noise_is_added_to_the_same_rows_with_the_standard_deviation_that_was_asked_for(name):
    clean, factors = make(name, 2000, noise=0.0, random_state=0, return_factors=True)
    noisy, same = make(name, 2000, noise=0.1, random_state=0, return_factors=True)
    assert np.array_equal(factors, same)
    difference = noisy - clean
    if name == "make_pendulum":
        difference[:, 0] = (difference[:, 0] + np.pi) % (2.0 * np.pi) - np.pi
    # the relative standard error of a standard deviation is 1 / sqrt(2 n)
    tolerance = SIGMAS * 0.1 / np.sqrt(2.0 * 2000)
    assert np.allclose(difference.std(axis=0), 0.1, atol=tolerance, rtol=0.0)
    assert np.allclose(difference.mean(axis=0), 0.0, atol=SIGMAS * 0.1 / np.sqrt(2000))


@every_set
@pytest.mark.parametrize(
    ("parameter", "value"),
    [("n_samples", 0), ("n_samples", 2.5), ("noise", -0.1), ("return_factors", "yes")],
)
def test_illegal_parameters_are_named_with_what_was_given(name, parameter, value):
    arguments = {"n_samples": 5, parameter: value}
    with pytest.raises(ValueError, match=f"'{parameter}' parameter .* Got {value!r}"):
        getattr(datasets, name)(**arguments)


ANGLES = {  # uniform angles among the factors, with their period
    "make_concentric_rings": [1],
    "make_concentric_shells": [2],
    "make_coupled_oscillators": [2, 3],
    "make_harmonic_rings": [2],
    "make_kepler_orbits": [2],
    "make_pendulum": [1],
}


@pytest.mark.parametrize("name", sorted(ANGLES))
def test_angles_are_uniform_on_the_whole_turn(name):
    _, factors = make(name, 4000, return_factors=True, random_state=0)
    for column in ANGLES[name]:
        angle = factors[:, column]
        assert angle.min() >= 0.0
        assert angle.max() < 2.0 * np.pi
        for harmonic in (1, 2, 3):
            # each of the two means has variance 1 / (2 n)
            mean = np.exp(1j * harmonic * angle).mean()
            assert max(abs(mean.real), abs(mean.imag)) < SIGMAS / np.sqrt(2 * 4000)
