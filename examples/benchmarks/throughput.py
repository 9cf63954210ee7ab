"""Rows per second of a fitted default model, and how time and memory of `fit` grow.

    python examples/benchmarks/throughput.py               # a quarter of an hour
    python examples/benchmarks/throughput.py --quick       # small sizes: three minutes
    python examples/benchmarks/throughput.py --output DIR  # where finished rows go

Every measurement runs in a process of its own, whose largest resident memory is read at its end;
what the process held before `fit` is taken off. Times are processor times of all threads, on one
torch thread, so that they can be compared under load. Growth is measured with two epochs of `fit`
and a fixed number of updates per epoch where chains, latents or features grow; the exponent is the
slope of log time over log size between the last two sizes, where fixed costs weigh least. Epochs
have as many updates as rows ask for, and the reference is fitted to 20,000 rows at most.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from report import RESULTS, Store, print_header, print_table

SIZES = {
    "rows": (1000, 10_000, 100_000, 1_000_000),
    "features": (2, 8, 32, 128, 512),
    "chains": (100, 1000, 10_000, 100_000),
    "latents": (1, 4, 16, 64),
    "particles": (1, 4, 16, 64),
}
QUICK = {name: sizes[:3] for name, sizes in SIZES.items()} | {"rows": (1000, 4000, 16_000)}
DEFAULTS = {"rows": 2000, "features": 8, "chains": 128, "latents": 2, "particles": 4}
LINEAR = ("rows", "chains", "particles")
STEEPEST = 1.1  # exponent that passes for linear under load
EPOCHS = 2
QUESTIONS = ("score_samples", "transform", "sample")

# what a measuring process runs; reads its settings from the command line, prints one line of JSON
PROGRAM = """
import json, resource, sys, time, warnings
import numpy as np
from sklvebm import ParticleLVEBM
warnings.simplefilter("ignore")
settings = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
d = settings["features"]
factors = rng.normal(size=(settings["rows"], min(3, d)))
X = np.tanh(factors @ rng.normal(size=(min(3, d), d))) + 0.1 * rng.normal(size=(len(factors), d))
model = ParticleLVEBM(
    settings["latents"], n_chains=settings["chains"], n_particles=settings["particles"],
    max_iter=settings["epochs"], random_state=0, reference=settings["reference"],
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.process_time()
model.fit(X)
found = {"fit": time.process_time() - begin}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found["megabytes"] = (peak - before) / 1024
for name in settings["questions"]:
    n = settings["asked"]
    begin = time.process_time()
    if name == "sample":
        model.sample(n, random_state=0)
    else:
        getattr(model, name)(X[np.arange(n) % len(X)])
    found[name] = n / (time.process_time() - begin)
print(json.dumps(found))
"""


def measure(questions=(), asked=2000, reference="gaussian", epochs=EPOCHS, **sizes):
    """Return what a process of its own measured: seconds, megabytes, rows per second."""
    settings = DEFAULTS | sizes
    settings |= {"questions": questions, "asked": asked}
    settings |= {"reference": reference, "epochs": epochs}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(answer.stdout.splitlines()[-1])


def slope(sizes, values):
    """Return the exponent of growth between the last two sizes."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def particles_megabytes(name, size):
    """Return megabytes of posterior particles, pool, rows and network, all in float32."""
    settings = DEFAULTS | {name: size}
    few = settings["features"] + settings["latents"] <= 7
    units, rungs = (64, 4) if few else (128, 8)
    width = settings["features"] + settings["latents"]
    numbers = settings["rows"] * (settings["particles"] * settings["latents"])
    numbers += settings["rows"] * settings["features"] * 2  # as given, float64
    numbers += rungs * settings["chains"] * width
    numbers += units * (width + units)
    return 4e-6 * numbers


def print_throughput(store, quick):
    """Print rows per second of the three questions."""
    lines = []
    for features in (2, 8) if quick else (2, 8, 32):
        row = store.row(
            f"throughput {features} features",
            partial(
                measure,
                QUESTIONS,
                500 if quick else 2000,
                reference="mixture",
                epochs=20,
                features=features,
            ),
        )
        lines.append([f"{features} features", *(f"{row[name]:,.0f}" for name in QUESTIONS)])
    print_table(
        "Rows per second of processor time, 2,000 training rows, 20 epochs",
        ["", *QUESTIONS],
        lines,
        "nothing: this table is read",
        [],
    )


def print_growth(store, sizes):
    """Print time and memory of a short fit along each size, and the exponents."""
    lines, failures = [], []
    for name, values in sizes.items():
        rows = [
            store.row(f"growth {name} {value}", partial(measure, **{name: value}))
            for value in values
        ]
        seconds, megabytes = ([row[key] for row in rows] for key in ("fit", "megabytes"))
        exponent = slope(values, seconds)
        lines.append(
            [
                f"{name} {values[0]:,} to {values[-1]:,}",
                ", ".join(f"{s:.1f}" for s in seconds),
                f"{exponent:.2f}",
                ", ".join(f"{m:.0f}" for m in megabytes),
                f"{slope(values, megabytes):.2f}",
                f"{particles_megabytes(name, values[-1]):.0f}",
            ]
        )
        if name in LINEAR and exponent > STEEPEST:
            failures.append(f"{name}: exponent {exponent:.2f}")
    print_table(
        f"Growth of fit with {EPOCHS} epochs: seconds of processor time, peak memory in megabytes",
        ["", "seconds", "exponent", "megabytes", "exponent", "particles, data, network"],
        lines,
        "time grows faster than linearly in rows, chains or posterior particles",
        failures,
    )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    store = Store(options.output / "quick" if options.quick else options.output)
    print_header(store)
    print_throughput(store, options.quick)
    print_growth(store, QUICK if options.quick else SIZES)


if __name__ == "__main__":
    main()
