"""What the reference that would be kept is worth beside the one that was trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sklvebm.mixtures.final_reference import final_reference, refit_gain
from sklvebm.mixtures.reference_selection import fit_reference
from sklvebm.mixtures.search import Candidate
from sklvebm.mixtures.stacking import MixtureChoice, MixturePart
from sklvebm.preprocessing.prepared import PreparedData
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.preprocessing.splitting import Rows

ONE_GAUSSIAN = (MixturePart(Candidate(1, "full", 1e-6), 1, 1.0),)


def trained_on(X, defensive_weight, least_defensive_weight):
    choice = MixtureChoice(ONE_GAUSSIAN, defensive_weight)
    source = np.random.RandomState(0)
    reference = fit_reference(
        X, 1, "mixture", source, choice=choice, least_defensive_weight=least_defensive_weight
    )
    return SimpleNamespace(reference=reference, choice=choice)


def data_of(X, n_fitted):
    """Rows as they are, the last of which are held out."""
    units = Standardisation(np.zeros(X.shape[1]), np.ones(X.shape[1]))
    return PreparedData(X, units, Rows(np.arange(n_fitted), np.arange(n_fitted, len(X))), X)


def log_density(reference, X):
    return reference.log_marginal(torch.from_numpy(X)).numpy()


def test_the_advantage_of_more_rows_is_what_they_bring_on_new_rows():
    # a Gaussian of 20 features, 360 rows of 400: 230 numbers are fitted to them
    expected, brought = [], []
    for seed in range(70):
        source = np.random.RandomState(seed)
        X, new = source.standard_normal((400, 20)), source.standard_normal((1000, 20))
        data, training = data_of(X, 360), trained_on(X[:360], 1e-9, 0.0)
        expected.append(float(refit_gain(data, training).mean()))
        final = final_reference(data, training, 1, seed)
        gain = log_density(final, new) - log_density(training.reference, new)
        brought.append(gain.mean())
    # four standard errors, and a fifth for p / n = 0.6, where the rule is not exact any more
    error = np.std(np.subtract(expected, brought)) / np.sqrt(70)
    assert np.mean(brought) > 10.0 * np.std(brought) / np.sqrt(70)
    assert np.mean(expected) == pytest.approx(np.mean(brought), rel=0.2, abs=4.0 * error)
    assert 4.0 * error < 0.5 * np.mean(brought)  # the comparison says something


def test_a_lighter_wide_component_counts_row_by_row():
    X = np.random.RandomState(0).standard_normal((2000, 2))
    fitted, monitored = np.arange(1800), np.arange(1800, 2000)
    training = trained_on(X[fitted], 1e-4, 0.01)
    gain = refit_gain(data_of(X, 1800), training).numpy()
    light = trained_on(X[fitted], 1e-4, 0.0).reference
    change = log_density(light, X[monitored]) - log_density(training.reference, X[monitored])
    known = log_density(light, X[fitted]).mean() - log_density(light, X[monitored]).mean()
    np.testing.assert_allclose(gain, change + 0.05 * max(0.0, known), atol=1e-12)
    assert change.min() < 0.0 < change.max()  # rows in the tails lose


@pytest.mark.parametrize("without", ["choice", "held-out rows"])
def test_there_is_no_advantage_where_the_reference_would_stay_as_it_is(without):
    X = np.random.RandomState(0).standard_normal((100, 2))
    training, data = trained_on(X[:90], 1e-4, 0.01), data_of(X, 90)
    if without == "choice":
        training.choice = None
    else:
        data = data._replace(split=Rows(np.arange(100), np.arange(90, 100)))
    assert torch.equal(refit_gain(data, training), torch.zeros(10, dtype=torch.float64))
    assert final_reference(data, training, 1, 0) is training.reference
