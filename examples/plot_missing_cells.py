"""
Missing cells
=============

A density that is fitted to rows with missing cells has conditional distributions of these cells:
means, quantiles and draws. :class:`~sklvebm.ParticleImputer` puts them into a pipeline.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris, make_moons

from sklvebm import MixtureStack, ParticleImputer
from sklvebm.plotting import ImputationDisplay

X = load_iris(as_frame=True).data
random = np.random.RandomState(0)
holes = X.mask(random.uniform(size=X.shape) < 0.2)
model = MixtureStack(max_components=6, random_state=0).fit(holes)

# %%
# Two of four columns: complete rows, and rows with a missing cell at its conditional mean, with
# intervals of 90 percent. Right: the same against the true cells.

columns = ["petal length (cm)", "petal width (cm)"]
ImputationDisplay.from_estimator(model, holes, features=columns, X_true=X)

# %%
# Means are the best guess of a cell, but they need not look like data: given the first coordinate
# of two moons, the mean of the second lies between them. Draws lie on them.

moons, _ = make_moons(600, noise=0.07, random_state=0)
half = np.where([False, True], np.nan, moons[:250])
density = MixtureStack(max_components=12, random_state=0)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for ax, strategy in zip(axes, ("mean", "sample"), strict=True):
    imputer = ParticleImputer(density, strategy=strategy, random_state=0).fit(moons[250:])
    ax.scatter(*moons[250:].T, s=4, color="0.75")
    ax.scatter(*np.asarray(imputer.transform(half)).T, s=8, color="tab:red")
    ax.set_title(f'strategy="{strategy}"')
