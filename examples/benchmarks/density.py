"""Held-out log-likelihood of default `ParticleLVEBM` beside what users would pick instead.

    python examples/benchmarks/density.py                      # all, five seeds: hours
    python examples/benchmarks/density.py --quick              # three sets, one seed
    python examples/benchmarks/density.py --only particles --sets iris wine
    python examples/benchmarks/density.py --output DIR         # where finished rows go

Shapes (2,000 rows), the rings and shells of the paper (10,000 rows) and scikit-learn's tables;
every seed draws or splits afresh. All methods see the same standardised training rows, choose their
settings on them, and are scored once on the held-out rows, in nats per row and the units of the
data. The searches that take a minute and more are done on a set's first split, whose settings the
other splits take. Seconds are of the processor, to be read with one thread (`OMP_NUM_THREADS=1`).
`ParticleLVEBM` runs with default parameters and two latents, on digits eight; its figure is a lower
bound. `PotentialFlowEBM` and `WassersteinFlowEBM` run with default parameters. Rounded columns of
tables carry uniform noise of one unit of rounding.

Every finished row is kept as JSON and not run again; delete the folder to start anew. No seed is
dropped. A row that raises an exception is a divergence, its score minus infinity.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import classical_rivals
import numpy as np
import torch
from classical_rivals import Fitted
from density_sets import ENTROPIES, SETS, split
from report import RESULTS, Store, print_header, print_table

from sklvebm import GaussianMargins, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM

N_LATENTS = {"digits": 8}  # elsewhere 2
QUICK_SETS = ("two moons", "helix", "iris")


def particles(X, seed, n_latents):
    """Fit `ParticleLVEBM` with default parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ParticleLVEBM(n_latents, random_state=seed).fit(X)
    return model, Fitted(model.score_samples, f"{model.n_iter_} epochs")


def neural(name):
    """Return a rival of `neural_rivals.py`, which needs optional libraries."""

    def fit(X, seed, **choice):
        import neural_rivals

        return getattr(neural_rivals, name)(X, seed, **choice)

    return fit


def flow(estimator):
    """Return a sibling of `ParticleLVEBM` with default parameters, without latents to choose."""

    def fit(X, seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = estimator(random_state=seed).fit(X)
        settings = f"{model.n_iter_} epochs, {'kept' if model.improved_ else 'the reference'}"
        return Fitted(model.score_samples, settings)

    return fit


def with_margins(fit):
    """Return a method that sees columns with edges through `GaussianMargins`."""

    def fit_margins(X, seed):
        margins = GaussianMargins().fit(X)
        fitted = fit(margins.transform(X), seed)

        def score_samples(rows):
            inner = fitted.score_samples(margins.transform(rows))
            return inner + margins.log_abs_det_jacobian(rows)

        settings = f"{(margins.n_bins_ > 0).sum()} columns by bins, {fitted.settings}"
        return Fitted(score_samples, settings)

    return fit_margins


RIVALS = {
    "potential flow": flow(PotentialFlowEBM),
    "wasserstein flow": flow(WassersteinFlowEBM),
    "wasserstein flow, margins": with_margins(flow(WassersteinFlowEBM)),
    **classical_rivals.RIVALS,
    "mixture by CV, margins": with_margins(classical_rivals.RIVALS["mixture by CV"]),
    "spline flow": neural("spline_flow"),
    "VAE bound": neural("variational_autoencoder"),
    "persistent CD, torchebm": neural("persistent_cd_torchebm"),
    "persistent CD, ebmkit": neural("persistent_cd_ebmkit"),
}
METHODS = ("particles", *RIVALS)
# The dear searches: later splits of a set take the settings that the first one found.
SEARCHED_ONCE = ("VAE bound", "persistent CD, torchebm", "persistent CD, ebmkit")


# Rows --------------------------------------------------------------------------------------------


def row(method, set_name, seed, choice=()):
    """Return what one method reaches on one split, as a dictionary."""
    train, test = split(set_name, seed)
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0.0] = 1.0
    X, held_out = (train - mean) / scale, (test - mean) / scale
    shift = -np.log(scale).sum()
    extra = {}
    begin = time.process_time()
    try:
        if method == "particles":
            model, fitted = particles(X, seed, N_LATENTS.get(set_name, 2))
        else:
            fitted = RIVALS[method](X, seed, **({"choice": tuple(choice)} if choice else {}))
        seconds = time.process_time() - begin
        scores = fitted.score_samples(held_out)
    except Exception as error:  # a failed rival is a row of the table, too
        return {"score": -np.inf, "seconds": time.process_time() - begin, "error": repr(error)}
    if method == "particles":
        extra = particle_extras(model, held_out, shift)
    return {
        "score": float(np.mean(scores)) + shift,
        "seconds": seconds,
        "settings": fitted.settings,
        "choice": fitted.choice,
        "diverged": bool(fitted.diverged or not np.isfinite(scores).all()),
        "n_train": len(X),
        "n_features": X.shape[1],
        **extra,
    }


def particle_extras(model, X, shift):
    """Return the score of the model's own reference and what the normaliser says."""
    x, log_jacobian = model.standardise(X)
    reference = model.reference_.log_marginal(torch.from_numpy(x)).numpy() + log_jacobian
    log_z = model.log_partition_
    return {
        "reference": float(reference.mean()) + shift,
        "width": log_z.upper - log_z.lower,
        "standard_error": log_z.standard_error,
        "n_iter": model.n_iter_,
        "verdict": model.diagnostics_.verdict,
    }


# Tables ------------------------------------------------------------------------------------------


def cells(rows):
    """Return median and worst score, median seconds and the number of divergences."""
    scores = [r["score"] for r in rows]
    n_bad = sum(r.get("diverged", True) for r in rows)
    return [
        f"{np.median(scores):.3f}",
        f"{min(scores):.3f}",
        f"{np.median([r['seconds'] for r in rows]):.1f}",
        n_bad,
        ", ".join(sorted({r.get("settings", r.get("error", ""))[:40] for r in rows})[:2]),
    ]


def rows_of(store, method, name, seeds):
    """Return the rows of one method on one set, seed by seed; compute those that are missing."""
    rows = []
    for seed in range(seeds):
        choice = rows[0].get("choice", ()) if rows and method in SEARCHED_ONCE else ()
        compute = partial(row, method, name, seed, choice)
        rows.append(store.row(f"density {name} {method} seed{seed}", compute))
    return rows


def failures_of(name, table):
    """Compare our rows with the bars, seed by seed."""
    found = []
    if "particles" not in table:
        return found
    ours = table["particles"]
    for seed, mine in enumerate(ours):
        if mine.get("diverged", True):
            found.append(f"{name}, seed {seed}: diverged {mine.get('error', '')}")
            continue
        lost = mine["reference"] - mine["score"]
        if lost > 0.02:
            found.append(f"{name}, seed {seed}: {lost:.3f} nats below its own reference")
        peers = [
            table[m][seed]["score"] for m in ("mixture by BIC", "kernel density") if m in table
        ]
        if peers and max(peers) > mine["score"]:
            lost = max(peers) - mine["score"]
            found.append(
                f"{name}, seed {seed}: {lost:.3f} nats below the better of mixture and KDE"
            )
    if name in ENTROPIES:
        bound = -ENTROPIES[name]()
        lost = bound - np.median([mine["score"] for mine in ours])
        found.append(f"(note) {name}: {lost:.3f} nats below the entropy bound {bound:.3f}")
    return found


def run(sets, methods, seeds, folder):
    """Print one table per set, and what missed its bar."""
    store = Store(folder)
    print_header(store)
    for name in sets:
        table = {method: rows_of(store, method, name, seeds) for method in methods}
        lines = [[method, *cells(rows)] for method, rows in table.items()]
        print_table(
            f"{name}: held-out log-likelihood, nats per row, {seeds} seeds",
            ["method", "median", "worst", "seconds", "diverged", "settings"],
            lines,
            "ours diverges, falls more than 0.02 below its reference, or below mixture and KDE",
            failures_of(name, table),
        )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three sets, one seed")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="data sets")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS, help="methods")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each set")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    sets, seeds = (QUICK_SETS, 1) if options.quick else (options.sets, options.seeds)
    run(sets, options.only, seeds, options.output)


if __name__ == "__main__":
    main()
