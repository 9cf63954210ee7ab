"""
Storing a model, and taking it elsewhere
========================================

A fit that is killed can be continued from its checkpoint. A model becomes a folder with two files,
without pickle. Its pool and draws of its latents go to ArviZ.
"""

import tempfile

import matplotlib.pyplot as plt
import torch.distributed as dist
from sklearn.datasets import load_iris

from sklvebm import (
    ParticleLVEBM,
    checkpoints,
    dequantize,
    distributed,
    load_model,
    save_model,
    show_versions,
    to_inference_data,
)

X = dequantize(load_iris().data, random_state=0)
model = ParticleLVEBM(n_components=1, max_iter=3, tol=None, random_state=0)
with tempfile.TemporaryDirectory() as folder, checkpoints(folder):
    model.fit(X)
with tempfile.TemporaryDirectory() as folder:
    save_model(model, folder)
    loaded = load_model(folder)
print("equal scores:", loaded.score(X) == model.score(X))

# %%
# A score is the mean over the rows of all processes, started by torchrun. Here is one process.

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
with distributed() as ranks:
    print(f"{ranks.size} process, {loaded.score(X[ranks.rank :: ranks.size]):.2f} nats per row")
dist.destroy_process_group()

# %%
# Draws of the latents of six rows, as ArviZ has them.

data = to_inference_data(loaded, X[::25], n_draws=200, random_state=0)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.violinplot(data.posterior["z"].values[0, :, :, 0])
axes.set(xlabel="row", ylabel="latent")

# %%
# What a report of a problem should contain:

show_versions()
