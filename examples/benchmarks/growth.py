"""How time and memory of fit, score and sample grow with rows, features, chains and processes.

    python examples/benchmarks/growth.py               # an hour
    python examples/benchmarks/growth.py --quick       # small sizes: three minutes
    python examples/benchmarks/growth.py --output DIR  # where finished rows go

Every measurement runs in a process of its own, on one torch thread. Times are processor times, so
that they can be compared under load. Memory is the largest resident memory of a part, less what the
process held before it. Rows are generated block by block when they are read (`RowSource`), so that
no process holds all of them. An exponent is the slope of log time over log size, by least squares
over the three largest sizes. Where size does not matter yet, it is near 0; linear growth is 1.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from report import RESULTS, Store, print_header, print_table
from weak_scaling import SHAPES, turn

STACK = {"kind": "stack", "features": 10, "rows": 2000, "scored": 2000, "drawn": 2000}
ENERGY = {"kind": "energy", "features": 8, "rows": 2000, "chains": 128, "scored": 500, "drawn": 500}
# what grows: the other settings, and its sizes. Scores and draws grow with rows only.
SIZES = {
    "rows, MixtureStack": (STACK, "rows", (1000, 10_000, 100_000, 1_000_000, 10_000_000)),
    "rows, ParticleLVEBM": (ENERGY, "rows", (1000, 10_000, 100_000, 1_000_000, 10_000_000)),
    "features, MixtureStack": (STACK, "features", (2, 8, 32, 128, 512, 2000)),
    "features, ParticleLVEBM": (ENERGY, "features", (2, 8, 32, 128, 512, 2000)),
    "chains, ParticleLVEBM": (ENERGY, "chains", (100, 1000, 10_000, 100_000, 1_000_000)),
}
MOST_DRAWN = 1_000_000  # at once: draws are an array in memory
PARTS = "fit", "score", "sample"
LINEAR = ("rows, MixtureStack", "rows, ParticleLVEBM", "chains, ParticleLVEBM")
STEEPEST = 1.1  # exponent that passes for linear under load

# what a measuring process runs; reads its settings from the command line, prints one line of JSON
PROGRAM = """
import json, resource, sys, time, warnings
import numpy as np
from sklvebm import MixtureStack, ParticleLVEBM
warnings.simplefilter("ignore")
settings = json.loads(sys.argv[1])

class Generated:
    def __init__(self, n_rows, n_features):
        self.n_rows, self.n_features = n_rows, n_features
        self.mixing = np.random.default_rng(9).normal(size=(2, n_features))

    def __len__(self):
        return self.n_rows

    def __getitem__(self, part):
        rng, n_rows = np.random.default_rng([1, part.start]), part.stop - part.start
        rows = np.tanh(rng.normal(size=(n_rows, 2)) @ self.mixing)
        return rows + 0.1 * rng.normal(size=rows.shape)

def held(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

def measured(function):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the largest resident memory is that from here on
    before, begin = held("VmRSS"), time.process_time()
    result = function()
    return result, {"seconds": time.process_time() - begin, "megabytes": held("VmHWM") - before}

if settings["kind"] == "stack":
    model = MixtureStack(max_components=8, random_state=0)
else:
    model = ParticleLVEBM(
        2, n_chains=settings["chains"], n_temperatures=2, n_particles=2, reference="gaussian",
        init="reference", random_state=0,
    )
X = Generated(settings["rows"], settings["features"])
# the libraries' own first use
MixtureStack(max_components=1, random_state=0).fit(Generated(50, 2)).sample()
# an energy is kept by partial_fit in any case, so that all sizes score and draw alike
fit = model.fit if settings["kind"] == "stack" else model.partial_fit
found = {"fit": measured(lambda: fit(X))[1]}
scored = Generated(settings["scored"], settings["features"])
found["score"] = measured(lambda: model.score_samples(scored))[1]
found["sample"] = measured(lambda: model.sample(settings["drawn"], random_state=0))[1]
print(json.dumps(found))
"""


def measure(settings):
    """Return seconds and megabytes of each part, measured in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(answer.stdout.splitlines()[-1])


def exponent(sizes, values):
    """Return the slope of log values over log sizes, by least squares over the last three."""
    x, y = np.log(sizes[-3:]), np.log(np.maximum(values[-3:], 1e-9))
    return float(np.polyfit(x, y, 1)[0])


def settings_of(name, size):
    """Return the settings of one measurement."""
    base, what, _ = SIZES[name]
    settings = base | {what: size}
    if name == "rows, MixtureStack":
        settings |= {"scored": size, "drawn": min(size, MOST_DRAWN)}
    return settings


def lines_of(name, sizes, rows):
    """Return a line of the table for each part, and the exponent of the time of each."""
    lines, slopes = [], {}
    # scores and draws of an energy do not depend on how many rows were fitted
    for part in PARTS[:1] if name == "rows, ParticleLVEBM" else PARTS:
        seconds, megabytes = (
            [row[part][unit] for row in rows] for unit in ("seconds", "megabytes")
        )
        at = [min(size, MOST_DRAWN) for size in sizes] if part == "sample" else sizes
        slopes[part] = exponent(sorted(set(at)), seconds[: len(set(at))])
        cells = [", ".join(f"{s:.3g}" for s in seconds), f"{slopes[part]:.2f}"]
        lines.append([f"{name}: {part}", *cells, ", ".join(f"{m:.0f}" for m in megabytes)])
    return lines, slopes


def print_growth(store, most):
    """Print time and memory along each size up to a limit on rows, features and chains."""
    lines, failures = [], []
    for name, (_, what, sizes) in SIZES.items():
        sizes = [size for size in sizes if size <= most[what]]
        rows = [
            store.row(f"{name} {size}", partial(measure, settings_of(name, size))) for size in sizes
        ]
        of_name, slopes = lines_of(name, sizes, rows)
        lines += [[of_name[0][0], f"{sizes[0]:,} to {sizes[-1]:,}", *of_name[0][1:]]]
        lines += [[line[0], "", *line[1:]] for line in of_name[1:]]
        if name in LINEAR:
            failures += [f"{name}: {p} {s:.2f}" for p, s in slopes.items() if s > STEEPEST]
    print_table(
        "Growth: seconds of processor time, exponent, megabytes",
        ["", "sizes", "seconds", "exponent", "megabytes"],
        lines,
        "time grows faster than linearly in rows or chains",
        failures,
    )


def print_ranks(store, shape, n_epochs):
    """Print an epoch of one process, and of two with twice the rows and chains."""
    rows = [
        store.row(f"ranks {n_ranks}", partial(turn, shape, n_ranks, n_epochs)) for n_ranks in (1, 2)
    ]
    lines = [
        [str(n), *(f"{v:.2f}" for k, v in row.items() if k in ("epoch", "processor"))]
        for n, row in zip((1, 2), rows, strict=True)
    ]
    print_table(
        "Processes, each with 32,000 rows: seconds of an epoch, wall and processor time of rank 0",
        ["ranks", "seconds", "processor"],
        lines,
        "nothing: weak_scaling.py judges",
        [],
    )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth", help="finished rows")
    options = parser.parse_args(arguments)
    store = Store(options.output / "quick" if options.quick else options.output)
    print_header(store)
    most = {"rows": 10_000, "features": 32, "chains": 1000}
    print_growth(store, most if options.quick else {"rows": 1e9, "features": 1e9, "chains": 1e9})
    shape = SHAPES["large update"]
    print_ranks(store, {**shape, "rows": 2000, "batch": 500} if options.quick else shape, 3)


if __name__ == "__main__":
    main()
