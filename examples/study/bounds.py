"""Three bounds on one decoder: an encoder's, a free Gaussian's for every row, and particles'.

Fitted models differ in more than their bounds, so here a single one is asked three times: the
decoder of a `VAE`, trained for the first of the three. Every bound is in expectation at most the
exact mean log-density of the same rows under that decoder; the higher, the tighter. A fourth,
importance-weighted from a mixture around posterior particles with many draws, comes nearest to it.
"""

from functools import partial

import numpy as np
import torch

from sklvebm.baselines import VAE
from sklvebm.baselines._bounds import diagonal_gaussians, weighted_latents
from sklvebm.baselines._inference import whitened_target
from sklvebm.baselines.non_amortized_vi import free_gaussians, improved
from sklvebm.baselines.particle_gradient_descent import ParticleObjective
from sklvebm.baselines.vae import encode
from sklvebm.inference.posterior import weighted_particles
from sklvebm.mcmc.state import IndependentNoise, stack_rows
from sklvebm.smc.quasi_random import latent_nodes
from study.cells import median_and_worst
from study.sets import SETS, rows_of
from study.tables import markdown, reader

N_TRAIN, N_SCORED = 10_000, 500
N_DRAWS = 256  # of each Gaussian
N_NODES, N_STEPS, RATE = 128, 200, 0.02  # what a free Gaussian is optimised with
N_PARTICLES = 64  # of each row
STAGES = ((16, 0.9), (64, 0.9), (256, 0.7))  # annealing, as estimators score rows
STEP_SIZE = 0.5  # squared whitened units per nat
N_WEIGHTED = 4096
BOUNDS = ("encoder", "free Gaussian", "particles", "importance-weighted")


def gaussian_bound(model, x, q, generator):
    """Return `E_q[log p(x, z) - log q(z)]` of rows x for one Gaussian each, (N,), nats."""
    nodes = torch.randn((len(x), N_DRAWS, model.n_latents), generator=generator, dtype=x.dtype)
    z = q.mean + torch.einsum("nij,nkj->nki", q.factor[:, 0], nodes)
    return (model.log_joint(x.unsqueeze(1), z) - q.log_density(z)).mean(1)


def best_gaussians(model, x, mean, scale, seed):
    """Return diagonal Gaussians for rows x whose bound was climbed from means and scales (N, L)."""
    q = free_gaussians(mean, scale)
    nodes = latent_nodes(N_NODES, model.n_latents, seed + 1).to(x)
    for step in range(N_STEPS):
        q = improved(model, x, q, nodes, RATE * (1.0 - step / N_STEPS))
    return diagonal_gaussians(*q.mean_and_scale())


def particle_bound(model, x, q, generator):
    """Return the log mean weight of particles annealed from q to the posteriors, (N,), nats."""

    def target(rows):
        start = type(q)(*(stack_rows(part[rows], N_PARTICLES) for part in q))
        return whitened_target(model, stack_rows(x[rows], N_PARTICLES), start)

    base = torch.randn((len(x), N_PARTICLES, model.n_latents), generator=generator, dtype=x.dtype)
    log_det = torch.linalg.slogdet(q.factor[:, 0]).logabsdet
    particles = weighted_particles(
        target,
        base,
        step_size=STEP_SIZE,
        make_noise=lambda stage: IndependentNoise(generator),
        stages=STAGES,
    )
    half = 0.5 * model.n_latents * np.log(2.0 * np.pi)  # of the normal base, which is left out
    return particles.log_total_weight() + log_det + half


@torch.no_grad()
def bounds_of(model, x, seed):
    """Return all bounds of standardised rows x under one decoder, (N,) each, nats."""
    generator = torch.Generator().manual_seed(seed)
    encoded = encode(model, x)
    free = best_gaussians(model, x, *encoded, seed)
    around = ParticleObjective(n_particles=1, n_langevin_steps=1).posterior(
        model, x, seed, thorough=True
    )
    found = (
        gaussian_bound(model, x, diagonal_gaussians(*encoded), generator),
        gaussian_bound(model, x, free, generator),
        particle_bound(model, x, free, generator),
        weighted_latents(model, x, around, N_WEIGHTED, seed).log_evidence(),
    )
    return dict(zip(BOUNDS, (each.numpy() for each in found), strict=True))


def compared(set_name, seed, sizes):
    """Fit a decoder to the rows of one seed; return all bounds of its test rows."""
    rows = rows_of(set_name, 200 + seed, sizes)  # not the rows of the tables
    train, test = rows.train[:N_TRAIN], rows.test[:N_SCORED]
    limit = {} if sizes.max_iter is None else {"max_iter": sizes.max_iter}
    fitted = VAE(SETS[set_name].n_latents, random_state=seed, **limit).fit(train)._model
    values = bounds_of(fitted.network, torch.from_numpy(fitted.standardisation.apply(test)), seed)
    root = np.sqrt(len(test))
    cell = {"n_train": len(train), "n_scored": len(test)}
    for k, name in enumerate(BOUNDS):
        cell[name] = float(values[name].mean()) + fitted.standardisation.log_jacobian
        if k:
            gain = values[name] - values[BOUNDS[k - 1]]
            cell[f"gain of {name}"] = [float(gain.mean()), float(gain.std(ddof=1) / root)]
    return cell


def table(cells, sets, seeds, sizes):
    """Return the table of all sets: medians over seeds of bounds, and the least gain in sigmas."""
    lines = []
    for set_name in sets:
        row = [
            cells.cell(f"bounds {set_name} seed{seed}", partial(compared, set_name, seed, sizes))
            for seed in range(seeds)
        ]
        done = [cell for cell in row if cell and BOUNDS[0] in cell]
        if not done:
            lines.append([set_name, "0", *["–"] * (2 * len(BOUNDS) - 1)])
            continue
        middle = [f"{median_and_worst(done, reader(name))[0]:.3f}" for name in BOUNDS]
        lines.append([set_name, str(len(done)), *middle, *(gain(done, k) for k in range(1, 4))])
    columns = ["set", "seeds", *BOUNDS]
    columns += [f"{BOUNDS[k]} less {BOUNDS[k - 1]}" for k in range(1, len(BOUNDS))]
    n_rows, n_scored = min(N_TRAIN, sizes.n_train), min(N_SCORED, sizes.n_test)
    title = f"### Bounds on one decoder, {n_rows} rows, {n_scored} scored: median, nats"
    return markdown(title, columns, lines)


def gain(done, k):
    """Return median and least gain over seeds, each with its standard error over rows."""
    gains = sorted(cell[f"gain of {BOUNDS[k]}"] for cell in done)
    middle, least = gains[len(gains) // 2], gains[0]
    return f"{middle[0]:.3f} ± {middle[1]:.3f} (least {least[0]:.3f} ± {least[1]:.3f})"
