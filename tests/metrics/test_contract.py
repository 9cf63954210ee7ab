"""What all metrics promise: names, documents, plain numbers, and complaints about samples."""

import inspect
import re

import numpy as np
import pytest

from sklvebm import metrics

FUNCTIONS = [name for name in metrics.__all__ if name.islower()]
# numbers from two samples; the ones that draw at random get a seed
TWO_SAMPLE = {
    "energy_distance": {},
    "maximum_mean_discrepancy": {},
    "sinkhorn_divergence": {},
    "sliced_wasserstein_distance": {"random_state": 0},
    "wasserstein_distance_2": {},
}
every_two_sample_metric = pytest.mark.parametrize("name", sorted(TWO_SAMPLE))


def samples(n=40, m=40, n_features=3):
    generator = np.random.RandomState(0)
    return generator.randn(n, n_features), generator.randn(m, n_features) + 0.5


def value(name, X, Y):
    return getattr(metrics, name)(X, Y, **TWO_SAMPLE[name])


def test_every_public_name_is_listed_once_in_order_and_made_here():
    assert metrics.__all__ == sorted(set(metrics.__all__))
    for name in metrics.__all__:
        assert getattr(metrics, name).__module__.startswith("sklvebm.metrics.")
        assert inspect.getdoc(getattr(metrics, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_tell_the_signature_and_every_section(name):
    function = getattr(metrics, name)
    docstring = inspect.getdoc(function)
    for title in ("Parameters", "Returns", "Raises", "Examples"):
        assert re.search(rf"^{title}\n-+$", docstring, re.M), title
    parameters = docstring.split("Parameters\n")[1].split("Returns\n")[0]
    documented = re.findall(r"^(\w+) : ", parameters, re.M)
    assert documented == list(inspect.signature(function).parameters)
    returned = docstring.split("Returns\n")[1].split("Raises\n")[0]
    assert re.search(r"units? of X|without unit|[Ii]n \[0, 1\]|metric's unit|`p_value`", returned)


@every_two_sample_metric
def test_values_are_plain_numbers_and_the_samples_exchangeable(name):
    X, Y = samples()
    forward = value(name, X, Y)
    assert type(forward) is float
    assert forward > 0.0
    # Sinkhorn's potentials are iterated to a tolerance of 1e-3, from one side
    assert value(name, Y, X) == pytest.approx(forward, rel=1e-3)
    order = np.random.RandomState(1).permutation(len(X))
    assert value(name, X[order], Y) == pytest.approx(forward, rel=1e-9)


@every_two_sample_metric
def test_shifts_and_rotations_of_both_samples_change_nothing(name):
    X, Y = samples(n_features=1) if name == "sliced_wasserstein_distance" else samples()
    rotation, _ = np.linalg.qr(np.random.RandomState(2).randn(X.shape[1], X.shape[1]))
    moved = value(name, X @ rotation + 7.0, Y @ rotation + 7.0)
    assert moved == pytest.approx(value(name, X, Y), rel=1e-6)


@every_two_sample_metric
def test_values_scale_with_the_unit_of_the_rows(name):
    X, Y = samples()
    power = {"maximum_mean_discrepancy": 0, "sinkhorn_divergence": 2}.get(name, 1)
    scaled = value(name, 10.0 * X, 10.0 * Y)
    assert scaled == pytest.approx(10.0**power * value(name, X, Y), rel=1e-6)


@every_two_sample_metric
def test_illegal_samples_are_refused(name):
    X, Y = samples()
    with pytest.raises(ValueError, match="equally many features, got 3 and 2"):
        value(name, X, Y[:, :2])
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        value(name, X, Y)
    with pytest.raises(ValueError, match="Input Y contains infinity"):
        value(name, Y, np.where(np.isnan(X), np.inf, X))
    with pytest.raises(ValueError, match="Expected 2D array"):
        value(name, Y[:, 0], Y[:, 0])


@pytest.mark.parametrize(
    "name",
    ["classifier_two_sample_test", "mmd_permutation_test", "sliced_wasserstein_distance"],
)
def test_random_metrics_repeat_themselves_under_one_seed_only(name):
    X, Y = samples(60, 50)
    function = getattr(metrics, name)
    first, again, other = (function(X, Y, random_state=seed) for seed in (0, 0, 1))

    def flat(result):
        return np.hstack(result) if isinstance(result, tuple) else result

    assert np.array_equal(flat(first), flat(again))
    assert not np.array_equal(flat(first), flat(other))
