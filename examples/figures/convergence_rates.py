r"""How fast do the particles converge, and to what? A figure for a target known in closed form.

    python examples/figures/convergence_rates.py [--output docs/images/convergence_rates.png]

Training moves two particle systems: a joint pool of `(x, z)`, which stands for the model, and
posterior particles `z | x`, which stand for the rows. Here the parameters are held fixed and the
energy is quadratic, so that both targets are Gaussian and everything can be compared with theory:

* a Gaussian with precision Λ has the log-Sobolev constant ρ, its smallest eigenvalue, and the
  diffusion forgets its start at `KL(q_t || p) <= exp(-2 ρ t) KL(q_0 || p)`;
* the unadjusted kernel takes steps of size h instead. Its law stays Gaussian, with
  `m <- (I - hΛ) m` and `C <- (I - hΛ) C (I - hΛ) + 2hI`, and ends in a bias of order h²;
* particles are a sample of that law.

A divergence estimated from n particles never falls much below (number of moments) / (2n), because
their mean and covariance are estimates: with 60,000 of them about 1e-4 for the pool.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from sklvebm.backends import select_correction_and_grad
from sklvebm.mcmc.langevin import start, ula_step
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import BridgedEnergy, LinearGaussianEnergy
from sklvebm.models.targets import joint_target, latent_target

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "convergence_rates.png"
N_FEATURES, N_LATENTS = 2, 2
N_PARTICLES = 60_000
STEP_SIZES = {0.2: "tab:red", 0.05: "tab:blue"}
FINAL_TIME = 8.0
N_LOOKS = 20  # times at which the particles are measured
ROW = torch.tensor([[0.8, -0.6]], dtype=torch.float64)


def model():
    """Return a correlated quadratic energy on a standard normal reference.

    With this reference the coordinates of the particles are `(x, z)` themselves.
    """
    network = LinearGaussianEnergy(N_FEATURES, N_LATENTS).double()
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        network.factor.add_(0.25 * noise)
    reference = MixtureReference(
        torch.ones(1),
        torch.zeros(1, N_FEATURES),
        torch.eye(N_FEATURES)[None],
        latent_map=torch.zeros(N_LATENTS, N_FEATURES),
        latent_variance=torch.ones(N_LATENTS),
        location=torch.zeros(N_FEATURES),
    )
    return BridgedEnergy(reference, network).requires_grad_(False)


def systems(energy):
    """Return, for each particle system, what it moves on and the mean and precision of that."""
    gradient = select_correction_and_grad(energy)
    network, precision = energy.network, energy.network.precision()
    rows = ROW.expand(N_PARTICLES, -1)
    return {
        "joint pool (x, z)": (joint_target(energy, gradient), network.mean, precision),
        "posterior particles z | x": (
            latent_target(energy, rows, gradient),
            network.posterior(ROW)[0][0],
            precision[N_FEATURES:, N_FEATURES:],
        ),
    }


def divergence(mean, covariance, goal, precision):
    """Return KL(N(mean, covariance) || N(goal, precision^-1)) in nats."""
    return float(
        torch.distributions.kl_divergence(
            torch.distributions.MultivariateNormal(mean, covariance),
            torch.distributions.MultivariateNormal(goal, precision_matrix=precision),
        )
    )


def first_law(goal, precision):
    """Return the mean and covariance that particles start with: far off, and too wide."""
    slowest = torch.linalg.eigh(precision)[1][:, 0]
    return goal + 4.0 * slowest, 3.0 * torch.eye(len(goal), dtype=torch.float64)


def exact_divergences(goal, precision, h):
    """Return the divergence of the kernel's own law after every step, from the start on."""
    mean, covariance = first_law(goal, precision)
    identity = torch.eye(len(goal), dtype=torch.float64)
    contraction = identity - h * precision
    values = []
    for _ in range(round(FINAL_TIME / h) + 1):
        values.append(divergence(mean, covariance, goal, precision))
        mean = goal + contraction @ (mean - goal)
        covariance = contraction @ covariance @ contraction + 2.0 * h * identity
    return values


def bias(goal, precision, h):
    """Return the divergence that steps of size h end in, however long they run."""
    identity = torch.eye(len(goal), dtype=torch.float64)
    covariance = torch.linalg.inv(precision @ (identity - 0.5 * h * precision))
    return divergence(goal, covariance, goal, precision)


def measured_divergences(target, goal, precision, h):
    """Return times and divergences of a cloud of particles, matched by mean and covariance."""
    generator = torch.Generator().manual_seed(0)
    mean, covariance = first_law(goal, precision)
    normal = torch.randn(N_PARTICLES, len(mean), generator=generator, dtype=torch.float64)
    chains = start(mean + normal @ torch.linalg.cholesky(covariance).T, target)
    noise = IndependentNoise(generator)
    beta = torch.ones(N_PARTICLES, dtype=torch.float64)
    n_steps = round(FINAL_TIME / h)
    times, values = [], []
    for k in range(n_steps + 1):
        if k % (n_steps // N_LOOKS) == 0:
            cloud = chains.position.mean(0), torch.cov(chains.position.T)
            times.append(k * h)
            values.append(divergence(*cloud, goal, precision))
        chains, _ = ula_step(chains, target, beta=beta, step_size=h * beta, noise=noise)
    return times, values


def draw(panel, title, target, goal, precision):
    """Fill one panel and print what it shows."""
    rho = float(torch.linalg.eigvalsh(precision)[0])
    for h, colour in STEP_SIZES.items():
        exact, floor = exact_divergences(goal, precision, h), bias(goal, precision, h)
        times, measured = measured_divergences(target, goal, precision, h)
        panel.plot([k * h for k in range(len(exact))], exact, color=colour, lw=1.2)
        panel.plot(times, measured, "o", color=colour, ms=4, mfc="white")
        panel.axhline(floor, color=colour, ls=":", lw=1.2)
        panel.annotate(
            f"bias of h = {h:g}: {floor:.2g}",
            (0.0, floor),
            xytext=(3, 3),
            textcoords="offset points",
            color=colour,
            fontsize=8,
        )
        print(
            f"{title}, rho {rho:.2f}, h {h:g}: KL {measured[0]:.1f} -> {measured[-1]:.2e} "
            f"(exact law {exact[-1]:.2e}, bias {floor:.2e})"
        )
    times = torch.linspace(0.0, FINAL_TIME, 100)
    panel.plot(times, exact[0] * torch.exp(-2.0 * rho * times), color="black", ls="--", lw=1.2)
    panel.set(yscale="log", xlim=(-0.2, FINAL_TIME + 0.2), ylim=(3e-4, 30.0))
    panel.set(title=f"{title}, ρ = {rho:.2f}", xlabel="time: steps × step size h")


def legend_entries():
    """Return one neutral handle for each kind of line; colours are the step sizes."""
    line = matplotlib.lines.Line2D
    return [
        line([], [], color="grey", marker="o", ls="", mfc="white", label="particles"),
        line([], [], color="grey", label="exact law of the kernel"),
        line([], [], color="black", ls="--", label=r"envelope $e^{-2\rho t}\,\mathrm{KL}_0$"),
        line([], [], color="grey", ls=":", label="bias of the step size"),
        *(line([], [], color=c, lw=4, label=f"h = {h:g}") for h, c in STEP_SIZES.items()),
    ]


def main():
    """Measure both systems, draw them side by side and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIGURE)
    output = parser.parse_args().output
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, (title, system) in zip(panels, systems(model()).items(), strict=True):
        draw(panel, title, *system)
    panels[0].set_ylabel("KL to the target, nats")
    panels[1].legend(handles=legend_entries(), fontsize=8, loc="upper right")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"Figure: {output}")


if __name__ == "__main__":
    main()
