"""Searches in processes of joblib: threads of each, and one reference for many candidates."""

import os

import joblib
import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, KFold

from sklvebm import ParticleLVEBM

random = np.random.RandomState(0)
X = np.concatenate([random.normal(0, 1, (60, 2)), random.normal(4, 0.5, (40, 2))])
FOLDS = KFold(2, shuffle=True, random_state=0)


def what_a_process_has(estimator, X, y=None):
    """Return measures of the process in which a candidate was fitted."""
    # a computation starts the threads
    torch.ones(400, 400) @ torch.ones(400, 400)
    return {"score": estimator.score(X), "threads": torch.get_num_threads(), "process": os.getpid()}


def searched(folder):
    """Return the results of a search over parameters that do not change the reference."""
    model = ParticleLVEBM(
        n_components=1, n_chains=32, max_iter=1, tol=None, memory=str(folder), random_state=0
    )
    grid = {"learning_rate_init": [1e-3, 3e-3]}
    search = GridSearchCV(
        model, grid, cv=FOLDS, scoring=what_a_process_has, refit=False, error_score="raise"
    )
    return search.fit(X).cv_results_


def of_splits(results, name):
    return np.concatenate([results[f"split{k}_test_{name}"] for k in range(2)])


def check(results, folder):
    """Compare with a search in this process, and count references and threads."""
    threads = of_splits(results, "threads")
    assert threads.max() <= max(1, joblib.cpu_count() // 2)
    assert os.getpid() not in of_splits(results, "process")
    assert len(list(folder.rglob("output.pkl"))) == 2 * 2  # of each fold: margins, reference
    expected = searched(folder)
    np.testing.assert_array_equal(of_splits(results, "score"), of_splits(expected, "score"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_two_processes_share_references_and_cores(tmp_path):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        results = searched(tmp_path)
    check(results, tmp_path)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_workers_of_dask_share_references_and_cores(tmp_path):
    distributed = pytest.importorskip("distributed")
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(
            processes=True, local_directory=str(tmp_path / "dask"), **how
        ) as c,
        distributed.Client(c),
        joblib.parallel_config(backend="dask"),
    ):
        results = searched(tmp_path / "references")
    check(results, tmp_path / "references")
