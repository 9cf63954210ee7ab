"""The paper's reconstruction: the lowest-energy code of a short run, and a decoder fitted to codes.

The decoder is fitted after training, to training rows, with the energy frozen. It is selected on a
part of the training rows; the paper's code selects it on the test rows.
"""

import copy
import math

import numpy as np
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm.models.energies import BridgedEnergy, MappedEnergy

N_CANDIDATES, N_STEPS, STEP_SIZE = 16, 30, 1e-3  # the paper's, step in squared units of z per nat
_CHUNK = 1024  # rows
_PATIENCE = 10  # epochs


def latent_energy(energy, x, z):
    """Return E(x, z) up to a function of x, (B,), nats: a mixture need not be evaluated."""
    if isinstance(energy, BridgedEnergy):
        return energy(x, z)
    if isinstance(energy, MappedEnergy):
        energy, z = energy.anchored, energy.own_latents(x, z)
    return energy.correction(x, z) - energy.reference.log_conditional(x, z)


def short_run_codes(model, X, seed, *, n_candidates=N_CANDIDATES, n_steps=N_STEPS):
    """Return the lowest-energy latents of short unadjusted Langevin runs.

    Parameters
    ----------
    model : ParticleLVEBM
        Fitted.
    X : ndarray of shape (n_samples, n_features)
        Rows.
    seed : int
        Seed of starts and noise.
    n_candidates : int
        Runs per row. They start at draws of the reference posterior; the paper's start anywhere in
        a box, which a generic latent does not have.
    n_steps : int
        Langevin steps of each run.

    Returns
    -------
    Z : ndarray of shape (n_samples, n_components)
        Codes.
    """
    energy = copy.deepcopy(model.energy_).float().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy((X - model.mean_) / model.scale_).float()
    codes = []
    for part in rows.split(_CHUNK):
        x = part.repeat_interleave(n_candidates, 0)
        e = torch.randn(len(x), energy.n_latents, generator=generator)
        gauge = energy.chart if isinstance(energy, MappedEnergy) else energy.reference
        z = gauge.to_latents(x, e)
        for _ in range(n_steps):
            z = z.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(latent_energy(energy, x, z).sum(), z)
            noise = torch.randn(z.shape, generator=generator)
            z = z - STEP_SIZE * grad + math.sqrt(2.0 * STEP_SIZE) * noise
        with torch.no_grad():
            lowest = latent_energy(energy, x, z).reshape(-1, n_candidates).argmin(1)
        z = z.detach().reshape(len(part), n_candidates, -1)
        codes.append(z[torch.arange(len(part)), lowest])
    return torch.cat(codes).numpy().astype(np.float64)


def probe_decoder(codes, X, seed, *, max_iter=None):
    """Fit a perceptron 3 x 128 from codes to rows by squared error; keep its best epoch.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, n_components)
        Latents of training rows.
    X : ndarray of shape (n_samples, n_features)
        The training rows.
    seed : int
        Seed of split and weights.
    max_iter : int or None
        Epochs at most.

    Returns
    -------
    decoder : estimator
        `predict` maps codes to rows. A tenth of the rows given decides which epoch is kept.
    """
    network = MLPRegressor(
        hidden_layer_sizes=(128, 128, 128),
        early_stopping=True,
        validation_fraction=0.1,
        n_iter_no_change=_PATIENCE,
        max_iter=max_iter or 200,
        random_state=seed,
    )
    return TransformedTargetRegressor(
        make_pipeline(StandardScaler(), network), transformer=StandardScaler()
    ).fit(codes, X)
