r"""The explicit energy of a potential at one time: its normaliser and its Metropolis moves.

.. math:: E_t(x) = -\frac{t \Phi(x, t) - |x|^2 / 2}{1 - t}
              = -\log q_t(x) - t G(x, t) + \mathrm{const}
          \qquad \text{(docs/theory/potential_flow.md, eq. 2)}

It differs from the energy of the reference's marginal at this time by a bounded correction.
Annealing between both normalises it.
"""

import torch
from torch import Tensor

from sklvebm.flows.ode import graded_times
from sklvebm.flows.potentials import AnchoredPotential, finest_scale, transport
from sklvebm.inference.equilibration import Equilibrated, bracketed, equilibrated, moved
from sklvebm.inference.missed_components import missed_components
from sklvebm.mcmc.langevin import start
from sklvebm.mcmc.state import Target
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.targets import joint_target
from sklvebm.smc.log_partition import LogPartition, Normalisation

_N_BURN_IN = 50  # moves of the flow's draws before they start reverse annealing


class PotentialSlice:
    """A potential at one time as an energy without latents, anchored on the marginal at that time.

    Parameters
    ----------
    potential : AnchoredPotential
        With a network.
    time : float
        In (0, 1].
    """

    def __init__(self, potential: AnchoredPotential, time: float) -> None:
        self.potential, self.time = potential, time
        weights, means, covariances = potential.mixture.moments(time)
        self.reference = MixtureReference(
            weights,
            means,
            covariances,
            covariance_of=potential.mixture.covariance_of,
            latent_map=means.new_zeros(0, means.shape[1]),
            latent_variance=means.new_ones(0),
            location=weights @ means,
        )
        self.n_features, self.n_latents = means.shape[1], 0

    def correction(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `-t G` (B,) at rows x (B, D), nats; there are no latents z (B, 0)."""
        return -self.time * self.potential.correction(x, torch.full_like(x[:, 0], self.time)).to(x)

    def correction_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `-t G` (B,) with its gradient in x (B, D)."""
        jet = self.potential.jet(x, torch.full_like(x[:, 0], self.time))
        return -self.time * jet.value.to(x), -self.time * jet.grad.to(x)

    def target(self) -> Target:
        """Return the path from the reference's marginal to the energy; positions y are (B, D)."""
        return joint_target(self, self.correction_and_grad)


def polish(slice_: PotentialSlice, x: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
    """Move rows x (B, D) by Metropolis-adjusted steps with the slice as stationary density."""
    chains = start(slice_.reference.from_features(x.double()), slice_.target())
    chains, _ = moved(slice_, chains, n_steps, generator)
    return slice_.reference.to_features(chains.position)


def normalise_slice(
    slice_: PotentialSlice,
    n_walkers: int,
    n_flow_steps: int,
    generator: torch.Generator,
    tolerance: float,
) -> Normalisation:
    """Bracket the slice's log normaliser by annealing in both directions.

    Parameters
    ----------
    slice_ : PotentialSlice
        The energy.
    n_walkers : int
        Walkers in each direction. Walkers of the reverse direction are draws of the flow, moved by
        Metropolis-adjusted steps under the energy.
    n_flow_steps : int
        Integrator steps of the flow.
    generator : torch.Generator
        Source of all noise.
    tolerance : float
        Width of the bracket, in nats, that ends the doubling of annealing steps.

    Returns
    -------
    normalisation : Normalisation
        log Z relative to the normalised reference.

    Notes
    -----
    The correction can up-weight components in which no walker of the reference starts. Forward
    annealing then starts from a reference with raised weights. Reverse annealing then starts from
    annealed walkers instead of draws of the flow, which may not reach these components.
    """
    found = _flow_chains(slice_, n_walkers, n_flow_steps, generator)
    missed = missed_components(slice_, n_walkers, generator)
    if len(missed.index) > 0:
        annealed = equilibrated(slice_, n_walkers, missed, generator)
        found = found if annealed.energy is slice_ else annealed
    return bracketed(found, tolerance, generator)


def _flow_chains(
    slice_: PotentialSlice, n: int, n_flow_steps: int, generator: torch.Generator
) -> Equilibrated:
    """Return n chains that start at draws of the flow and move on the slice's density."""
    like = slice_.reference.means
    noise = torch.randn(
        (n, slice_.n_features), generator=generator, dtype=like.dtype, device=like.device
    )
    times = graded_times(n_flow_steps, finest_scale(slice_.potential.mixture), slice_.time)
    draws = slice_.reference.from_features(transport(slice_.potential, noise, times))
    chains = start(draws, slice_.target())
    return Equilibrated(slice_, *moved(slice_, chains, _N_BURN_IN, generator))


EXACT = LogPartition(0.0, 0.0, 0.0, 0.0, float("inf"))  # log Z of a potential without correction
