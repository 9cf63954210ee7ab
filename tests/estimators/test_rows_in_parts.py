"""Rows that are read in parts: the results of rows in memory, and errors that name the rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn

from sklvebm import MixtureStack, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM, row_blocks
from sklvebm.estimators._common import rows_to_fit
from sklvebm.preprocessing.moments import extremes_of, summary_of_blocks
from sklvebm.preprocessing.scaling import fit_standardisation

random = np.random.RandomState(0)
X = np.concatenate([random.normal(0, 1, (120, 3)), random.normal(4, 0.5, (80, 3))])
QUICK = {"max_iter": 1, "tol": None, "reference": "gaussian", "random_state": 0}
QUICK |= {"hidden_layer_sizes": (8,)}
SIMPLE = {"covariance_types": ["diag"], "max_components": 2, "margins": "none", "random_state": 0}
MAKERS = {
    "stack": lambda: MixtureStack(**SIMPLE),
    "particles": lambda: ParticleLVEBM(n_components=1, n_chains=16, **QUICK),
    "wasserstein": lambda: WassersteinFlowEBM(n_chains=16, **QUICK),
    "flow": lambda: PotentialFlowEBM(**QUICK),
}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Rows:
    """A source: rows by slices, of which the longest is noted."""

    def __init__(self, rows, claimed=None):
        self.rows, self.claimed, self.longest = rows, claimed or len(rows), 0

    def __len__(self):
        return self.claimed

    def __getitem__(self, part):
        assert isinstance(part, slice)
        self.longest = max(self.longest, part.stop - part.start)
        return self.rows[part]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 13 rows of three columns."""
    monkeypatch.setattr(row_blocks, "_NUMBERS_IN_A_BLOCK", 40)


@pytest.fixture
def few_rows(small_blocks, monkeypatch):
    """Fits of 50 rows of a source at most."""
    monkeypatch.setattr(rows_to_fit, "_MOST_ROWS", 50)


def checksum(model):
    return model.__getstate__()["_checksum"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_source_gives_what_its_rows_give(name, monkeypatch):
    monkeypatch.setattr(row_blocks, "_NUMBERS_IN_A_BLOCK", 40)
    model, rows = MAKERS[name]().fit(X), X[100:125]
    assert checksum(MAKERS[name]().fit(Rows(X))) == checksum(model)
    source = Rows(rows)
    scores = model.score_samples(rows)
    np.testing.assert_allclose(model.score_samples(source), scores, rtol=1e-9, atol=1e-9)
    assert source.longest == 13
    for method in {"transform", "predict_proba"} & set(dir(model)):
        answer = getattr(model, method)
        np.testing.assert_allclose(answer(source), answer(rows), rtol=1e-9, atol=1e-9)
    assert source.longest == 13
    # what is not answered in parts reads all rows
    np.testing.assert_array_equal(model.standardise(source)[0], model.standardise(rows)[0])


def test_a_file_is_read_in_parts(small_blocks, tmp_path):
    model = MixtureStack(**SIMPLE).fit(X)
    scores = model.score_samples(X)
    np.save(tmp_path / "rows.npy", X)
    for rows in (tmp_path / "rows.npy", np.load(tmp_path / "rows.npy", mmap_mode="r")):
        np.testing.assert_allclose(model.score_samples(rows), scores, rtol=1e-12)
        assert model.score(rows) == pytest.approx(scores.mean())
        assert checksum(MixtureStack(**SIMPLE).fit(rows)) == checksum(model)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("name", MAKERS)
def test_of_many_rows_a_random_part_is_fitted_in_units_of_all(name, monkeypatch):
    source, found = Rows(X), []

    def given(*arguments, **options):
        found.append(rows_to_fit.rows_to_fit(*arguments, **options))
        return found[0]

    def in_memory(*arguments, **options):
        given(*arguments, **options)  # stores the columns
        places, columns = found[0].places, summary_of_blocks([(X, None)], X, extremes_of(X))
        return rows_to_fit.RowsToFit(X[places], None, places, 200, columns)

    of_stack = MAKERS[name] is MAKERS["stack"]
    fit = "sklvebm.estimators." + ("mixture_stack" if of_stack else "_common.fit")
    monkeypatch.setattr(f"{fit}.rows_to_fit", given)
    model = MAKERS[name]().fit(source)
    assert source.longest == 13
    assert len(found[0].X) == len(np.unique(found[0].places)) == 50
    np.testing.assert_allclose(model.mean_, fit_standardisation(X).mean, rtol=1e-12)
    monkeypatch.setattr(f"{fit}.rows_to_fit", in_memory)
    expected = MAKERS[name]().fit(source).score_samples(X[:9])
    np.testing.assert_allclose(model.score_samples(X[:9]), expected, rtol=1e-5)


@pytest.mark.usefixtures("few_rows")
def test_the_part_follows_the_seed_and_the_weights(capsys):
    def places(seed, weights=None):
        stack = MixtureStack(**{**SIMPLE, "random_state": seed})
        return rows_to_fit.rows_to_fit(
            stack, Rows(X), weights, reset=True, least=2, may_miss=True
        ).places

    np.testing.assert_array_equal(places(3), places(3))
    np.testing.assert_array_equal(places(None), places(np.random.RandomState(5)))
    assert not np.array_equal(places(3), places(4))
    weights = np.where(np.arange(200) % 3 == 0, 1.0 + np.arange(200), 0.0)
    assert set(places(0, weights) % 3) == {0}
    stack = MixtureStack(**SIMPLE, verbose=1).fit(Rows(X), sample_weight=weights)
    expected = fit_standardisation(X, weights / weights.mean())
    np.testing.assert_allclose(stack.scale_, expected.scale, rtol=1e-9)
    few = np.where(np.arange(200) < 30, weights, 0.0)
    assert len(places(0, few)) == 10
    with pytest.raises(ValueError, match=r"sample_weight.shape must be \(200,\)"):
        places(0, weights[:50])


@pytest.mark.usefixtures("few_rows")
def test_a_continued_fit_has_the_same_part_and_the_units_of_the_first(capsys):
    model = ParticleLVEBM(1, n_chains=16, warm_start=True, verbose=1, **QUICK).fit(Rows(X))
    assert "50 random rows of 200 are fitted, in units of all" in capsys.readouterr().out
    before = model.mean_
    model.fit(Rows(X + 0.1))
    np.testing.assert_array_equal(model.mean_, before)


def test_many_rows_of_many_columns_are_few(monkeypatch):
    assert rows_to_fit.most_rows(10) == 100_000
    assert rows_to_fit.most_rows(1000) == 33554
    assert rows_to_fit.most_rows(10_000) == 20_000
    with sklearn.config_context(working_memory=4096):
        assert rows_to_fit.most_rows(2000) == 67108


@pytest.mark.parametrize("n_wanted", [3, 30, 60, 99])
def test_random_numbers_are_different_and_cover_all(n_wanted):
    draw = rows_to_fit._distinct_numbers
    drawn = [draw(np.random.RandomState(seed), 100, n_wanted) for seed in range(400)]
    assert all(len(np.unique(d)) == n_wanted and np.all(np.diff(d) > 0) for d in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=100)
    share = n_wanted / 100
    assert np.abs(counts / 400 - share).max() < 4.5 * np.sqrt(share * (1 - share) / 400)


def with_cell(value, dtype=np.float64):
    rows = X.astype(dtype)
    rows[150, 1] = value
    return rows


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        (Rows(with_cell(np.inf)), ValueError, r"Rows 143 to 155 of X: Input .*infinity"),
        (
            Rows(X, claimed=205),
            ValueError,
            r"Rows 195 to 204 of X must have shape \(10, 3\), .*5, 3",
        ),
        (Rows(np.zeros((0, 3))), ValueError, r"Found 0 rows in X \(Rows\), while a minimum of 2"),
        (Rows(X[:1]), ValueError, "Found 1 rows in X"),
        (Rows(X[:, 0]), ValueError, "Expected 2D array, got 1D array"),
        (Rows(with_cell("x", object)), ValueError, "Rows 143 to 155 .*not numeric"),
        (Rows(np.where(np.arange(3) == 1, np.nan, X)), ValueError, r"Columns \[1\] .*no observed"),
    ],
    ids=["infinite", "length", "empty", "one row", "one dimension", "text", "empty column"],
)
def test_sources_that_cannot_be_fitted(source, kind, words):
    with pytest.raises(kind, match=words):
        MixtureStack(**SIMPLE).fit(source)


@pytest.mark.usefixtures("small_blocks")
def test_sources_that_cannot_be_scored():
    class Narrowing(Rows):
        def __getitem__(self, part):
            return self.rows[part] if part.start < 100 else self.rows[part, :2]

    model = MixtureStack(**SIMPLE).fit(X)
    with pytest.raises(ValueError, match=r"Rows 104 to 116 of X must have shape \(13, 3\)"):
        model.score_samples(Narrowing(X))
    with pytest.raises(ValueError, match="X has 2 features, but MixtureStack is expecting 3"):
        model.score_samples(Rows(X[:, :2]))
    with pytest.raises(ValueError, match="Rows 143 to 155 of X: Input .*infinity"):
        model.score_samples(Rows(with_cell(-np.inf)))
    with pytest.raises(ValueError, match="end with .npy"):
        model.score_samples("rows.txt")
    with pytest.raises(sklearn.exceptions.NotFittedError):
        MixtureStack().score_samples(Rows(X))
    holes = with_cell(np.nan)
    np.testing.assert_allclose(model.score_samples(Rows(holes)), model.score_samples(holes))


@pytest.mark.usefixtures("few_rows")
def test_a_table_keeps_the_names_of_its_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    import pyarrow as pa

    parquet.write_table(pa.Table.from_pandas(frame), tmp_path / "rows.parquet", row_group_size=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = MixtureStack(**SIMPLE).fit(tmp_path / "rows.parquet")
        assert list(model.feature_names_in_) == ["a", "b", "c"]
        scores = model.score_samples(tmp_path / "rows.parquet")
        np.testing.assert_allclose(scores, model.score_samples(frame), rtol=1e-12)
    parquet.write_table(pa.Table.from_pandas(frame[["b", "a", "c"]]), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="feature names"):
        model.score_samples(tmp_path / "other.parquet")


def test_chunks_are_fitted_one_after_the_other():
    def make():
        return WassersteinFlowEBM(n_chains=16, **QUICK)

    chunks = [X[:60], Rows(X[60:90])]
    model = make().partial_fit(chunk for chunk in chunks)
    assert model.n_iter_ == 2
    assert checksum(model) == checksum(make().partial_fit(X[:60]).partial_fit(X[60:90]))
    with pytest.raises(ValueError, match=r"X \(generator\) yielded no chunks"):
        make().partial_fit(chunk for chunk in [])
    with pytest.raises(ValueError, match="sample_weight must be None with an iterable of chunks"):
        make().partial_fit(iter(chunks), sample_weight=np.ones(100))
    with pytest.raises(TypeError):  # of scikit-learn: fit takes no chunks
        make().fit(iter(chunks))
