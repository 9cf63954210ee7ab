"""Processor seconds to a held-out log-likelihood, beside persistent CD with two libraries.

    python examples/benchmarks/time_to_target.py             # three sets: three quarters of an hour
    python examples/benchmarks/time_to_target.py --quick     # moons only
    python examples/benchmarks/time_to_target.py --output DIR

The rivals are persistent contrastive divergence with torchebm and with ebmkit, as tuned in
`contrastive_rivals.py`. All is in their favour: every target is charged to that one of their four
settings that reaches it first, by hindsight on the held-out rows themselves; only their updates are
timed, not their normaliser, which annealing makes too generous in many dimensions. Ours is charged
with all of a default `fit`: choosing the reference, training, certifying log Z. An untrained model
(`max_iter=0`), which is its reference, counts as a point of ours on the way.

One torch thread for everyone, processor time, so that a busy machine does not decide.
"""

import argparse
import math
import time
import warnings
from functools import partial
from pathlib import Path

import contrastive_rivals
import numpy as np
import torch
from classical_rivals import RIVALS
from density_sets import split
from report import RESULTS, Store, package_versions, print_header, print_table

from sklvebm import ParticleLVEBM

SETS = {"two moons": 2, "LCR-2D": 2, "digits": 8}  # and how many latents
LEARNERS = {
    "torchebm": contrastive_rivals.torchebm_learner,
    "ebmkit": contrastive_rivals.ebmkit_learner,
}
BAR = 5.0
SEED = 0


def standardised(name):
    """Return training and held-out rows in units of the training rows."""
    train, test = split(name, SEED)
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0.0] = 1.0
    return (train - mean) / scale, (test - mean) / scale


def our_points(name):
    """Return seconds and held-out score of an untrained and of a default model."""
    X, held_out = standardised(name)
    points = []
    for settings in ({"max_iter": 0}, {}):
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ParticleLVEBM(SETS[name], random_state=SEED, **settings).fit(X)
        points.append((time.process_time() - begin, model.score(held_out)))
    return {"points": points}


def rival_points(name, library):
    """Return seconds and held-out scores of all checkpoints of each setting of a library."""
    X, held_out = standardised(name)
    rows = torch.from_numpy(np.asarray(held_out)).float()
    found = {}
    with torch.random.fork_rng(devices=[]):  # the libraries draw from the global generator
        torch.manual_seed(SEED)
        training, validation = contrastive_rivals.split_rows(X, SEED)
        for rate, step in contrastive_rivals.GRID:
            learner = LEARNERS[library](training.shape[1], step)
            points = []
            for item in contrastive_rivals.checkpoints(learner, rate, training, validation, SEED):
                log_z = contrastive_rivals.normalise(
                    item.energy, training, item.chains, SEED, final=False
                )
                score = -float(contrastive_rivals.energies(item.energy, rows).mean()) - log_z.value
                usable = log_z.trusted and math.isfinite(score)
                points.append((item.seconds, score if usable else -math.inf))
            found[f"rate {rate:g}, step {step:g}"] = points
    return {"settings": found}


def target_rows(name):
    """Return the held-out scores of two rivals that need no tuning by hand."""
    X, held_out = standardised(name)
    return {
        rival: float(np.mean(RIVALS[rival](X, SEED).score_samples(held_out)))
        for rival in ("probabilistic PCA", "mixture by BIC", "kernel density")
    }


def first_time(points, target):
    """Return the seconds of the first point at or above a target; infinity if there is none."""
    return min((seconds for seconds, score in points if score >= target), default=math.inf)


def lines_of(ours, rivals, targets):
    """Return the table's lines of one set, and the ratios where a rival gets there."""
    best = {library: max(score for _, score in points) for library, points in rivals.items()}
    targets = targets | {f"best of {library}": score for library, score in best.items()}
    targets["best of ours"] = max(score for _, score in ours)
    lines, ratios = [], {}
    for text, target in targets.items():
        own = first_time(ours, target)
        times = [first_time(points, target) for points in rivals.values()]
        fastest = min(times)
        ratio = fastest / own if math.isfinite(own) else 0.0
        if math.isfinite(fastest):
            ratios[text] = ratio
        shown = [f"{seconds:.1f}" if math.isfinite(seconds) else "never" for seconds in times]
        mine = f"{own:.1f}" if math.isfinite(own) else "never"
        ratio_text = f"{ratio:.1f}" if math.isfinite(fastest) else "-"
        lines.append([text, f"{target:.3f}", mine, *shown, ratio_text])
    return lines, ratios


def run(sets, folder):
    """Print one table per set."""
    torch.set_num_threads(1)
    store = Store(folder)
    print_header(store)
    print(package_versions("torchebm", "ebmkit"))
    for name in sets:
        ours = store.row(f"target {name} ours", partial(our_points, name))["points"]
        rivals = {}
        for library in LEARNERS:
            row = store.row(f"target {name} {library}", partial(rival_points, name, library))
            rivals[library] = [point for points in row["settings"].values() for point in points]
        targets = store.row(f"target {name} levels", partial(target_rows, name))
        targets = {k: v for k, v in targets.items() if k not in ("key", "sources")}
        lines, ratios = lines_of(ours, rivals, targets)
        print_table(
            f"{name}: processor seconds to a held-out log-likelihood (standardised units)",
            ["target", "nats", "ours", *LEARNERS, "ratio"],
            lines,
            f"a rival reaches a target in less than {BAR:.0f} times our seconds",
            [f"{name}, {text}: {r:.1f} times" for text, r in ratios.items() if r < BAR],
        )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="moons only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    run(tuple(SETS)[:1] if options.quick else tuple(SETS), options.output)


if __name__ == "__main__":
    main()
