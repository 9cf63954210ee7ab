"""Near-proximal steps beside plain persistent contrastive divergence, data far from the start.

    python examples/benchmarks/wasserstein_flow.py                      # twenty seeds: an hour
    python examples/benchmarks/wasserstein_flow.py --seeds 2 --methods plain jko
    python examples/benchmarks/wasserstein_flow.py --rate 0.003         # another rate of Adam
    python examples/benchmarks/wasserstein_flow.py --output DIR         # where finished rows go

Data are 500 rows of N(6, 0.1^2), raw; particles start at N(0, 1). The energy is the published form:
a network (32, 32) with SiLU on the Gaussian base N(0, 1), hardly bounded, no mixture, one
temperature, unadjusted Langevin steps of 0.002, Adam at a constant rate. All lines but the last
have the same network, rows, starts and updates, and "plain" has no fewer Langevin steps and
gradient evaluations than any other: a proximal term is charged with one evaluation for each move
and three for each update. One line changes one thing:

    plain             persistent contrastive divergence
    linearised        two updates for each move of the particles, which keep their weights
    reweighted        the same, weights following the parameters: the inner problem of the JKO step
    jko, linearised   "linearised" with the proximal term
    jko               "reweighted" with the proximal term
    gradient penalty  "plain" with a penalty on the gradient of the energy, halved every 150 moves
    default           `WassersteinFlowEBM()`: standardised, anchored, tempered, exact kernel

The divergence from the data's law is by quadrature, at the end and, as the worst, at ten times over
the last 250 updates. A run has diverged if something is not finite, a particle is beyond 1,000, or
the divergence at the end is above 1 nat. Finished rows are kept as JSON and not run again. The rows
of the data sets are those of `density.py`, methods "wasserstein flow" and "potential flow".
"""

import argparse
import math
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import RESULTS, Store, print_header, print_table

from sklvebm import AnchoredEnergy, MixtureReference, MLPEnergy, WassersteinFlowEBM
from sklvebm.mcmc.state import Batch
from sklvebm.objectives.proximal import WassersteinFlow
from sklvebm.objectives.tempered_pool import TemperedPool
from sklvebm.threads import limited_threads

CENTRE, SPREAD, N_ROWS = 6.0, 0.1, 500
HIDDEN, N_CHAINS, BATCH = (32, 32), 256, 128
STEP, RATE, N_UPDATES = 0.002, 0.01, 1000
N_LOOKS, BETWEEN = 10, 25  # checkpoints, and updates between them
FARTHEST, MOST = 1e3, 1.0  # a particle's distance, and nats: beyond them a run has diverged
GRID = torch.linspace(-30.0, 42.0, 72_001, dtype=torch.float64)[:, None]
# proximal term, its weight, updates per move, Langevin steps per update, halving, linearised
PUBLISHED = {
    "plain": ("none", 0.0, 1, 24, None, True),
    "linearised": ("none", 0.0, 2, 24, None, True),
    "reweighted": ("none", 0.0, 2, 24, None, False),
    "jko, linearised": ("jko", 0.01, 2, 20, None, True),
    "jko": ("jko", 0.01, 2, 20, None, False),
    "gradient penalty": ("gradient-penalty", 0.01, 1, 20, 150.0, True),
}
METHODS = (*PUBLISHED, "default")
SHARE = 0.1  # of the divergences of "plain" that "jko" and "default" may have


def data(seed):
    """Return the rows of one seed, (500, 1)."""
    return CENTRE + SPREAD * np.random.default_rng(seed).standard_normal((N_ROWS, 1))


def divergence(log_density):
    """Return KL(N(6, 0.1^2) || model) of an unnormalised log-density on the grid, nats."""
    cell = float(GRID[1] - GRID[0])
    log_z = torch.logsumexp(log_density, 0) + math.log(cell)
    standardised = (GRID[:, 0] - CENTRE) / SPREAD
    log_p = -0.5 * standardised.square() - math.log(SPREAD * math.sqrt(2.0 * math.pi))
    return float((log_p.exp() * (log_p - log_density + log_z)).sum() * cell)


def published_energy(generator):
    """Return the network on N(0, 1), bounded so far out that it does not matter."""
    base = MixtureReference(
        torch.ones(1),
        torch.zeros(1, 1),
        torch.ones(1, 1, 1),
        latent_map=torch.zeros(0, 1),
        latent_variance=torch.zeros(0),
        location=torch.zeros(1),
    )
    return AnchoredEnergy(base, MLPEnergy(1, 0, HIDDEN, "silu", generator), bound=1e6).float()


def published_objective(method):
    """Return the objective of a method."""
    proximal, weight, n_inner, n_langevin, half_life, linearised = PUBLISHED[method]
    pool = TemperedPool(
        dynamics="ula",
        n_chains=N_CHAINS,
        n_temperatures=1,
        n_langevin_steps=n_inner * n_langevin,
        step_size=STEP,
    )
    return WassersteinFlow(
        pool,
        proximal=proximal,
        proximal_weight=weight,
        n_inner_steps=n_inner,
        half_life=half_life,
        linearised=linearised,
    )


def gradients_per_update(method):
    """Return Langevin steps, and gradient evaluations with those of the proximal term."""
    proximal, _, n_inner, n_langevin, *_ = PUBLISHED[method]
    return n_langevin, n_langevin + (0.0 if proximal == "none" else 3.0 + 1.0 / n_inner)


@torch.no_grad()
def divergence_of(energy):
    """Return the divergence of an energy."""
    energy = energy.double()
    parts = [-energy(x, x[:, :0]) for x in GRID.split(8000)]
    energy.float()
    return divergence(torch.cat(parts))


def published_row(method, seed, rate):
    """Train the published form and return how it ends."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(data(seed)).float()
    energy, flow = published_energy(generator), published_objective(method)
    state = flow.ready(energy, flow.tempered.init(energy, generator), 0, generator)
    optimizer = torch.optim.Adam(energy.parameters(), lr=rate)
    begin, looks = time.perf_counter(), []
    for update in range(1, N_UPDATES + 1):
        index = torch.randint(N_ROWS, (BATCH,), generator=generator)
        loss, state, _ = flow.step(energy, Batch(rows[index], index), state, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        farthest = float(state.particles.pool.abs().max())
        if not (math.isfinite(float(loss.detach())) and farthest < FARTHEST):
            return {"kl": math.inf, "worst": math.inf, "update": update, **seconds(begin)}
        if update > N_UPDATES - N_LOOKS * BETWEEN and update % BETWEEN == 0:
            looks.append(divergence_of(energy))
    pool = state.particles.pool
    moments = {"mean": float(pool.mean()), "deviation": float(pool.std())}
    return {"kl": looks[-1], "worst": max(looks), **moments, **seconds(begin)}


def default_row(seed):
    """Fit the estimator with default parameters and return how it ends."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = WassersteinFlowEBM(random_state=seed).fit(data(seed))
    log_density = torch.from_numpy(model.score_samples(GRID.numpy()))
    draws = model.sample(1000, random_state=seed)
    kl = divergence(log_density)
    moments = {"mean": float(draws.mean()), "deviation": float(draws.std())}
    return {"kl": kl, "worst": kl, "improved": model.improved_, **moments, **seconds(begin)}


def seconds(begin):
    """Return the time since `begin` as part of a row."""
    return {"seconds": time.perf_counter() - begin}


def row(method, seed, rate):
    """Return one run, on one thread."""
    with limited_threads(1):
        return default_row(seed) if method == "default" else published_row(method, seed, rate)


# Tables ------------------------------------------------------------------------------------------


def n_diverged(rows):
    """Return how many runs have diverged."""
    return sum(not r["kl"] <= MOST for r in rows)


def cells(method, rows):
    """Return what the table says about one method."""
    kls = [r["kl"] for r in rows]
    cost = ("-", "-") if method == "default" else gradients_per_update(method)
    return [
        f"{n_diverged(rows)} of {len(rows)}",
        sum(not math.isfinite(kl) for kl in kls),
        f"{np.median(kls):.3g}",
        f"{max(kls):.3g}",
        f"{np.median([r['worst'] for r in rows]):.3g}",
        f"{np.median([r.get('deviation', math.nan) for r in rows]):.3f}",
        *cost,
        f"{np.median([r['seconds'] for r in rows]):.1f}",
    ]


def failures_of(table):
    """Compare the proximal methods with the plain one."""
    if "plain" not in table:
        return []
    found, plain = [], table["plain"]
    for method in ("jko", "default"):
        if method not in table:
            continue
        rows = table[method]
        if n_diverged(rows) > SHARE * n_diverged(plain):
            found.append(f"{method}: {n_diverged(rows)} diverged, plain {n_diverged(plain)}")
        medians = [np.median([r["kl"] for r in runs]) for runs in (rows, plain)]
        if not medians[0] < medians[1]:
            found.append(f"{method}: median divergence {medians[0]:.3g}, plain {medians[1]:.3g}")
    return found


def run(methods, seeds, rate, folder):
    """Print one line per method, and what missed its bar."""
    store = Store(folder)
    print_header(store)
    table = {
        method: [
            store.row(
                f"wasserstein {method} rate{rate:g} seed{seed}", partial(row, method, seed, rate)
            )
            for seed in range(seeds)
        ]
        for method in methods
    }
    print_table(
        f"N(6, 0.1^2) from N(0, 1), {seeds} seeds, rate {rate:g}: KL by quadrature, nats",
        [
            "method",
            "diverged",
            "not finite",
            "median KL",
            "largest",
            "worst look",
            "spread",
            "steps",
            "gradients",
            "seconds",
        ],
        [[method, *cells(method, rows)] for method, rows in table.items()],
        "jko or default diverge in more than a tenth as many runs as plain, or their median KL is "
        "not lower",
        failures_of(table),
    )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each method")
    parser.add_argument("--rate", type=float, default=RATE, help="Adam's, of the published form")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    run(options.methods, options.seeds, options.rate, options.output)


if __name__ == "__main__":
    main()
