"""Tables with about as many columns as rows, or more: `MixtureStack` beside Gaussian rivals.

    python examples/benchmarks/wide_tables.py            # three seeds, about ten minutes
    python examples/benchmarks/wide_tables.py --quick    # one seed

Held-out nats per row and processor seconds of one thread, medians of the seeds and the worst one:

* `MixtureStack()`, and the same without covariances of low rank;
* `FactorAnalysis` of scikit-learn, its number of factors chosen by five-fold cross-validation;
* one Gaussian with the covariance of `LedoitWolf`.

Digits carry uniform noise of one unit; constant columns are left out. All columns are standardised
by the training rows. "factors": five directions and unit noise; "clusters": three centres with
noise of different size; "chain": neighbouring columns correlate by 0.9.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from report import RESULTS, Store, print_header, print_table
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import FactorAnalysis
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from sklvebm import MixtureStack, dequantize

N_NEW = 300
SIZES = {
    "factors": (60, 1000),
    "clusters": (100, 500),
    "chain": (150, 100),
    "noise": (100, 200),
    "breast cancer": (60, 30),
    "digits": (200, 64),
}


def rows_of(name: str, n_rows: int, n_features: int, seed: int) -> np.ndarray:
    """Return rows (n_rows, n_features)."""
    random = np.random.RandomState(seed)
    noise = random.normal(size=(n_rows, n_features))
    if name == "factors":
        return random.normal(size=(n_rows, 5)) @ random.normal(size=(5, n_features)) + noise
    if name == "clusters":
        centres = 0.7 * random.normal(size=(3, n_features))
        return centres[random.randint(3, size=n_rows)] + noise * np.exp(
            0.3 * random.normal(size=n_features)
        )
    if name == "chain":
        distance = np.abs(np.subtract.outer(np.arange(n_features), np.arange(n_features)))
        return noise @ np.linalg.cholesky(0.9**distance).T
    if name == "noise":
        return noise
    if name == "digits":
        table = load_digits().data
        table = dequantize(table[:, np.ptp(table, axis=0) > 0.0], random_state=seed)
    else:
        table = load_breast_cancer().data
    return table[random.permutation(len(table))[:n_rows]]


def ledoit_wolf(fitted: np.ndarray, new: np.ndarray) -> float:
    """Return the mean log density of one Gaussian, nats."""
    found = LedoitWolf().fit(fitted)
    return float(multivariate_normal(found.location_, found.covariance_).logpdf(new).mean())


def factor_analysis(fitted: np.ndarray, new: np.ndarray) -> float:
    """Return that of factor analysis, its rank chosen by cross-validation."""
    most = min(len(fitted) // 4, fitted.shape[1] // 2)
    grid = {"n_components": [rank for rank in (1, 2, 4, 8, 16, 32) if rank <= most]}
    return float(GridSearchCV(FactorAnalysis(), grid, cv=5).fit(fitted).score(new))


def stack(fitted: np.ndarray, new: np.ndarray, **options: object) -> float:
    """Return that of a stack."""
    return MixtureStack(random_state=0, **options).fit(fitted).score(new)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "MixtureStack": stack,
    "without low rank": lambda *rows: stack(*rows, covariance_types=("full", "tied", "diag")),
    "FactorAnalysis": factor_analysis,
    "LedoitWolf": ledoit_wolf,
}


def measured(name: str, seed: int, method: str) -> dict[str, float]:
    """Return the score of a method on one set of rows, and its processor seconds."""
    n_rows, n_features = SIZES[name]
    X = rows_of(name, n_rows + N_NEW, n_features, seed)
    scaler = StandardScaler().fit(X[:n_rows])
    rows = scaler.transform(X[:n_rows]), scaler.transform(X[n_rows:])
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that are constant among few rows
        score = METHODS[method](*rows)
    return {"score": score, "seconds": time.process_time() - start}


def main() -> None:
    """Print a table for every kind of rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--output", default=RESULTS / "wide_tables")
    arguments = parser.parse_args()
    store, n_seeds = Store(arguments.output), 1 if arguments.quick else 3
    for name, (n_rows, n_features) in SIZES.items():
        lines, medians = [], {}
        for method in METHODS:
            found = [
                store.row(f"{name} {method} {seed}", partial(measured, name, seed, method))
                for seed in range(n_seeds)
            ]
            scores = [row["score"] for row in found]
            medians[method] = np.median(scores)
            seconds = np.median([row["seconds"] for row in found])
            numbers = medians[method], min(scores), seconds
            lines.append([method, *(f"{number:.2f}" for number in numbers)])
        best = max(medians, key=medians.get)
        behind = medians[best] - medians["MixtureStack"]
        failures = [f"{best} is ahead"] if behind > 0.01 * abs(medians[best]) else []
        title = f"{name}, {n_rows} rows of {n_features} columns, {n_seeds} seeds"
        fails = "MixtureStack is more than one percent below the best"
        print_table(title, ["method", "nats", "worst", "seconds"], lines, fails, failures)
    print_header(store)


if __name__ == "__main__":
    main()
