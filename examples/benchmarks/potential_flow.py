"""`PotentialFlowEBM` beside its own reference and kernel density: likelihood, agreement, samples.

    python examples/benchmarks/potential_flow.py                        # all, five seeds: hours
    python examples/benchmarks/potential_flow.py --sets pinwheel --seeds 1
    python examples/benchmarks/potential_flow.py --reference gaussian   # what the flow does alone
    python examples/benchmarks/potential_flow.py --output DIR           # where finished rows go

Splits are those of `density.py`. All methods see the same standardised training rows and are scored
once on held-out rows, in nats per row and the units of the data. "flow - energy" compares the mean
log-density of held-out rows by the change of variables with that by the normalised explicit
energy; 0 where the model is its reference. MMD is the root of the squared discrepancy between 2,000
draws and 2,000 held-out rows, its floor the 95 % quantile between halves of held-out rows.

Finished rows are kept as JSON and not run again. A row that raises is a divergence, its score minus
infinity.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from classical_rivals import kernel_density
from density_sets import PHYSICS, SHAPES, split
from report import RESULTS, Store, print_header, print_table

from sklvebm import PotentialFlowEBM
from sklvebm.metrics import maximum_mean_discrepancy, noise_floor

SETS = (*SHAPES, *PHYSICS, "digits")
N_DRAWS = 2000
N_SCORED = 5000  # held-out rows, of ten thousand
LEAST_WIN_RATE = 0.8  # of the sets, against kernel density
MOST_FLOORS = 2.0
MOST_DISAGREEMENT, MOST_FEATURES = 0.05, 3  # nats, and features up to which it is asked for


def standardised(set_name, seed):
    """Return training and held-out rows with the log-Jacobian of their units."""
    train, test = split(set_name, seed)
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0.0] = 1.0
    return (train - mean) / scale, (test[:N_SCORED] - mean) / scale, -np.log(scale).sum()


def kernel_row(set_name, seed):
    """Return the held-out log-likelihood of kernel density."""
    X, held_out, shift = standardised(set_name, seed)
    begin = time.perf_counter()
    fitted = kernel_density(X, seed)
    seconds = time.perf_counter() - begin
    return {"score": float(np.mean(fitted.score_samples(held_out))) + shift, "seconds": seconds}


def flow_row(set_name, seed, reference):
    """Return what the estimator reaches on one split."""
    X, held_out, shift = standardised(set_name, seed)
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PotentialFlowEBM(reference=reference, random_state=seed).fit(X)
        seconds = time.perf_counter() - begin
        flow = model.score_samples(held_out)
        energy = model.score_samples(held_out, method="energy")
        draws = model.sample(N_DRAWS, random_state=seed)
    except Exception as error:
        return {"score": -np.inf, "seconds": time.perf_counter() - begin, "error": repr(error)}
    x, log_jacobian = model.standardise(held_out)
    own_reference = model.reference_.log_marginal(torch.from_numpy(x)).numpy() + log_jacobian
    diagnostics = model.diagnostics_
    return {
        "score": float(flow.mean()) + shift,
        "reference": float(own_reference.mean()) + shift,
        "disagreement": float((flow - energy).mean()),
        "spread": float((flow - energy).std()),
        "seconds": seconds,
        "improved": model.improved_,
        "n_iter": model.n_iter_,
        "diverged": not np.isfinite(flow).all(),
        "n_features": X.shape[1],
        "n_steps": diagnostics.n_steps,
        "round_trip": diagnostics.round_trip_error,
        "verdict": diagnostics.verdict,
        **discrepancies(draws, held_out, seed),
    }


def discrepancies(draws, held_out, seed):
    """Return the MMD of draws and what it reads between halves of held-out rows."""
    n_rows = min(len(draws), len(held_out) // 2)
    floor = noise_floor(root_mmd, held_out, n_rows=n_rows, random_state=seed, n_splits=20)
    return {"mmd": root_mmd(draws[:n_rows], held_out[:n_rows]), "floor": floor.upper}


def root_mmd(X, Y):
    """Return the root of the squared discrepancy, which can be negative by chance."""
    return max(0.0, maximum_mean_discrepancy(X, Y)) ** 0.5


# Tables ------------------------------------------------------------------------------------------


def cells(ours, kernel):
    """Return the medians of one set."""

    def median(name):
        return float(np.median([row.get(name, np.nan) for row in ours]))

    return [
        f"{median('score'):.3f}",
        f"{min(row['score'] for row in ours):.3f}",
        f"{median('reference'):.3f}",
        f"{np.median([row['score'] for row in kernel]):.3f}",
        f"{sum(row.get('improved', False) for row in ours)} of {len(ours)}",
        f"{median('disagreement'):.3f}",
        f"{median('spread'):.3f}",
        f"{median('mmd') / median('floor'):.2f}",
        f"{median('seconds'):.1f}",
    ]


def failures_of(name, ours, kernel):
    """Compare the medians of one set with the bars."""
    found = [f"{name}: diverged {row.get('error', '')}" for row in ours if diverged(row)]
    if found:
        return found
    lost = np.median([row["score"] for row in kernel]) - np.median([row["score"] for row in ours])
    if lost > 0.0:
        found.append(f"(one set) {name}: {lost:.3f} nats below kernel density")
    ratio = np.median([row["mmd"] for row in ours]) / np.median([row["floor"] for row in ours])
    if ratio > MOST_FLOORS:
        found.append(f"{name}: MMD {ratio:.2f} times its floor")
    apart = abs(np.median([row["disagreement"] for row in ours]))
    if ours[0]["n_features"] <= MOST_FEATURES and apart > MOST_DISAGREEMENT:
        found.append(f"{name}: flow and energy differ by {apart:.3f} nats")
    return found


def diverged(row):
    """Return True if a row has no finite score."""
    return row.get("diverged", True)


def run(sets, seeds, reference, folder):
    """Print one line per set, and what missed its bar."""
    store = Store(folder)
    print_header(store)
    lines, failures, won = [], [], 0
    for name in sets:
        ours, kernel = [], []
        for seed in range(seeds):
            key = f"potential {name} {reference} seed{seed}"
            ours.append(store.row(key, partial(flow_row, name, seed, reference)))
            key = f"potential {name} kernel density seed{seed}"
            kernel.append(store.row(key, partial(kernel_row, name, seed)))
        lines.append([name, *cells(ours, kernel)])
        print("  ".join(lines[-1]), flush=True)
        found = failures_of(name, ours, kernel)
        won += not any("kernel density" in failure for failure in found)
        failures += found
    if won < LEAST_WIN_RATE * len(sets):
        failures.append(f"at least kernel density's likelihood on {won} of {len(sets)} sets only")
    print_table(
        f"PotentialFlowEBM, reference={reference!r}: medians over {seeds} seeds, nats per row",
        [
            "set",
            "held out",
            "worst",
            "reference",
            "KDE",
            "kept",
            "flow - energy",
            "spread",
            "MMD / floor",
            "seconds",
        ],
        lines,
        "a fit diverges, fewer than 80 % of the sets reach kernel density, flow and energy differ "
        "by more than 0.05 nats for up to three features, or MMD is above twice its floor",
        failures,
    )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="data sets")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each set")
    parser.add_argument(
        "--reference", choices=("mixture", "gaussian"), default="mixture", help="anchor"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    run(options.sets, options.seeds, options.reference, options.output)


if __name__ == "__main__":
    main()
