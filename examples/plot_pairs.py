"""
All pairs of columns
====================

A density of several columns has exact marginals: columns that are not shown are integrated out.
Slices show what is left when the other columns are held fixed.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_wine

from sklvebm import MixtureStack
from sklvebm.plotting import DensityDisplay

table = load_wine(as_frame=True)
columns = ["alcohol", "malic_acid", "flavanoids", "color_intensity"]
X = table.data[columns]
model = MixtureStack(max_components=6, random_state=0).fit(X)
DensityDisplay.from_estimator(model, X, features=columns, grid_resolution=50)

# %%
# The same two columns of wines with few and with many flavanoids, as slices of the joint density.

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, flavanoids in zip(axes, (0.8, 3.0), strict=True):
    at = X.median()
    at["flavanoids"] = flavanoids
    DensityDisplay.from_estimator(
        model,
        X,
        features=["alcohol", "color_intensity"],
        others="slice",
        at=at.to_numpy(),
        ax=ax,
        show_rows=False,
    )
    ax.set_title(f"flavanoids {flavanoids}, the others at their medians")
