"""Chains of a density from draws of its reference: what they follow, and where they start."""

import math

import torch

import sklvebm.inference.equilibration
from sklvebm.inference.equilibration import equilibrated
from sklvebm.inference.missed_components import Rebased, missed_components
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.targets import autograd_correction_and_grad, joint_target

RARE, LIFT = 1e-5, 10.0
LOG_Z = math.log(1.0 - RARE + RARE * math.exp(LIFT))
HELD = RARE * math.exp(LIFT - LOG_Z)
N_CHAINS = 1000


class Lifted:
    """A mixture with a missed component far out that its correction lifts."""

    n_features, n_latents = 1, 0

    def __init__(self, lift):
        self.lift = lift
        self.reference = MixtureReference(
            torch.tensor([0.6, 0.4 - RARE, RARE]),
            torch.tensor([[-1.0], [1.0], [30.0]]),
            torch.tensor([[[1.0]], [[0.3]], [[0.01]]]),
            latent_map=torch.zeros(0, 1),
            latent_variance=torch.ones(0),
            location=torch.zeros(1),
        )

    def correction(self, x, z):
        return -self.lift * torch.sigmoid(5.0 * (x[:, 0] - 20.0))

    def target(self):
        return joint_target(self, autograd_correction_and_grad(self))


def run(energy, seed=0):
    """Return chains and their place in the units of the energy."""
    generator = torch.Generator().manual_seed(seed)
    rare = missed_components(energy, N_CHAINS, generator)
    found = equilibrated(energy, N_CHAINS, rare, generator)
    return found, energy.reference.to_features(found.chains.position)[:, 0]


def test_without_lifted_components_the_path_stays_and_chains_follow_the_reference():
    energy = Lifted(0.0)
    found, x = run(energy)
    assert found.energy is energy
    near = x < 20.0
    # nothing is resampled: independent draws, five standard errors
    assert int((~near).sum()) <= 1
    assert abs(float(x[near].mean()) + 0.2) < 5.0 * float(x[near].std()) / math.sqrt(N_CHAINS)


def assert_share_is_held(found, x):
    """The path starts from the component at least half as often as it should, draws hold it."""
    assert isinstance(found.energy, Rebased)
    assert float(found.energy.reference.log_weights[2].exp()) > 0.5 * HELD
    share = float((x > 20.0).double().mean())
    # five standard errors, half of the draws being effective
    assert abs(share - HELD) < 5.0 * math.sqrt(HELD * (1.0 - HELD) / (N_CHAINS / 2))
    assert len(torch.unique(found.chains.position)) == N_CHAINS


def test_chains_hold_the_share_of_a_lifted_component():
    assert_share_is_held(*run(Lifted(LIFT)))


def test_a_lucky_first_estimate_is_corrected(monkeypatch):
    """A walker that meets the component by chance makes its share look tiny, until it is not."""
    estimates = []

    def lucky(log_weights):
        log_mean = float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))
        estimates.append(log_mean + (5.0 if not estimates else 0.0))
        return estimates[-1]

    monkeypatch.setattr(sklvebm.inference.equilibration, "log_mean_exp", lucky)
    assert_share_is_held(*run(Lifted(LIFT)))
    assert len(estimates) >= 3  # a tilt that is too small, another, and a look at it
