"""Free energies of the published algorithm: on generic latents, and in the simulator's chart."""

import math
from functools import partial

import torch
from torch import nn

from sklvebm.mixtures.reference import MixtureReference

_CONFINEMENT = 0.25  # precision of the Gaussian in x, standardised units
_COEFFICIENT = 0.1  # scale of the harmonic coefficients


class FreeEnergy(nn.Module):
    """A perceptron of three layers, SiLU, of x and features of z, with a Gaussian confinement.

    The confinement is what the paper recommends for normalisability, and its code lacks.
    """

    def __init__(self, n_features, n_latents, chart=None, width=128):
        super().__init__()
        self.chart = chart
        n_inputs = n_features + (chart or _generic)(torch.zeros(1, n_latents)).shape[1]
        self.network = nn.Sequential(
            nn.Linear(n_inputs, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, x, z):
        """Return energies (B,), nats."""
        features = (self.chart or _generic)(z)
        confinement = 0.5 * (_CONFINEMENT * x.square().sum(1) + z.square().sum(1))
        return self.network(torch.cat([x, features], 1)).squeeze(1) + confinement


def plain_reference(n_features, n_latents):
    """Return N(0, I) over standardised rows and latents: where the paper's particles start."""
    return MixtureReference(
        torch.ones(1),
        torch.zeros(1, n_features),
        torch.eye(n_features)[None],
        latent_map=torch.zeros(n_latents, n_features),
        latent_variance=torch.ones(n_latents),
        location=torch.zeros(n_features),
    )


def _generic(z):
    return z


def rings_chart(z):
    """Radius, cosine and sine of the angle; z in units in which its prior is standard normal."""
    angle = math.pi * z[:, 1:2]
    return torch.cat([1.0 + 0.5 * z[:, :1], torch.cos(angle), torch.sin(angle)], 1)


def shells_chart(z):
    """Radius, cosines and sines of both angles."""
    polar, azimuth = 0.5 * math.pi * (1.0 + z[:, 1:2]), math.pi * z[:, 2:3]
    waves = [wave(angle) for angle in (polar, azimuth) for wave in (torch.cos, torch.sin)]
    return torch.cat([1.0 + 0.5 * z[:, :1], *waves], 1)


def harmonic_chart(z):
    """Mean radius, cosine and sine of the angle, and twenty harmonic coefficients."""
    angle = math.pi * z[:, 1:2]
    parts = [1.5 + 0.75 * z[:, :1], torch.cos(angle), torch.sin(angle), _COEFFICIENT * z[:, 2:]]
    return torch.cat(parts, 1)


CHARTS = {"LCR-2D": rings_chart, "LCS-3D": shells_chart, "HMR-2D": harmonic_chart}


def charted(set_name):
    """Return a factory of energies in the chart of a set's simulator."""
    return partial(FreeEnergy, chart=CHARTS[set_name])
