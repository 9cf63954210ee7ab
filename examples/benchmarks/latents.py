"""What latents carry: digits recognised from them, factors of curved data recovered from them.

    python examples/benchmarks/latents.py               # everything: half an hour
    python examples/benchmarks/latents.py --quick       # two widths
    python examples/benchmarks/latents.py --output DIR  # where finished rows go

Digits: accuracy of logistic regression on standardised latents of held-out rows, beside PCA and
factor analysis of standardised pixels with as many components, and PCA of raw pixels. Factors: R^2
of a k-nearest-neighbour regressor that predicts the angle (its sine and cosine, for rings also the
radius) of held-out rows from the latents. `latent_map` is varied; the
score of the same model stands beside it. One seed; finished rows are kept as JSON.
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from report import RESULTS, Store, print_header, print_table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import ParticleLVEBM

WIDTHS = (2, 8, 16, 32)


def transformers(n_components):
    """Return the methods that are compared, unfitted."""
    linear = {
        "PCA, standardised": make_pipeline(StandardScaler(), PCA(n_components)),
        "PCA, raw": PCA(n_components),
        "factor analysis": make_pipeline(StandardScaler(), FactorAnalysis(n_components)),
    }
    ours = {
        f"ParticleLVEBM, {kind}": ParticleLVEBM(n_components, latent_map=kind, random_state=0)
        for kind in ("auto", "manifold")
    }
    return linear | ours


def digits_row(name, n_components):
    """Return accuracy and score of one method on held-out digits."""
    X, y = load_digits(return_X_y=True)
    X = X + np.random.default_rng(0).uniform(size=X.shape)
    train, test, y_train, y_test = train_test_split(
        X, y, test_size=1 / 3, random_state=0, stratify=y
    )
    model = transformers(n_components)[name].fit(train)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    classifier.fit(model.transform(train), y_train)
    accuracy = classifier.score(model.transform(test), y_test)
    return {"accuracy": accuracy, "score": float(model.score(test))}


def curved(name, n, seed):
    """Return rows of a curved set and the factors behind them."""
    rng = np.random.default_rng(seed)
    angle = 2.0 * np.pi * rng.uniform(size=n)
    if name == "rings":
        radius = rng.choice([0.5, 1.0, 1.5], size=n) + 0.05 * rng.standard_normal(n)
        X = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return X, np.stack([radius, np.cos(angle), np.sin(angle)], 1)
    if name == "swiss roll":
        turn = 1.5 * np.pi * (1.0 + angle / np.pi)
        X = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / 10.0
        return X + 0.1 * rng.standard_normal(X.shape), angle[:, None]
    X = np.stack([np.cos(2.0 * angle), np.sin(2.0 * angle), angle / np.pi - 1.0], 1)
    return X + 0.1 * rng.standard_normal(X.shape), angle[:, None]


def factor_row(name, data, n_components):
    """Return the R^2 of factors regressed on latents, and the score."""
    train, factors = curved(data, 2000, 0)
    test, truth = curved(data, 2000, 1)
    model = transformers(n_components)[name].fit(train)
    regressor = make_pipeline(StandardScaler(), KNeighborsRegressor(10))
    regressor.fit(model.transform(train), factors)
    return {
        "r2": float(regressor.score(model.transform(test), truth)),
        "score": float(model.score(test)),
    }


def run(widths, folder):
    """Print both tables."""
    store = Store(folder)
    print_header(store)
    names = list(transformers(1))
    lines = []
    for name in names:
        rows = [
            store.row(f"latents digits {name} {k}", partial(digits_row, name, k)) for k in widths
        ]
        lines.append([name, *(f"{r['accuracy']:.3f} ({r['score']:.1f})" for r in rows)])
    print_table(
        "Digits: accuracy from latents (held-out score, nats per row)",
        ["method", *map(str, widths)],
        lines,
        "nothing: this table is read",
        [],
    )
    cases = [("swiss roll", 1), ("helix", 1), ("rings", 1), ("rings", 2)]
    lines = []
    for name in names:
        rows = [
            store.row(f"latents {data} {name} {k}", partial(factor_row, name, data, k))
            for data, k in cases
        ]
        lines.append([name, *(f"{r['r2']:.3f} ({r['score']:.2f})" for r in rows)])
    print_table(
        "Factors: R^2 by ten nearest neighbours in latent space (held-out score)",
        ["method", *(f"{data}, {k}" for data, k in cases)],
        lines,
        "nothing: this table is read",
        [],
    )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two widths")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    widths = (2, 8) if options.quick else WIDTHS
    run(widths, options.output / "quick" if options.quick else options.output)


if __name__ == "__main__":
    main()
