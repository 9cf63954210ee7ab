"""Rows in files: the same results as of rows in memory, and few arrays of their size."""

import tracemalloc

import numpy as np
import pytest

from sklvebm import MixtureStack, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM
from sklvebm.preprocessing.prepared import prepare
from sklvebm.preprocessing.scaling import Standardisation, fit_standardisation
from sklvebm.row_weights import distinct_rows

random = np.random.RandomState(0)
X = np.concatenate([random.normal(0, 1, (120, 3)), random.normal(4, 0.5, (80, 3))])
QUICK = {"max_iter": 2, "tol": None, "random_state": 0}
MAKERS = {
    "stack": lambda: MixtureStack(max_components=4, random_state=0),
    "particles": lambda: ParticleLVEBM(n_components=1, n_chains=64, **QUICK),
    "wasserstein": lambda: WassersteinFlowEBM(n_chains=64, **QUICK),
    "flow": lambda: PotentialFlowEBM(**QUICK),
}


def npy(folder, rows):
    np.save(folder / "rows.npy", rows)
    return np.load(folder / "rows.npy", mmap_mode="r")


def raw(folder, rows):
    rows.tofile(folder / "rows.bin")
    return np.memmap(folder / "rows.bin", dtype=rows.dtype, mode="r", shape=rows.shape)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", [npy, raw])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", MAKERS)
def test_a_file_gives_what_an_array_gives(name, dtype, kind, tmp_path):
    rows = X.astype(dtype)
    on_disk = kind(tmp_path, rows)
    model, other = MAKERS[name]().fit(rows), MAKERS[name]().fit(on_disk)
    assert model.__getstate__()["_checksum"] == other.__getstate__()["_checksum"]
    np.testing.assert_array_equal(other.score_samples(on_disk), model.score_samples(rows))
    if hasattr(model, "transform"):
        np.testing.assert_array_equal(other.transform(on_disk), model.transform(rows))
    if hasattr(model, "sample_posterior"):
        draws = [
            m.sample_posterior(x, 2, random_state=0) for m, x in ((other, on_disk), (model, rows))
        ]
        np.testing.assert_array_equal(*draws)


def peak_of(function):
    """Return the result and the most bytes that NumPy and Python held during a call."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    rows = np.random.RandomState(1).normal(size=(1_000_000, 4))
    return npy(tmp_path_factory.mktemp("many"), rows)


BLOCKS = 50e6  # bytes of a few blocks of rows, whatever their number


def test_units_and_copies_need_a_column_at_most(many):
    distinct, peak = peak_of(lambda: distinct_rows(many, None))
    assert distinct.X is many
    assert peak < 16 * len(many) + BLOCKS
    assert peak_of(lambda: fit_standardisation(many))[1] < 16 * len(many) + BLOCKS


def test_a_fit_holds_standardised_rows_once(many):
    distinct = distinct_rows(many, None)
    peak = peak_of(lambda: prepare(distinct, 0.1, 0))[1]
    assert peak < many.nbytes + 40 * len(many) + BLOCKS  # an order, its parts


def test_scores_of_a_file_need_no_array_of_its_size(many, monkeypatch):
    rows = many[:200]
    model = MixtureStack(covariance_types=["diag"], max_components=1, random_state=0).fit(rows)
    sizes, apply = [], Standardisation.apply
    monkeypatch.setattr(
        Standardisation, "apply", lambda self, X: (sizes.append(len(X)), apply(self, X))[1]
    )
    values, peak = peak_of(lambda: model.score_samples(many))
    assert len(values) == len(many)
    assert max(sizes) <= 2**13
    assert peak < 48 * len(many)  # values and their sums; rows would take 32 more
