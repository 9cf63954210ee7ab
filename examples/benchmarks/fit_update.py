"""One update of the parameters beside persistent contrastive divergence of two libraries.

    python examples/benchmarks/fit_update.py               # four minutes
    python examples/benchmarks/fit_update.py --quick       # small shapes: one minute
    python examples/benchmarks/fit_update.py --output DIR  # where finished rows go

Everyone has a perceptron of two hidden layers, as many chains as rows in the batch, 20 Langevin
steps of all chains, the parameter gradient at rows and chains, Adam. Energies of the rivals see
all coordinates as features; ours has one latent among them, so that it moves a posterior particle
of every row as well, 10 steps: half as many gradient evaluations again. "Default" is our default
update instead: four temperatures of 128 chains, two exact steps, one posterior step, whatever the
batch. One torch thread, processor time, contestants in turns, the shortest turn counts.
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import torch
from langevin_rivals import PlainEnergy, our_energy
from langevin_step import SHAPES, clock, geometric_mean, shortest_turns
from report import RESULTS, Store, package_versions, print_header, print_table
from torch import nn

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import AnchoredEnergy
from sklvebm.objectives.maximum_likelihood import ParticleLikelihood
from sklvebm.optimisation import start_optimisation
from sklvebm.training import train_epoch

N_LANGEVIN, STEP_SIZE, RATE = 20, 0.01, 1e-3
LIBRARIES = ("torchebm", "ebmkit")
UPDATES = 4  # of a turn


def gaussian_reference(width):
    """Return a standard normal reference with one latent, uncorrelated with the features."""
    d = width - 1
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, d),
        torch.eye(d)[None],
        latent_map=torch.zeros(1, d),
        latent_variance=torch.ones(1),
        location=torch.zeros(d),
    )


def our_update(shape, activation, device="cpu", **changes):
    """Return a function that makes one update of ours."""
    n_chains, width, hidden = shape
    network = our_energy(width, hidden, activation, device).network
    energy = AnchoredEnergy(gaussian_reference(width).float().to(device), network)
    settings = {
        "dynamics": "ula",
        "n_particles": 1,
        "n_chains": n_chains,
        "n_temperatures": 1,
        "n_langevin_steps": N_LANGEVIN,
        "step_size": STEP_SIZE,
    }
    objective = ParticleLikelihood(**settings | changes)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n_chains, width - 1, generator=generator, device=device)
    box = [
        start_optimisation(energy, learning_rate=RATE, alpha=0.0),
        objective.init(energy, n_chains, generator=generator),
    ]

    def update():
        box[0], box[1], _ = train_epoch(
            box[0],
            objective,
            x,
            box[1],
            batch_size=n_chains,
            learning_rate=RATE,
            generator=generator,
        )

    return update


def rival_energy(shape, activation, device):
    """Return the rivals' network with trainable parameters, on all coordinates."""
    _, width, hidden = shape
    return PlainEnergy(our_energy(width, hidden, activation, device)).requires_grad_(True)


def rival_update(energy, loss, x):
    """Return a function that makes one update of a library's loss."""
    optimiser = torch.optim.Adam(energy.parameters(), lr=RATE)

    def update():
        optimiser.zero_grad(set_to_none=True)
        loss(x).backward()
        nn.utils.clip_grad_norm_(energy.parameters(), 10.0)
        optimiser.step()

    return update


def torchebm_update(shape, activation, device="cpu"):
    """Return a function that makes one update of torchebm."""
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.plain = rival_energy(shape, activation, device)

        def forward(self, u):
            """Return energies in nats, (B,)."""
            return self.plain(u)

    energy = Model()
    n_chains, width, _ = shape
    loss = ContrastiveDivergence(
        energy,
        # noise sqrt(2 step)
        LangevinDynamics(energy, step_size=STEP_SIZE, noise_scale=1.0, device=torch.device(device)),
        k_steps=N_LANGEVIN,
        persistent=True,
        buffer_size=n_chains,
        new_sample_ratio=0.0,
        energy_reg_weight=0.0,
        device=torch.device(device),
    )
    loss.initialize_buffer((width,), init_noise_scale=1.0)
    x = torch.randn(n_chains, width, device=device)
    return rival_update(energy, lambda x: loss(x)[0], x)


def ebmkit_update(shape, activation, device="cpu"):
    """Return a function that makes one update of ebmkit."""
    from ebm import ContrastiveDivergence, LangevinDynamics, ReplayBuffer

    energy = rival_energy(shape, activation, device)
    n_chains, width, _ = shape
    loss = ContrastiveDivergence(
        LangevinDynamics(step_size=STEP_SIZE, steps=N_LANGEVIN),
        buffer=ReplayBuffer(n_chains, (width,), reinit_prob=0.0),
    )
    x = torch.randn(n_chains, width, device=device)
    return rival_update(energy, lambda x: loss(energy, x).loss, x)


def update_row(shape, activation, budget):
    """Time one update of all contestants."""
    with torch.random.fork_rng(devices=[]):  # the libraries draw from the global generator
        torch.manual_seed(0)
        updates = {
            "sklvebm": our_update(shape, activation),
            "torchebm": torchebm_update(shape, activation),
            "ebmkit": ebmkit_update(shape, activation),
            "default": our_update(
                shape,
                activation,
                dynamics="crank-nicolson",
                n_chains=128,
                n_temperatures=4,
                n_langevin_steps=2,
                step_size=None,
            ),
        }
        runners = {name: partial(several, update) for name, update in updates.items()}
        seconds = shortest_turns(runners, clock(1, "cpu"), budget)
    return {"seconds": {name: each / UPDATES for name, each in seconds.items()}}


def several(update):
    """Make the updates of a turn."""
    for _ in range(UPDATES):
        update()


def run(shapes, budget, folder):
    """Print one table per activation."""
    torch.set_num_threads(1)
    store = Store(folder)
    print_header(store)
    print(package_versions("torchebm", "ebmkit"))
    for activation in ("tanh", "silu"):
        lines, ratios = [], []
        for shape in shapes:
            key = f"update {activation} {'x'.join(map(str, shape))}"
            seconds = store.row(key, partial(update_row, shape, activation, budget))["seconds"]
            ratio = min(seconds[name] for name in LIBRARIES) / seconds["sklvebm"]
            ratios.append(ratio)
            label = "{:,} x {} / {}".format(*shape)
            lines.append([label, *(f"{1e3 * each:.2f}" for each in seconds.values())])
            lines[-1].append(f"{ratio:.2f}")
        mean = f"{geometric_mean(ratios):.2f}"
        print_table(
            f"{activation}, 1 thread: milliseconds of an update",
            ["chains x width / units", "sklvebm", *LIBRARIES, "default", "ratio"],
            [*lines, ["geometric mean", *[""] * 4, mean]],
            "an update takes longer than the faster library's",
            [f"{shape}: {r:.2f}" for shape, r in zip(shapes, ratios, strict=True) if r < 1.0],
        )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if options.quick:
        run(SHAPES[:2], 5.0, options.output / "quick")
    else:
        run(SHAPES, 10.0, options.output)


if __name__ == "__main__":
    main()
