"""Time of an epoch with two processes and twice the rows, over that of one process.

    python examples/benchmarks/weak_scaling.py               # ten minutes
    python examples/benchmarks/weak_scaling.py --large       # the shape with a bar: three minutes
    python examples/benchmarks/weak_scaling.py --quick       # small shapes: one minute
    python examples/benchmarks/weak_scaling.py --output DIR  # where finished rows go

Every rank has as many rows, rows in a batch and chains as the single process, so that all make the
same number of updates of the same work. One thread for each process, which need a core each: other
programs on the machine slow two processes more than one. Processor time, that of rank 0, leaves
out waiting. Contestants in turns, the shortest epoch counts, the first of each fit is left out.
"Whole fit" includes what rank 0 does alone, of which the reference, a Gaussian here, is the
smallest part.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from functools import partial

from report import RESULTS, Store, print_header, print_table

SHAPES = {
    "small update": {"rows": 4000, "batch": 500, "chains": 128, "features": 4},
    "large update": {"rows": 32_000, "batch": 4000, "chains": 1000, "features": 10},
}
QUICK = {"small": {"rows": 400, "batch": 100, "chains": 32, "features": 2}}
WIDEST = {"small": math.inf, "small update": math.inf, "large update": 1.25}  # ratio
N_TURNS, N_LARGE_TURNS, N_EPOCHS = 4, 3, 5
PARTS = "epoch", "processor", "whole fit"

# what each process runs: settings, rank, number of ranks, folder
PROGRAM = """
import json, sys, time, warnings
import numpy as np
import torch.distributed as dist
from sklvebm import ParticleLVEBM, distributed, training
warnings.simplefilter("ignore")
settings, rank, size = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = dist.FileStore(sys.argv[4] + "/store", size)
dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
rng, d = np.random.default_rng(rank), settings["features"]
factors = rng.normal(size=(settings["rows"], 2))
mixing = np.random.default_rng(9).normal(size=(2, d))
X = np.tanh(factors @ mixing) + 0.1 * rng.normal(size=(len(factors), d))
model = ParticleLVEBM(
    2, n_chains=size * settings["chains"], batch_size=size * settings["batch"],
    n_particles=4, n_temperatures=4, max_iter=settings["epochs"], tol=None, init="reference",
    reference="gaussian", margins="none", embedding="none", hidden_layer_sizes=(128, 128),
    random_state=0,
)
epoch, walls, processors = training._Run.epoch, [], []

def timed(run, *arguments):
    wall, processor = time.perf_counter(), time.process_time()
    progress = epoch(run, *arguments)
    walls.append(time.perf_counter() - wall)
    processors.append(time.process_time() - processor)
    return progress

training._Run.epoch = timed
with distributed():
    begin = time.perf_counter()
    model.fit(X)
    print(json.dumps([min(walls[1:]), min(processors[1:]), time.perf_counter() - begin]))
dist.destroy_process_group()
"""


def turn(shape, n_ranks, n_epochs):
    """Return the shortest epoch of rank 0, its processor time, and the whole fit, seconds."""
    settings = json.dumps({**shape, "epochs": n_epochs})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, settings, str(rank), str(n_ranks), folder],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(n_ranks)
        ]
        printed = [process.communicate()[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks)
    return dict(zip(PARTS, json.loads(printed[0]), strict=True))


def compared(shape, n_turns, n_epochs):
    """Return the shortest turns of one and of two ranks."""
    turns = [(turn(shape, 1, n_epochs), turn(shape, 2, n_epochs)) for _ in range(n_turns)]
    return {
        f"{name} {n}": min(pair[n - 1][name] for pair in turns) for name in PARTS for n in (1, 2)
    }


def line_of(name, row):
    """Return a line of the table, and the ratio of epochs."""
    ratios = [row[f"{part} 2"] / row[f"{part} 1"] for part in PARTS]
    seconds = [f"{row[f'epoch {n}']:.2f}" for n in (1, 2)]
    return [name, *seconds, *(f"{ratio:.2f}" for ratio in ratios)], ratios[0]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true")
    which.add_argument("--large", action="store_true")
    parser.add_argument("--output", default=RESULTS / "weak_scaling")
    options = parser.parse_args(arguments)
    shapes, n_turns = (QUICK, 1) if options.quick else (SHAPES, N_TURNS)
    if options.large:
        shapes, n_turns = {"large update": SHAPES["large update"]}, N_LARGE_TURNS
    store = Store(options.output)
    print_header(store)
    found = {
        name: line_of(name, store.row(name, partial(compared, shape, n_turns, N_EPOCHS)))
        for name, shape in shapes.items()
    }
    failures = [
        f"{name}: {ratio:.2f}" for name, (_, ratio) in found.items() if ratio > WIDEST[name]
    ]
    columns = ["", "one rank, s", "two ranks, s", "ratio", "of processor time", "of whole fits"]
    fails = f"an epoch of a large update takes more than {WIDEST['large update']} times as long"
    print_table("An epoch", columns, [line for line, _ in found.values()], fails, failures)


if __name__ == "__main__":
    main()
