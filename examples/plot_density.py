"""
A density, and how good it is
=============================

Fit a density to a table, compare it with scikit-learn's on held-out rows, and look at it. Scores
are mean log-densities per row in nats, in the units of the table: they can be compared directly.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity

from sklvebm import MixtureStack
from sklvebm.plotting import DensityDisplay

X, _ = make_moons(800, noise=0.1, random_state=0)
train, test = train_test_split(X, random_state=0)

# %%
# :class:`~sklvebm.MixtureStack` chooses kinds and numbers of components by cross-validation. The
# other two get a search over their main parameter.

mixtures = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [2, 4, 8, 12, 16]})
kernels = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.05, 0.5, 10)})
models = {
    "GaussianMixture": mixtures.fit(train).best_estimator_,
    "KernelDensity": kernels.fit(train).best_estimator_,
    "MixtureStack": MixtureStack(random_state=0).fit(train),
}
for name, model in models.items():
    scores = model.score_samples(test)
    error = scores.std() / np.sqrt(len(scores))
    print(f"{name:16s} {scores.mean():.3f} +- {error:.3f} nats per row")

# %%
# Differences between models on the same rows are more certain than the scores themselves.

ours = models["MixtureStack"].score_samples(test)
for name in ("GaussianMixture", "KernelDensity"):
    gain = ours - models[name].score_samples(test)
    print(f"gain over {name}: {gain.mean():.3f} +- {gain.std() / np.sqrt(len(gain)):.3f}")

# %%
# Filled regions hold 20, 50, 80, 95 and 99 percent of the mass.

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, name in zip(axes, ("KernelDensity", "MixtureStack"), strict=True):
    DensityDisplay.from_estimator(models[name], train, ax=ax)
    ax.set_title(name)
