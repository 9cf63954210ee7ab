"""
One latent along curved rows
============================

The likelihood does not determine what latents mean. The latent map does: that of probabilistic PCA,
or one that follows the rows. Both models below have the same density.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklvebm import ParticleLVEBM
from sklvebm.plotting import LatentDisplay

random = np.random.default_rng(0)
angle = 2.0 * np.pi * random.uniform(size=500)
turn = 1.5 * np.pi + 1.5 * angle
X = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / 10.0
X += 0.1 * random.standard_normal(X.shape)

# %%
# `max_iter=0` keeps the reference, which is enough to see what the latents are.

figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
for (left, right), kind in zip(axes, ("linear", "manifold"), strict=True):
    model = ParticleLVEBM(1, latent_map=kind, max_iter=0, random_state=0).fit(X)
    LatentDisplay.from_estimator(model, X, color=angle, ax=left, color_name="angle")
    left.set_title(f'latent_map="{kind}", score {model.score(X):.3f} nats')
    Z = model.transform(X)
    right.scatter(*X.T, c=Z[:, 0], s=6)
    ends = np.quantile(Z, [0.01, 0.99])
    right.plot(*model.inverse_transform(np.linspace(*ends, 80)[:, None]).T, color="black")
    right.set_title("rows coloured by their latent; E[x | z]")
