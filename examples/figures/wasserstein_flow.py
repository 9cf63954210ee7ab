"""Near-proximal steps: how closely particles follow the flow, far data, and an energy of moons.

    python examples/figures/wasserstein_flow.py [--output docs/images/wasserstein_flow.png]

First, the gradient flow of the relative entropy from N(2, 0.5^2) to N(0, 1), which is known: the
distance of three discretisations from it at time 1. Second, an energy on the base N(0, 1) learns
N(6, 0.1^2) with unadjusted Langevin particles: by persistent contrastive divergence, and by inner
problems that are the relative entropy itself, without and with the proximal term. Then two moons,
learned from a single Gaussian: draws, and the normalised density.
"""

import argparse
import math
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning

from sklvebm import AnchoredEnergy, MixtureReference, MLPEnergy, WassersteinFlowEBM
from sklvebm.mcmc.state import Batch
from sklvebm.objectives.proximal import WassersteinFlow
from sklvebm.objectives.tempered_pool import TemperedPool

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "wasserstein_flow.png"
MEAN, DEVIATION = 2.0, 0.5
STEPS = (4, 8, 16, 32, 64, 128)
# proximal term and inner updates per move; the first keeps the weights of its particles
METHODS = {
    "plain": ("none", 1, "tab:red"),
    "entropy, no proximal term": ("none", 2, "tab:orange"),
    "entropy and proximal term": ("jko", 2, "tab:blue"),
}
N_UPDATES, BETWEEN = 800, 10
GRID = torch.linspace(-30.0, 42.0, 36_001, dtype=torch.float64)[:, None]
SIDE, DEPTH = 160, 8.0  # grid of the moons' density, and nats that its colours resolve


# The flow ----------------------------------------------------------------------------------------


def euler(mean, variance, h):
    """Return the law after one explicit step."""
    return (1.0 - h) * mean, (1.0 - h) ** 2 * variance + 2.0 * h


def heun(mean, variance, h):
    """Return the law after one step of the stochastic Heun method."""
    factor = 1.0 - h + 0.5 * h * h
    return factor * mean, factor**2 * variance + 2.0 * h * (1.0 - 0.5 * h) ** 2


def jko(mean, variance, h):
    """Return the law after one proximal step in the Wasserstein distance."""
    deviation = math.sqrt(variance)
    root = math.sqrt(variance + 4.0 * h * (1.0 + h))
    return mean / (1.0 + h), ((deviation + root) / (2.0 * (1.0 + h))) ** 2


def distance(step, n_steps):
    """Return the Wasserstein distance from the exact flow at time 1."""
    law = MEAN, DEVIATION**2
    for _ in range(n_steps):
        law = step(*law, 1.0 / n_steps)
    exact = math.sqrt(1.0 + (DEVIATION**2 - 1.0) * math.exp(-2.0))
    return math.hypot(law[0] - MEAN * math.exp(-1.0), math.sqrt(law[1]) - exact)


def draw_orders(panel):
    """Draw distances against the length of a step."""
    h = 1.0 / np.array(STEPS)
    for step, label, colour in [
        (euler, "explicit (ULA)", "tab:red"),
        (jko, "proximal (JKO)", "tab:blue"),
        (heun, "second order (Heun)", "tab:green"),
    ]:
        panel.loglog(h, [distance(step, n) for n in STEPS], "o-", c=colour, label=label, ms=4)
    for order in (1, 2):
        panel.loglog(h, 0.06 * h**order, ":", c="0.6", lw=1)
    panel.set(xlabel="step", ylabel="distance from the flow", title="following the flow")
    panel.legend(frameon=False)


# Far data ----------------------------------------------------------------------------------------


def base():
    """Return N(0, 1) as a reference without latents."""
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, 1),
        torch.ones(1, 1, 1),
        latent_map=torch.zeros(0, 1),
        latent_variance=torch.zeros(0),
        location=torch.zeros(1),
    )


@torch.no_grad()
def divergence(energy):
    """Return KL(N(6, 0.1^2) || model) by quadrature, nats."""
    energy = energy.double()
    log_density, cell = -energy(GRID, GRID[:, :0]), float(GRID[1] - GRID[0])
    energy.float()
    log_p = -0.5 * ((GRID[:, 0] - 6.0) / 0.1).square() - math.log(0.1 * math.sqrt(2.0 * math.pi))
    log_z = torch.logsumexp(log_density, 0) + math.log(cell)
    return float((log_p.exp() * (log_p - log_density + log_z)).sum() * cell)


def learned_far_away(proximal, n_inner, seed=1):
    """Return the divergence during training."""
    generator = torch.Generator().manual_seed(seed)
    rows = 6.0 + 0.1 * torch.randn(500, 1, generator=generator)
    network = MLPEnergy(1, 0, (32, 32), "silu", generator)
    energy = AnchoredEnergy(base(), network, bound=1e6).float()
    pool = TemperedPool(
        dynamics="ula",
        n_chains=256,
        n_temperatures=1,
        n_langevin_steps=20 * n_inner,
        step_size=2e-3,
    )
    flow = WassersteinFlow(
        pool,
        proximal=proximal,
        proximal_weight=0.01,
        n_inner_steps=n_inner,
        linearised=n_inner == 1,
    )
    state = flow.ready(energy, flow.tempered.init(energy, generator), 0, generator)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.01)
    found = [divergence(energy)]
    for update in range(1, N_UPDATES + 1):
        index = torch.randint(len(rows), (128,), generator=generator)
        loss, state, _ = flow.step(energy, Batch(rows[index], index), state, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % BETWEEN == 0:
            found.append(divergence(energy))
    return found


def draw_far_data(panel):
    """Draw the divergence of three ways to learn."""
    for label, (proximal, n_inner, colour) in METHODS.items():
        found = learned_far_away(proximal, n_inner)
        print(
            f"{label}: {found[-1]:.3g} nats, largest of the last hundred updates "
            f"{max(found[-10:]):.3g}"
        )
        panel.semilogy(BETWEEN * np.arange(len(found)), found, c=colour, lw=1, label=label)
    panel.set(xlabel="update", ylabel="KL, nats", title="data six deviations from the start")
    panel.legend(frameon=False, loc=(0.3, 0.6))


# Moons -------------------------------------------------------------------------------------------


def draw_moons(panels):
    """Fit the moons from one Gaussian and draw what was learned."""
    X, _ = make_moons(2000, noise=0.1, random_state=0)
    model = WassersteinFlowEBM(reference="gaussian", random_state=0).fit(X)
    print(f"two moons: {model.n_iter_} epochs\n{model.diagnostics_.report()}")
    panels[0].scatter(*X.T, s=2, c="0.75", lw=0, label="data")
    panels[0].scatter(*model.sample(1000, random_state=0).T, s=3, c="C0", lw=0, label="draws")
    panels[0].legend(frameon=False, markerscale=3, loc="upper right")
    panels[0].set_title("draws of the model")
    axes = np.linspace(-1.7, 2.7, SIDE), np.linspace(-1.3, 1.8, SIDE)
    grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    log_density = model.score_samples(grid).reshape(SIDE, SIDE)
    top = log_density.max()
    image = panels[1].pcolormesh(*axes, log_density, vmin=top - DEPTH, vmax=top, cmap="magma")
    plt.colorbar(image, ax=panels[1], label="log-density, nats", shrink=0.8)
    panels[1].set_title("normalised log-density")
    for panel in panels:
        panel.set(
            xlim=axes[0][[0, -1]], ylim=axes[1][[0, -1]], aspect="equal", xticks=(), yticks=()
        )


def main(arguments=None):
    """Compute everything, draw and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIGURE)
    output = parser.parse_args(arguments).output
    warnings.simplefilter("ignore", ConvergenceWarning)
    figure, panels = plt.subplots(1, 4, figsize=(17, 4.2), layout="constrained")
    draw_orders(panels[0])
    draw_far_data(panels[1])
    draw_moons(panels[2:])
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=72)
    print(f"Figure: {output}")


if __name__ == "__main__":
    main()
