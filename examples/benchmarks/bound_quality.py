"""How good are the numbers that a fitted `ParticleLVEBM` reports? Five tables.

    python examples/benchmarks/bound_quality.py                      # everything, five seeds
    python examples/benchmarks/bound_quality.py --quick              # small settings, minutes
    python examples/benchmarks/bound_quality.py --only toys --seeds 3
    python examples/benchmarks/bound_quality.py --output DIR         # where finished rows go

toys        score, log Z and posterior means on five two-dimensional sets against quadrature
digits      the normaliser of one fitted model, estimated ten times
gaussian    the normaliser of 64-dimensional Gaussian models against closed forms, twenty seeds
throughput  time and memory of `score_samples` on 10,000 rows
families    mean evidence by Gaussian families and by annealed particles on the same energies

Every finished row is kept as JSON (default: examples/benchmarks/results; quick rows in its folder
`quick`) and is not run again; delete the folder to start anew. No seed is dropped. The header
counts rows that other sources of the library computed.

The box of the quadrature in x is the mean of the reference's draws plus and minus twelve of their
standard deviations; the reference's own integral over it must be 1 to 1e-3, and half the grid must
give the same log Z. See `quadrature.py` beside this file. Memory is the growth of the peak resident
set (`resource.getrusage`) while a fresh process scores, because `tracemalloc` does not see what
torch allocates; thread pools are included.
"""

import argparse
from functools import partial
from pathlib import Path

import bound_parts
import numpy as np
from bound_parts import Sizes
from report import RESULTS, Store, print_header, print_table

SLACK = 1e-3  # nats: accuracy asked of the quadrature
FAMILIES = ("amortised", "diagonal", "full", "particles", "quadrature")
TOY_COLUMNS = [
    "toy",
    "latents",
    "score",
    "truth",
    "score - truth",
    "log Z error",
    "s.e. log Z",
    "bracket",
    "mean error (sd)",
    "its s.e.",
    "upper - truth",
    "upper - lower",
]
QUICK = Sizes(
    seeds=2,
    toys=("two moons", "pinwheel"),
    families=("two moons", "pinwheel", "digits"),
    n_train=600,
    n_evaluate=200,
    n_refits=3,
    gaussian_seeds=3,
    n_scored=2000,
    n_family_rows=50,
    n_gaussian_steps=60,
    n_encoder_steps=200,
    n_replicates=4,
    max_iter=15,
)


def summary(rows, name, digits=4, signed=False):
    """Return "median (worst)", or "median [least, largest]", of a column; "-" if it is missing."""
    values = [row[name] for row in rows]
    if any(value is None for value in values):
        return "-"
    middle = f"{np.median(values):.{digits}f}"
    if signed:
        return f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"
    return f"{middle} ({max(values):.{digits}f})"


# Parts -------------------------------------------------------------------------------------------


def toy_failures(row):
    """Say what is wrong with one fit."""
    log_z, mean_slack = row["log_z"], 5.0 * row["mean_standard_error"]
    outside = max(
        log_z["lower"] - row["log_z_quadrature"], row["log_z_quadrature"] - log_z["upper"]
    )
    checks = {
        f"reference integral off by {row['reference_error']:.1e}": row["reference_error"] > 1e-3,
        "quadrature has not settled": max(row["grid_change"], row["node_error"]) > 1e-3,
        f"score above truth by {row['gap']:.4f}": row["gap"] > SLACK,
        f"log Z outside of its bracket by {outside:.4f}": outside > SLACK,
        f"posterior mean off by {row['mean_error']:.2f}": row["mean_error"] > mean_slack,
    }
    if row["upper_gap"] is not None:
        checks[f"upper bound below truth by {-row['upper_gap']:.4f}"] = row["upper_gap"] < -SLACK
    return [f"{row['key']}: {text}" for text, failed in checks.items() if failed]


def toys(store, sizes):
    """Print the comparison of fitted models with quadrature."""
    lines, failures = [], []
    for name in sizes.toys:
        for n_latents in sizes.latents:
            rows = [
                store.row(
                    f"toys {name} l{n_latents} seed{seed}",
                    partial(bound_parts.toy_row, name, n_latents, seed, sizes),
                )
                for seed in range(sizes.seeds)
            ]
            failures += [failure for row in rows for failure in toy_failures(row)]
            lines.append(
                [
                    name,
                    n_latents,
                    f"{np.median([row['score'] for row in rows]):.4f}",
                    f"{np.median([row['truth'] for row in rows]):.4f}",
                    summary(rows, "gap", signed=True),
                    summary(rows, "log_z_error", signed=True),
                    summary(rows, "standard_error"),
                    summary(rows, "width"),
                    summary(rows, "mean_error", 3),
                    summary(rows, "mean_standard_error", 3),
                    summary(rows, "upper_gap", signed=True),
                    summary(rows, "between"),
                ]
            )
    print_table(
        f"Toys: {sizes.n_train} rows, {sizes.n_evaluate} to evaluate, {sizes.seeds} seeds, nats; "
        "median (worst) or median [least, largest]",
        TOY_COLUMNS,
        lines,
        "a score exceeds the truth, an upper bound falls below it, or log Z lies outside of its "
        "bracket, by more than 0.001;\na posterior mean is off by more than 5 s.e.; or the "
        "quadrature (reference integral, grid, nodes) is not exact to 1e-3",
        failures,
    )


def digits(store, sizes):
    """Print repeated estimates of one normaliser."""
    fit = store.row("digits fit", partial(bound_parts.digits_fit, sizes))
    rows = [
        store.row(f"digits refit{seed}", partial(bound_parts.digits_refit, seed, sizes))
        for seed in range(sizes.n_refits)
    ]
    estimates = {"fit": fit["log_z"]} | {f"again {i}": row["log_z"] for i, row in enumerate(rows)}
    values = [log_z["value"] for log_z in estimates.values()]
    centre = float(np.mean(values))
    lines, failures, n_bare = [], [], 0
    for name, log_z in estimates.items():
        slack = 2.0 * log_z["standard_error"]
        n_bare += log_z["lower"] <= centre <= log_z["upper"]
        if not log_z["lower"] - slack <= centre <= log_z["upper"] + slack:
            failures.append(f"{name}: the mean of all values is outside")
        numbers = [log_z[key] for key in ("lower", "value", "upper", "standard_error")]
        width = log_z["upper"] - log_z["lower"]
        cells = [f"{number:.4f}" for number in [*numbers, width]]
        lines.append([name, *cells, f"{log_z['effective_sample_size']:.0f}"])
    print_table(
        f"Digits, 8 latents: score {fit['score']:.3f}, {fit['n_scored']} rows scored in "
        f"{fit['score_seconds']:.2f} s, fitted in {fit['fit_seconds']:.1f} s; values of log Z: "
        f"mean {centre:.4f}, standard deviation {np.std(values, ddof=1):.4f}, range "
        f"{np.ptp(values):.4f};\n{n_bare} of {len(values)} brackets contain the mean as they are",
        ["estimate", "lower", "value", "upper", "s.e.", "bracket", "effective"],
        lines,
        "a bracket, widened by two of its standard errors, misses the mean of all values",
        failures,
    )


def gaussian(store, sizes):
    """Print errors of the normaliser of Gaussian models."""
    rows = [
        store.row(f"gaussian seed{seed}", partial(bound_parts.gaussian_row, seed))
        for seed in range(sizes.gaussian_seeds)
    ]

    def contained(slack):
        return sum(
            row["lower_error"] <= slack * row["standard_error"]
            and row["upper_error"] >= -slack * row["standard_error"]
            for row in rows
        )

    absolute = [abs(row["error"]) for row in rows]
    scores = [row["error"] / row["standard_error"] for row in rows]
    lines = [
        ["brackets that contain the closed form", f"{contained(0.0)} of {len(rows)}"],
        ["... widened by 2 standard errors", f"{contained(2.0)} of {len(rows)}"],
        ["|error|, median and worst", f"{np.median(absolute):.4f}, {max(absolute):.4f}"],
        ["error / s.e., mean and spread", f"{np.mean(scores):.2f}, {np.std(scores):.2f}"],
        ["bracket, median (worst)", summary(rows, "width")],
        ["standard error", summary(rows, "standard_error")],
        ["upper - closed form", summary(rows, "upper_error", signed=True)],
        ["lower - closed form", summary(rows, "lower_error", signed=True)],
        [
            "effective walkers, least",
            f"{min(r['log_z']['effective_sample_size'] for r in rows):.0f}",
        ],
        ["seconds", summary(rows, "seconds", 1)],
    ]
    failures = []
    if contained(0.0) < 0.9 * len(rows):
        failures.append(f"only {contained(0.0)} of {len(rows)} brackets contain it")
    for row, score in zip(rows, scores, strict=True):
        if abs(score) > 4.0:
            failures.append(f"{row['key']}: off by {score:.1f} standard errors")
    print_table(
        f"Gaussian: log Z of {len(rows)} linear-Gaussian models on 56 features and 8 latents, nats",
        ["", "value"],
        lines,
        "fewer than 90 % of the brackets contain the closed form, or one value is off by "
        "more than 4 of its standard errors",
        failures,
    )


def throughput(store, sizes):
    """Print time and memory of scoring."""
    row = store.row("throughput", partial(bound_parts.throughput_row, sizes))
    failures = []
    if row["difference"] > 1e-12:
        failures.append(f"rows scored alone differ by {row['difference']:.1e}")
    if row["memory_mb"] > 500.0:
        failures.append(f"peak memory grew by {row['memory_mb']:.0f} MB")
    cells = [f"{row['seconds']:.2f}", f"{row['rows_per_second']:.0f}", f"{row['memory_mb']:.0f}"]
    print_table(
        "Throughput: score_samples of rows with 10 features, 2 latents, in a fresh process",
        ["rows", "threads", "seconds", "rows / s", "peak MB", "alone - chunked"],
        [[row["n_rows"], row["threads"], *cells, f"{row['difference']:.1e}"]],
        "the first rows scored alone differ by more than 1e-12 nats, or memory grows by more than "
        "500 MB",
        failures,
    )


def families(store, sizes):
    """Print mean evidence by families of posteriors."""
    lines, failures = [], []
    for name in sizes.families:
        row = store.row(f"families {name}", partial(bound_parts.families_row, name, sizes))
        present = [family for family in FAMILIES if family in row]
        lines.append(
            [name] + ["{:.4f} +- {:.4f}".format(*row[f]) if f in row else "-" for f in FAMILIES]
        )
        for narrow, wide in zip(present[:-1], present[1:], strict=True):
            (low, low_error), (high, high_error) = row[narrow], row[wide]
            if low - high > 3.0 * np.hypot(low_error, high_error) + 1e-3:
                failures.append(f"{name}: {narrow} exceeds {wide} by {low - high:.4f}")
    print_table(
        f"Families: mean evidence of {sizes.n_family_rows} rows on one fitted energy (2 latents, "
        "digits 8), nats, all with the same upper log Z;\nstandard errors are not divided by the "
        "root of the number of rows, because rows share random numbers",
        ["data", *FAMILIES],
        lines,
        "a column exceeds the next one to the right by more than 3 standard errors + 0.001",
        failures,
    )


PARTS = {
    "toys": toys,
    "digits": digits,
    "gaussian": gaussian,
    "throughput": throughput,
    "families": families,
}


def run(sizes, parts, folder):
    """Print the header and the tables of the parts."""
    store = Store(folder)
    print_header(store)
    for part in parts:
        PARTS[part](store, sizes)


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small settings")
    parser.add_argument("--only", choices=PARTS, help="one table")
    parser.add_argument("--seeds", type=int, help="seeds of each toy")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    if options.seeds:
        sizes = sizes._replace(seeds=options.seeds)
    folder = options.output / "quick" if options.quick else options.output
    run(sizes, [options.only] if options.only else list(PARTS), folder)


if __name__ == "__main__":
    main()
