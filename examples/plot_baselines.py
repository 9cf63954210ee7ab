"""
Models with a decoder
=====================

Five other ways to train a model with latents, with the same interface. Their scores are lower
bounds of the log-likelihood; the distance of rows to their reconstructions is another measure.
"""

import matplotlib.pyplot as plt

from sklvebm.baselines import VAE, HardEM, LatentEBM, NonAmortizedVI, ParticleGradientDescent
from sklvebm.datasets import make_concentric_rings
from sklvebm.metrics import reconstruction_rmse

X = make_concentric_rings(300, random_state=0)
short = {"hidden_layer_sizes": (16,), "max_iter": 15, "tol": None, "random_state": 0}
models = [
    VAE(2, **short),
    NonAmortizedVI(2, **short),
    HardEM(2, **short),
    ParticleGradientDescent(2, **short),
    LatentEBM(2, **short),
]
figure, axes = plt.subplots(1, 5, figsize=(13, 2.8), layout="constrained", sharex=True, sharey=True)
for model, ax in zip(models, axes, strict=True):
    model.fit(X)
    error = reconstruction_rmse(X, model.inverse_transform(model.transform(X)))
    print(f"{type(model).__name__:24s} {model.score(X):7.2f} nats, reconstruction {error:.3f}")
    ax.scatter(*model.sample(300, random_state=0).T, s=4)
    ax.set_title(type(model).__name__)
