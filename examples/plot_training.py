"""
The course of a fit, and its energy
===================================

:class:`~sklvebm.ParticleLVEBM` corrects a reference density by a network. Here the reference is a
single Gaussian, so that there is much to correct. With the default reference, mixtures chosen by
cross-validation, training would find nothing to add to such rows.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

from sklvebm import ParticleLVEBM
from sklvebm.plotting import EnergyDisplay, TrainingDisplay

X, _ = make_moons(600, noise=0.1, random_state=0)
train, test = train_test_split(X, random_state=0)
model = ParticleLVEBM(1, reference="gaussian", init="reference", max_iter=60, tol=None)
model.set_params(random_state=0).fit(train)

# %%
# The monitored bound after each epoch, beside the score of held-out rows with its standard error.

TrainingDisplay.from_estimator(model, test)

# %%
# The normaliser has an estimate from below and one from above. Diagnostics say whether to trust it.

print(model.log_partition_)
print(model.diagnostics_)

# %%
# The energy, and where it departs from the reference: blue regions gained mass.

figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
EnergyDisplay.from_estimator(model, train, ax=axes[0])
EnergyDisplay.from_estimator(model, train, response="correction", ax=axes[1])
