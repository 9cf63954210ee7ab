"""
Rows that are images
====================

`image_shape` says that a row is a flattened image. The correction is then convolutional.
"""

import matplotlib.pyplot as plt
import torch

from sklvebm import ConvEnergy, ConvLayerEnergy, ParticleLVEBM
from sklvebm.datasets import make_shape_images

X = make_shape_images(200, size=8, random_state=0)
model = ParticleLVEBM(
    2, image_shape=(8, 8), reference="gaussian", max_iter=2, tol=None, random_state=0
).fit(X)
print(f"{model.score(X):.1f} nats per image; {model.diagnostics_.verdict}")

# %%
# The networks are modules of torch: energies of an image and its latents.

source = torch.Generator().manual_seed(0)
for kind in (ConvEnergy, ConvLayerEnergy):
    network = kind(64, 2, (8, 8), generator=source)
    print(kind.__name__, network(torch.zeros(3, 64), torch.zeros(3, 2)).shape)

# %%
# Images above, draws below.

figure, axes = plt.subplots(2, 8, figsize=(8, 2.2), layout="constrained")
drawn = model.sample(8, random_state=0)
for column, (image, draw) in zip(axes.T, zip(X, drawn, strict=False), strict=True):
    for ax, pixels in zip(column, (image, draw), strict=True):
        ax.imshow(pixels.reshape(8, 8), cmap="gray", vmin=0.0, vmax=1.0)
        ax.set_axis_off()
