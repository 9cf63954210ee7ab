"""Neural density estimators to compare with: spline flow, variational autoencoder, marginal energies.

Every function takes standardised rows and a seed, and returns a `Fitted`: log-densities of rows in
nats, what the tuning settled on, and whether the fit is meaningless. Tuning and early stopping see
the given rows only: 10 % of them, at least 10, are set aside at random.

The rivals need packages that the library itself does not: zuko for the flow, torchebm and ebmkit
for the energies, which `contrastive_rivals.py` holds. The autoencoder needs torch alone.
"""

import copy
import itertools
import math

import numpy as np
import torch
from contrastive_rivals import (
    Fitted,
    below_gaussian,
    persistent_cd_ebmkit,
    persistent_cd_torchebm,
    split_rows,
)
from torch import nn

__all__ = [
    "Fitted",
    "persistent_cd_ebmkit",
    "persistent_cd_torchebm",
    "spline_flow",
    "variational_autoencoder",
]

BATCH = 256
N_EPOCHS, PATIENCE = 400, 30  # at most; epochs without progress on validation rows
FLOWS = ((3, 64, 3e-3), (5, 128, 1e-3))  # transforms, hidden units, learning rate
FLOW_DECAY = 1e-4
FLOW_REACH = 4.5  # where the splines put the outermost rows; they end at 5
N_FLOW_UPDATES = 6000
HIDDEN = 128
RATE = 1e-3
N_VAE_UPDATES = 8000
SMALLEST_SD = 1e-3  # of the decoder
N_WEIGHTS, N_WEIGHTS_TUNING = 256, 32  # importance samples per row


def train(model, loss, validate, rows, rate, decay, n_updates):
    """Minimise a loss of batches; return the best validation score, with its epoch, restored.

    The learning rate is halved after ten epochs without progress. A quarter of the rows is the
    largest batch, so that an epoch of few rows is more than one update.
    """
    batch = min(BATCH, max(32, len(rows) // 4))
    per_epoch = math.ceil(len(rows) / batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=0.5, patience=10
    )
    best, kept, best_epoch = -math.inf, copy.deepcopy(model.state_dict()), 0
    for epoch in range(1, min(N_EPOCHS, max(1, n_updates // per_epoch)) + 1):
        model.train()
        for index in torch.randperm(len(rows)).tensor_split(per_epoch):
            optimiser.zero_grad(set_to_none=True)
            loss(rows[index]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
        model.eval()
        with torch.no_grad():
            score = float(validate())
        if not math.isfinite(score):
            break
        schedule.step(score)
        if score > best:
            best, kept, best_epoch = score, copy.deepcopy(model.state_dict()), epoch
        if epoch - best_epoch >= PATIENCE:
            break
    model.load_state_dict(kept)
    return best, best_epoch


def fitted(log_density, settings, X, chunk):
    """Return a `Fitted` of a function from float tensors to log-densities, called in chunks."""

    def score_samples(rows):
        x = torch.from_numpy(np.asarray(rows, dtype=np.float64)).float()
        with torch.no_grad():
            return torch.cat([log_density(part).double() for part in x.split(chunk)]).numpy()

    return Fitted(score_samples, settings, below_gaussian(X, score_samples(X)))


# Spline flow -------------------------------------------------------------------------------------


def spline_flow(X, seed):
    """Fit a neural spline flow of zuko: autoregressive, rational-quadratic, 8 bins on [-5, 5].

    The grid: 3 transforms of (64, 64) units at a learning rate of 3e-3, and 5 of (128, 128) at
    1e-3; weight decay 1e-4, gradients clipped at norm 10. At most 400 epochs and at most 6,000
    updates, which is 170 epochs of 9,000 rows; both limits are beyond most early stops. Settings
    are compared by the log-likelihood of validation rows, as are two ways to take rows: as they
    are, and with features that reach beyond 4.5 standard deviations shrunk to it, because a spline
    is the identity outside of [-5, 5] and cannot follow heavy tails there.
    """
    import zuko

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, validation = split_rows(X, seed)
        shrunk = (FLOW_REACH / rows.abs().amax(0)).clamp(max=1.0)
        scales = [torch.ones_like(shrunk)]
        if (shrunk < 1).any():
            scales.append(shrunk)
        trials = []
        for scale, (n_transforms, n_hidden, rate) in itertools.product(scales, FLOWS):
            flow = zuko.flows.NSF(
                X.shape[1], transforms=n_transforms, hidden_features=(n_hidden, n_hidden)
            )

            def log_density(x, flow=flow, scale=scale):
                return flow().log_prob(x * scale) + scale.log().sum()

            score, epoch = train(
                flow,
                lambda x, log_density=log_density: -log_density(x).mean(),
                lambda log_density=log_density: log_density(validation).mean(),
                rows,
                rate,
                FLOW_DECAY,
                N_FLOW_UPDATES,
            )
            text = f"{n_transforms} transforms, {n_hidden} units, {epoch} epochs"
            text += ", shrunk tails" if (scale < 1).any() else ""
            trials.append((score, log_density, text))
    _, log_density, text = max(trials, key=lambda trial: trial[0])
    return fitted(log_density, text, X, chunk=4096)


# Variational autoencoder -------------------------------------------------------------------------


def mlp(n_inputs, n_outputs):
    """Return a perceptron of two hidden layers."""
    return nn.Sequential(
        nn.Linear(n_inputs, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, n_outputs),
    )


def normal_log_density(x, mean, log_sd):
    """Return log N(x; mean, sd^2), summed over the last axis."""
    squares = ((x - mean) * torch.exp(-log_sd)).square()
    return -(0.5 * squares + log_sd + 0.5 * math.log(2 * math.pi)).sum(-1)


class Autoencoder(nn.Module):
    """Gaussian encoder, standard normal latents, Gaussian decoder with one variance per feature."""

    def __init__(self, n_features, n_latents):
        super().__init__()
        self.encoder = mlp(n_features, 2 * n_latents)
        self.decoder = mlp(n_latents, n_features)
        # Below 1, the sd of the rows, so that the decoder listens to its latents from the start.
        self.raw_log_sd = nn.Parameter(torch.full((n_features,), math.log(0.5)))

    def log_weights(self, x, noise):
        """Return log p(x, z) - log q(z | x) of z drawn with noise (samples, rows, latents)."""
        mean, log_sd = self.encoder(x).chunk(2, dim=-1)
        log_sd = log_sd.clamp(-8.0, 4.0)
        z = mean + torch.exp(log_sd) * noise
        floored = torch.logaddexp(self.raw_log_sd, torch.tensor(math.log(SMALLEST_SD)))
        zero = torch.zeros(())
        return (
            normal_log_density(x, self.decoder(z), floored)
            + normal_log_density(z, zero, zero)
            - normal_log_density(z, mean, log_sd)
        )

    def bound(self, x, n_samples, generator=None):
        """Return the importance-weighted lower bound of log p(x), row by row."""
        n_latents = self.decoder[0].in_features
        noise = torch.randn(n_samples, len(x), n_latents, generator=generator)
        return self.log_weights(x, noise).logsumexp(0) - math.log(n_samples)


def variational_autoencoder(X, seed):
    """Fit a variational autoencoder; scores are importance-weighted lower bounds, 256 samples.

    Encoder and decoder have hidden layers (128, 128); the latents are 2 or min(8, d). Training
    maximises the bound of a single sample, in at most 400 epochs and 8,000 updates; early stopping
    and the choice of latents go by the bound of 32 samples on validation rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, validation = split_rows(X, seed)
        trials = []
        for n_latents in sorted({2, min(8, X.shape[1])}):
            model = Autoencoder(X.shape[1], n_latents)

            def validate(model=model):
                generator = torch.Generator().manual_seed(seed)  # the same noise for all epochs
                return model.bound(validation, N_WEIGHTS_TUNING, generator).mean()

            score, epoch = train(
                model,
                lambda x, model=model: -model.bound(x, 1).mean(),
                validate,
                rows,
                RATE,
                0.0,
                N_VAE_UPDATES,
            )
            trials.append((score, model, f"{n_latents} latents, {epoch} epochs"))
    _, model, text = max(trials, key=lambda trial: trial[0])

    def log_density(x):
        return model.bound(x, N_WEIGHTS, torch.Generator().manual_seed(seed))

    return fitted(log_density, text, X, chunk=128)
