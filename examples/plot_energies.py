"""
Energies and references
=======================

Models consist of modules of torch: a reference with closed forms, and a network that corrects it.
They can be used without an estimator, and an energy of your own can be fitted.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from sklvebm import (
    AnchoredEnergy,
    BridgedEnergy,
    Energy,
    EnsembleEnergy,
    FeatureEnergy,
    KernelLatentMap,
    LinearGaussianEnergy,
    MappedEnergy,
    MixtureReference,
    MLPEnergy,
    ParticleDivergenceError,
    ParticleLVEBM,
    PerceptronLatentMap,
    PeriodicEnergy,
    WassersteinFlowEBM,
)

one, two = torch.eye(1), torch.eye(2)
maps = {"latent_map": torch.ones(1, 2), "latent_variance": one[0], "location": two[0] * 0.0}
reference = MixtureReference(torch.ones(1), torch.zeros(1, 2), two[None], **maps)
source = torch.Generator().manual_seed(0)
networks = {
    "perceptron": MLPEnergy(2, 1, (16,), generator=source),
    "periodic inputs": PeriodicEnergy(2, 1, (16,), generator=source),
    "mean of three": EnsembleEnergy([MLPEnergy(2, 1, (8,), generator=source) for _ in range(3)]),
}
x, z = torch.randn(5, 2, generator=source), torch.zeros(5, 1)
for name, network in networks.items():
    print(name, AnchoredEnergy(reference, network)(x, z).shape)

# %%
# `LinearGaussianEnergy` has closed forms. `BridgedEnergy` joins a complete energy to a reference,
# so that it can be annealed. A new energy is a subclass of `Energy`.


class Bowl(Energy):
    """A quadratic energy."""

    n_features, n_latents = 2, 1

    def __init__(self):
        super().__init__()
        self.depth = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, z):
        return self.depth.exp() * x.square().sum(1) + z.square().sum(1)


for energy in (LinearGaussianEnergy(2, 1), Bowl()):
    print(type(energy).__name__, BridgedEnergy(reference, energy)(x, z).shape)

random = np.random.default_rng(0)
X = random.normal(size=(200, 2)) * [1.0, 0.3]
short = {"reference": "gaussian", "max_iter": 6, "tol": None, "random_state": 0}
try:
    own = ParticleLVEBM(n_components=1, energy=Bowl(), **short).fit(X)
    print(f"energy of one's own: {own.score(X):.3f} nats per row")
except ParticleDivergenceError as error:
    print(error)

# %%
# Fitted models have their energies as attributes. Latents along a curve come from a latent map: a
# `KernelLatentMap` or a `PerceptronLatentMap`, within a `MappedEnergy`. An energy without latents
# is a `FeatureEnergy`.

angle = random.uniform(0.0, 1.5 * np.pi, size=400)
curve = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.05 * random.normal(size=(400, 2))
latent = ParticleLVEBM(n_components=1, latent_map="manifold", max_iter=0, random_state=0).fit(curve)
mapped = latent.energy_
assert isinstance(mapped, MappedEnergy)
assert isinstance(mapped.latent_map, KernelLatentMap | PerceptronLatentMap)
features = WassersteinFlowEBM(max_iter=0, random_state=0).fit(curve).energy_
assert isinstance(features, FeatureEnergy)

axis = np.linspace(-1.8, 1.8, 60)
grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
with torch.no_grad():
    values = features(torch.from_numpy((grid - latent.mean_) / latent.scale_))
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
shown = axes.contourf(axis, axis, values.reshape(60, 60).clip(max=12.0), levels=20)
axes.scatter(*curve.T, s=3, color="white")
figure.colorbar(shown, label="energy, nats")
