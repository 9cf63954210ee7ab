"""
Rounded columns
===============

Rounded values have no density: a model can put peaks on them as high as it likes. Noise of the size
of the rounding gives them one, and its edges can be mapped to a normal distribution.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from sklvebm import GaussianMargins, MixtureStack, TransformedDensity, dequantize, resolution

X = load_digits().data[:600, 18:24]  # six pixels with values from 0 to 16
print("steps of the columns:", resolution(X))
noisy = dequantize(X, random_state=0)

# %%
# `GaussianMargins` maps a column by its histogram, where that beats smooth densities.
# `TransformedDensity` gives the density of the rows themselves, in nats.

stack = MixtureStack(max_components=5, margins="none", random_state=0)
model = TransformedDensity(stack, transformer=GaussianMargins()).fit(noisy[::2])
print("histograms:", model.transformer_.n_bins_)
print(f"with margins    {model.score(noisy[1::2]):.3f} nats per row")
print(f"without margins {stack.fit(noisy[::2]).score(noisy[1::2]):.3f} nats per row")

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, rows, title in zip(axes, (X, noisy), ("rounded", "with noise"), strict=True):
    ax.hist(rows[:, 0], bins=60)
    ax.set_title(f"a pixel, {title}")
