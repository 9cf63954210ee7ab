"""
Four densities of one table
===========================

The same rows, four estimators: held-out scores, a path between two rows, and the part of a table
that meets a condition.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

from sklvebm import (
    LogPartition,
    MixtureStack,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
    interpolate,
    sample_within,
)

X, _ = make_moons(800, noise=0.1, random_state=0)
train, test = train_test_split(X, test_size=0.5, random_state=0)
models = [
    MixtureStack(random_state=0),
    ParticleLVEBM(n_components=1, max_iter=10, tol=None, random_state=0),
    WassersteinFlowEBM(max_iter=10, tol=None, random_state=0),
    PotentialFlowEBM(max_iter=10, tol=None, random_state=0),
]
for model in models:
    print(f"{type(model).__name__:20s} {model.fit(train).score(test):.3f} nats per row")

# %%
# An energy is known up to a constant, log Z, which is bracketed from both sides. Where training was
# not significantly better, the model is its reference and the bracket is narrow.

bracket: LogPartition = models[1].log_partition_
print(bracket)

# %%
# `interpolate` goes from one row to another through the model: in the units of the rows, without
# leaving the places where they are. `sample_within` draws rows under a condition.

path = interpolate(models[3], test[0], test[1], 30)
upper, share = sample_within(models[0], {1: (0.5, None)}, 200, random_state=0)
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.scatter(*test.T, s=5, color="lightgrey", label="rows")
axes.scatter(*np.asarray(upper).T, s=5, label=f"draws with x1 > 0.5 ({share:.0%} of all)")
axes.plot(*np.asarray(path).T, color="black", label="path")
axes.legend()
