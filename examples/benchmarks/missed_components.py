"""Two ways to count components that annealing misses: add their mass to log Z, or change the path.

    python examples/benchmarks/missed_components.py   # about a minute

One component of a mixture is narrow, far away and rare, and the correction lowers the energy there
by a constant, so that log Z is known in closed form. Both ways get the same walkers and seeds.
"""

import math
import time

import numpy as np
import torch
from report import RESULTS, Store, print_header, print_table

from sklvebm.backends import select_correction_and_grad
from sklvebm.inference.missed_components import (
    Rebased,
    missed_components,
    tilted_reference,
    with_missed_mass,
)
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy, Energy
from sklvebm.models.targets import joint_target
from sklvebm.smc.annealing import Ladder
from sklvebm.smc.log_partition import estimate_log_partition

N_WALKERS, N_SEEDS = 512, 20
CASES = ((1e-5, 11.0), (1e-5, 13.0), (3e-4, 8.0), (5e-4, 8.0))  # weight, lift in nats
N_COMPONENTS = (3, 200)
N_TILTS = 2  # of the path; the first has a log Z that misses the component
LADDER = Ladder(
    *(torch.tensor(part, dtype=torch.float64) for part in ([0.0, 1.0], [1.0, 0.5], [4.0, 1.0]))
)


class Lift(Energy):
    """Lowers the energy by a constant, nats, beyond x_0 = 20, where only the rare component is."""

    n_features, n_latents = 2, 1

    def __init__(self, lift):
        super().__init__()
        self.lift = lift

    def forward(self, x, z):
        """Return energies, (B,), in nats."""
        return -self.lift * torch.sigmoid(5.0 * (x[:, 0] - 20.0)) + 0.0 * z[:, 0]


def lifted_energy(weight, lift, n_components):
    """Return the energy on `n_components`, the last of which has the weight."""
    n = n_components - 1
    means = 2.0 * torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    reference = MixtureReference(
        torch.cat([torch.full((n,), (1.0 - weight) / n), torch.tensor([weight])]),
        torch.cat([means, torch.tensor([[40.0, 0.0]])]),
        torch.cat([0.5 * torch.eye(2).expand(n, 2, 2), 0.01 * torch.eye(2)[None]]),
        latent_map=torch.tensor([[0.5, 0.0]]),
        latent_variance=torch.tensor([0.75]),
        location=torch.zeros(2),
    )
    return AnchoredEnergy(reference, Lift(lift), bound=1e9)


def bracket(energy, changes_path, seed):
    """Return the bracket of log Z with the missed component counted in one of the ways."""
    noise = IndependentNoise(torch.Generator().manual_seed(seed))
    missed = missed_components(energy, N_WALKERS, noise.generator)
    draws = energy.reference.sample(N_WALKERS, noise.generator)  # none in the rare component
    target = joint_target(energy, select_correction_and_grad(energy))
    found = estimate(energy.reference, target, draws, noise)
    if not changes_path:
        return with_missed_mass(found, missed)
    for _ in range(N_TILTS):
        base = tilted_reference(energy.reference, missed, found.value)
        found = estimate(base, Rebased(energy, base).target(), draws, noise)
    return found


def estimate(base, target, draws, noise):
    """Return the bracket of log Z by annealing in both directions on a path from `base`."""
    return estimate_log_partition(
        target,
        lambda: base.sample(N_WALKERS, noise.generator, stratified=True),
        draws,
        LADDER,
        noise=noise,
        tolerance=0.05,
        max_steps=32,
    ).estimate


def row(weight, lift, n_components, changes_path):
    """Return one line of the table: errors over all seeds, bracket, processor seconds."""
    energy = lifted_energy(weight, lift, n_components)
    log_z = math.log(1.0 - weight + weight * math.exp(lift))
    begin = time.process_time()
    found = [bracket(energy, changes_path, seed) for seed in range(N_SEEDS)]
    seconds = (time.process_time() - begin) / N_SEEDS
    errors = np.array([f.value - log_z for f in found])
    n_holding = sum(f.lower - 1e-6 <= log_z <= f.upper + 1e-6 for f in found)
    return [
        f"{weight:g}",
        f"{lift:g}",
        str(n_components),
        "path changed" if changes_path else "mass added",
        f"{np.median(errors):+.4f}",
        f"{abs(errors).max():.4f}",
        f"{np.median([f.upper - f.lower for f in found]):.2f}",
        f"{n_holding} of {N_SEEDS}",
        f"{seconds:.2f}",
    ]


def main():
    """Print the table."""
    torch.set_num_threads(1)
    print_header(Store(RESULTS))
    columns = ["weight", "lift", "components", "way", "median error", "largest error", "bracket"]
    columns += ["holds log Z", "processor s"]
    lines = [
        row(*case, n, changes_path)
        for case in CASES
        for n in N_COMPONENTS
        for changes_path in (False, True)
    ]
    added = [line for line in lines if line[3] == "mass added"]
    failures = [line for line in added if not line[-2].startswith(f"{N_SEEDS} ")]
    title = "Log Z with a missed component: errors and width of the bracket in nats"
    fails = "(9a) gives a bracket that does not hold log Z"
    print_table(title, columns, lines, fails, failures)


if __name__ == "__main__":
    main()
