"""From the published algorithm to the defaults of `ParticleLVEBM`, one change at a time.

    python examples/benchmarks/ablation.py                # everything, ten seeds: two hours
    python examples/benchmarks/ablation.py --quick        # one set, one seed
    python examples/benchmarks/ablation.py --output DIR   # where finished rows go

The first row is the published algorithm: a free network with a Gaussian confinement, one
temperature, unadjusted Langevin steps, no decay, no held-out rows. Each row below keeps what the
rows above changed. Then single settings of the defaults are varied. Scores are held-out lower
bounds in nats per row; all rows are normalised by the same annealing, whatever trained them. A fit
diverges if it raises `ParticleDivergenceError`, or scores below a single Gaussian by 10 nats.
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from density_sets import split
from report import RESULTS, Store, print_header, print_table
from sklearn.covariance import LedoitWolf
from torch import nn

from sklvebm import ParticleDivergenceError, ParticleLVEBM

SETS = ("two moons", "checkerboard", "wine", "breast cancer")
N_SEEDS, FIRST_SEED = 10, 200  # draws and splits that nothing was chosen on
WORTHLESS = 10.0  # nats below a Gaussian


class FreeEnergy(nn.Module):
    """A network of x and z with a Gaussian confinement, so that exp(-E) is integrable."""

    def __init__(self, n_features, n_latents):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(n_features + n_latents, 64), nn.SiLU(),
            nn.Linear(64, 64), nn.SiLU(),
            nn.Linear(64, 1),
        )  # fmt: skip

    def forward(self, x, z):
        """Return energies (B,), nats."""
        confinement = 0.125 * x.square().sum(1) + 0.5 * z.square().sum(1)
        return self.network(torch.cat([x, z], 1)).squeeze(1) + confinement


PUBLISHED = {
    "energy": FreeEnergy,
    "reference": "gaussian",
    "dynamics": "ula",
    "n_temperatures": 1,
    "n_particles": 1,
    "alpha": 0.0,
    "learning_rate_init": 0.001,
    "early_stopping": False,
    "hidden_layer_sizes": (64, 64),
    "activation": "silu",
}
CHANGES = (
    ("published algorithm", {}),
    ("+ held-out rows decide when to stop", {"early_stopping": True}),
    ("+ MALA instead of unadjusted steps", {"dynamics": "mala"}),
    ("+ anchored on probabilistic PCA", {"energy": None}),
    ("+ Crank-Nicolson steps", {"dynamics": "crank-nicolson"}),
    ("+ eight temperatures", {"n_temperatures": 8}),
    ("+ learning rate 0.01, decay 0.5", {"learning_rate_init": 0.01, "alpha": 0.5}),
    ("+ anchored on mixtures", {"reference": "mixture"}),
)
VARIATIONS = {
    "defaults": {},
    "64 chains per temperature": {"n_chains": 64},
    "512 chains per temperature": {"n_chains": 512},
    "5 Langevin steps": {"n_langevin_steps": 5},
    "16 posterior particles": {"n_particles": 16},
    "untrained": {"max_iter": 0},
}


def variants():
    """Return the settings of every row, by name."""
    settings, rows = dict(PUBLISHED), {}
    for name, change in CHANGES:
        settings = settings | change
        rows[name] = settings
    return rows | VARIATIONS


def row(set_name, seed, settings):
    """Fit one variant; return its held-out score, seconds and whether it diverged."""
    train, test = split(set_name, seed)
    test = test[:2000]
    gaussian = LedoitWolf().fit(train)
    floor = gaussian_score(gaussian, test) - WORTHLESS
    model = ParticleLVEBM(2, random_state=seed, **settings)
    try:
        score = float(model.fit(train).score(test))
    except ParticleDivergenceError as error:
        return {"score": -np.inf, "diverged": True, "error": str(error)}
    log_z = model.log_partition_
    return {
        "score": score,
        "diverged": not score > floor,
        "width": log_z.upper - log_z.lower,
        "rolled_back": sum(bool(epoch["problem"]) for epoch in model.history_),
    }


def gaussian_score(gaussian, X):
    """Return the mean log-density of rows under a fitted covariance, nats."""
    deviations = gaussian.mahalanobis(X)
    log_det = np.linalg.slogdet(2.0 * np.pi * gaussian.covariance_)[1]
    return -0.5 * (deviations.mean() + log_det)


def run(sets, seeds, folder):
    """Print one table per set."""
    store = Store(folder)
    print_header(store)
    for name in sets:
        lines = []
        for label, settings in variants().items():
            rows = [
                store.row(f"ablation {name} {label} seed{s}", partial(row, name, s, settings))
                for s in seeds
            ]
            scores = [r["score"] for r in rows]
            widths = [r.get("width", np.nan) for r in rows]
            lines.append(
                [
                    label,
                    f"{np.median(scores):.3f}",
                    f"{min(scores):.3f}",
                    sum(r["diverged"] for r in rows),
                    sum(r.get("rolled_back", 0) for r in rows),
                    f"{np.nanmedian(widths):.2f}",
                ]
            )
        print_table(
            f"{name}: held-out lower bound, nats per row, {len(seeds)} seeds",
            ["variant", "median", "worst", "diverged", "roll-backs", "bracket of log Z"],
            lines,
            "nothing: this table is read",
            [],
        )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one set, one seed")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, help="data sets")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="seeds of each set")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    sets, n_seeds = (("wine",), 1) if options.quick else (options.sets, options.seeds)
    run(sets, range(FIRST_SEED, FIRST_SEED + n_seeds), options.output)


if __name__ == "__main__":
    main()
