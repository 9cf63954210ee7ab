"""What `effort` costs and gains: default fits of small tables with each of its values.

    python examples/benchmarks/effort.py            # three splits, about fifteen minutes
    python examples/benchmarks/effort.py --quick    # iris, one split

`ParticleLVEBM(effort=...)` on four fifths of the rows, held-out nats per row on the others, and
processor seconds of one thread, beside ten `GaussianMixture` of scikit-learn with 1 to 10
components, fitted to the same rows. iris carries uniform noise of its rounding, digits that of one
unit. Medians of the splits, and the worst one.
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
import torch
from report import RESULTS, Store, print_header, print_table
from sklearn.datasets import load_diabetes, load_digits, load_iris, load_wine, make_moons
from sklearn.mixture import GaussianMixture

from sklvebm import ParticleLVEBM, dequantize

EFFORTS = ("fast", "default", "thorough")
SETS = ("iris", "wine", "moons", "diabetes", "digits")
MOST_FITTED = {"moons": 2000}


def table(name):
    """Return all rows of one set."""
    if name == "iris":
        rows = load_iris().data
        return rows + np.random.RandomState(0).uniform(-0.05, 0.05, rows.shape)
    if name == "wine":
        return load_wine().data
    if name == "moons":
        return make_moons(5000, noise=0.1, random_state=0)[0]
    if name == "diabetes":
        return load_diabetes(scaled=False).data
    rows = load_digits().data
    return dequantize(rows[:, np.ptp(rows, axis=0) > 0.0], random_state=0)


def split(name, seed):
    """Return rows to fit and new ones."""
    rows = table(name)
    order = np.random.RandomState(seed).permutation(len(rows))
    n_fitted = MOST_FITTED.get(name, int(0.8 * len(rows)))
    return rows[order[:n_fitted]], rows[order[n_fitted:]]


def measured(name, effort, seed):
    """Return score, processor seconds and whether the energy was kept; or the time of ten fits."""
    fitted, new = split(name, seed)
    start = time.process_time()
    if effort == "ten mixtures":
        for k in range(1, 11):
            GaussianMixture(k, random_state=0).fit(fitted)
        return {"seconds": time.process_time() - start}
    model = ParticleLVEBM(effort=effort, random_state=0).fit(fitted)
    seconds = time.process_time() - start
    return {"seconds": seconds, "score": model.score(new), "kept": bool(model.improved_)}


def main(arguments=None):
    """Print a table for every set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="iris, one split")
    parser.add_argument("--output", default=RESULTS / "effort")
    options = parser.parse_args(arguments)
    store, n_splits = Store(options.output), 1 if options.quick else 3
    torch.set_num_threads(1)
    print_header(store)
    ParticleLVEBM(max_iter=1, random_state=0).fit(table("iris")[:40])  # imports
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in SETS[:1] if options.quick else SETS:
            print_set(name, store, range(n_splits))


def print_set(name, store, splits):
    """Print one row for each value of `effort`."""
    found = {
        effort: [
            store.row(f"{name} {effort} {seed}", partial(measured, name, effort, seed))
            for seed in splits
        ]
        for effort in (*EFFORTS, "ten mixtures")
    }
    seconds = {
        effort: np.median([row["seconds"] for row in rows]) for effort, rows in found.items()
    }
    lines = []
    for effort in EFFORTS:
        scores = [row["score"] for row in found[effort]]
        n_kept = sum(row["kept"] for row in found[effort])
        numbers = np.median(scores), min(scores), seconds[effort]
        lines.append([effort, *(f"{number:.3f}" for number in numbers), n_kept])
    limit = 5.0 * seconds["ten mixtures"]
    too_slow = [f"{seconds['fast']:.2f} s"] if seconds["fast"] > limit else []
    fails = f"fast takes more than five times ten mixtures, {limit:.2f} s"
    columns = ["effort", "nats", "worst", "processor s", "kept"]
    print_table(f"{name}, {len(splits)} splits", columns, lines, fails, too_slow)


if __name__ == "__main__":
    main()
