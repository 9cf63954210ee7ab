"""`memory`: fits that share rows, seed and parameters of the reference share the reference."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.model_selection import GridSearchCV

from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM
from sklvebm.estimators._common import reference as reference_module

BRIEF = {"hidden_layer_sizes": (8,), "max_iter": 1, "random_state": 0}
THREE = [
    ParticleLVEBM(1, n_chains=16, **BRIEF),
    WassersteinFlowEBM(n_chains=16, **BRIEF),
    PotentialFlowEBM(**BRIEF),
]
every = pytest.mark.parametrize("estimator", THREE, ids=lambda model: type(model).__name__)


def rows(seed=0):
    return make_moons(150, noise=0.1, random_state=seed)[0]


@pytest.fixture
def calls(monkeypatch):
    """Return a list that grows with every choice of mixtures."""
    counted = []
    choose = reference_module.choose_mixture

    def counting(*arguments):
        counted.append(len(arguments[0]))
        return choose(*arguments)

    monkeypatch.setattr(reference_module, "choose_mixture", counting)
    return counted


@every
def test_a_second_fit_takes_the_reference_of_the_first(estimator, calls, tmp_path):
    X = rows()
    plain = clone(estimator).fit(X)
    assert len(calls) == 1
    first = clone(estimator).set_params(memory=tmp_path).fit(X)
    second = clone(estimator).set_params(memory=joblib.Memory(str(tmp_path), verbose=0)).fit(X)
    assert len(calls) == 2
    for model in (first, second):
        np.testing.assert_array_equal(model.score_samples(X), plain.score_samples(X))
    # other rows, another seed, other parameters of the reference
    clone(second).fit(rows(1))
    clone(second).set_params(random_state=1).fit(X)
    clone(second).set_params(validation_fraction=0.2).fit(X)
    assert len(calls) == 5


def test_a_grid_search_chooses_one_reference_for_each_fold(calls, tmp_path):
    grid = {"alpha": [0.1, 0.5, 1.0]}
    search = GridSearchCV(THREE[0], grid, cv=2).fit(rows())
    assert len(calls) == 7  # three candidates on two folds, and the best one on all rows
    cached = clone(THREE[0]).set_params(memory=tmp_path)
    calls.clear()
    again = GridSearchCV(cached, grid, cv=2).fit(rows())
    assert len(calls) == 3
    ours, theirs = (s.cv_results_["mean_test_score"] for s in (again, search))
    np.testing.assert_array_equal(ours, theirs)


def test_processes_share_a_folder(tmp_path):
    grid = {"alpha": [0.1, 0.5]}
    cached = clone(THREE[0]).set_params(memory=tmp_path)
    search = GridSearchCV(cached, grid, cv=2, n_jobs=2).fit(rows())
    alone = GridSearchCV(THREE[0], grid, cv=2).fit(rows())
    ours, theirs = (s.cv_results_["mean_test_score"] for s in (search, alone))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
