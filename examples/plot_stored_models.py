"""
Storing a model, and taking it elsewhere
========================================

A fit that is killed can be continued from its checkpoint. A model becomes a folder with two files,
without pickle. It scores rows that are read in parts. Its pool and draws of its latents go to
ArviZ.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch.distributed as dist
from sklearn.datasets import load_iris

from sklvebm import (
    ParticleLVEBM,
    RowSource,
    checkpoints,
    dequantize,
    distributed,
    load_model,
    open_rows,
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
# Rows of a file are read in parts, and so are those of any object that returns them by slices.


class Repeated(RowSource):
    """The rows of iris a thousand times, which are never in memory together."""

    def __len__(self):
        return 1000 * len(X)

    def __getitem__(self, part):
        return X[np.arange(part.start, part.stop) % len(X)]


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rows.npy"
    np.save(path, X)
    print(f"{loaded.score(open_rows(path)):.3f} and {loaded.score(Repeated()):.3f} nats per row")

# %%
# Draws of the latents of six rows, as ArviZ has them.

data = to_inference_data(loaded, X[::25], n_draws=200, random_state=0)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.violinplot(data.posterior["z"].values[0, :, :, 0])
axes.set(xlabel="row", ylabel="latent")

# %%
# What a report of a problem should contain:

show_versions()
