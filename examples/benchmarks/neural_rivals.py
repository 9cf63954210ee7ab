"""Neural density estimators to compare with: spline flow, autoencoder, marginal energies.

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
from classical_rivals import Fitted
from contrastive_rivals import (
    below_gaussian,
    persistent_cd_ebmkit,
    persistent_cd_torchebm,
    split_rows,
)
from torch import nn

__all__ = [
    "persistent_cd_ebmkit",
    "persistent_cd_torchebm",
    "spline_flow",
    "variational_autoencoder",
]

BATCH = 256
AVERAGING = 0.99  # of the parameters, per update
N_EPOCHS, PATIENCE = 400, 30  # epochs of a flow, at most; epochs without progress
FLOWS = ((3, 64, 3e-3), (5, 128, 1e-3))  # transforms, hidden units, learning rate
FLOW_DECAY = 0.1
FLOW_REACH = 4.5  # where the outermost rows are put; the splines end at 5
N_FLOW_UPDATES, FLOW_WORK = 6000, 96_000  # updates at most; updates x features at most
HIDDEN = 128
RATES = (3e-3, 1e-3)  # of the autoencoder
N_VAE_UPDATES, VAE_PATIENCE = 8000, 1000
SMALLEST_SD = 1e-3  # of the decoder
N_WEIGHTS, N_WEIGHTS_TUNING = 256, 32  # importance samples per row


def updates_per_epoch(n_rows):
    """Return how many batches a pass takes: a quarter of few rows is the largest batch."""
    return math.ceil(n_rows / min(BATCH, max(32, n_rows // 4)))


def train(model, objective, validate, rows, rate, decay, n_epochs, patience):
    """Maximise an objective of batches; return the best validation score, its model and epoch.

    The model that is validated, and returned, has parameters averaged over about 100 updates. The
    learning rate is halved after a third of the patience without progress.
    """
    per_epoch = updates_per_epoch(len(rows))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING)
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=0.5, patience=patience // 3
    )
    best, kept, best_epoch = -math.inf, copy.deepcopy(model), 0
    for epoch in range(1, n_epochs + 1):
        for index in torch.randperm(len(rows)).tensor_split(per_epoch):
            optimiser.zero_grad(set_to_none=True)
            (-objective(model, rows[index])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
            average.update_parameters(model)
        with torch.no_grad():
            score = float(validate(average.module))
        if not math.isfinite(score):
            break
        schedule.step(score)
        if score > best:
            best, kept, best_epoch = score, copy.deepcopy(average.module), epoch
        if epoch - best_epoch >= patience:
            break
    return best, kept, best_epoch


def fitted(log_density, settings, X, chunk, choice=()):
    """Return a `Fitted` of a function from float tensors to log-densities, called in chunks."""

    def score_samples(rows):
        x = torch.from_numpy(np.asarray(rows, dtype=np.float64)).float()
        with torch.no_grad():
            return torch.cat([log_density(part).double() for part in x.split(chunk)]).numpy()

    return Fitted(score_samples, settings, below_gaussian(X, score_samples(X)), choice)


# Spline flow -------------------------------------------------------------------------------------


def spline_flow(X, seed):
    """Fit a neural spline flow of zuko: autoregressive, rational-quadratic, 8 bins on [-5, 5].

    Three trials compete on validation rows: 3 transforms of (64, 64) units at a learning rate of
    3e-3 with ReLU and with SiLU, then 5 of (128, 128) at 1e-3 with the better of the two. AdamW,
    weight decay 0.1, gradients clipped at norm 10. At most 400 epochs, 6,000 updates and 96,000
    updates x features: 170 epochs of 9,000 rows, 300 of 1,080 rows x 64.

    Features that reach beyond 4.5 standard deviations are shrunk to it, with the Jacobian counted,
    because splines are the identity outside of [-5, 5] and cannot follow heavy tails there. On
    breast cancer that, SiLU, averaging and the larger flow are worth ten nats together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, validation = split_rows(X, seed)
        trials = [flow_trial(rows, validation, *FLOWS[0], act) for act in (nn.ReLU, nn.SiLU)]
        activation = nn.ReLU if trials[0][0] >= trials[1][0] else nn.SiLU
        trials.append(flow_trial(rows, validation, *FLOWS[1], activation))
    _, log_density, text = max(trials, key=lambda trial: trial[0])
    return fitted(log_density, text, X, chunk=2048)


def flow_trial(rows, validation, n_transforms, n_hidden, rate, activation):
    """Train one flow; return its validation score, its log-density and its settings."""
    import zuko

    d = rows.shape[1]
    scale = (FLOW_REACH / rows.abs().amax(0)).clamp(max=1.0)
    flow = zuko.flows.NSF(
        d, transforms=n_transforms, hidden_features=(n_hidden, n_hidden), activation=activation
    )

    def log_density(flow, x):
        return flow().log_prob(x * scale) + scale.log().sum()

    n_updates = min(N_FLOW_UPDATES, FLOW_WORK // d)
    score, flow, epoch = train(
        flow,
        lambda flow, x: log_density(flow, x).mean(),
        lambda flow: log_density(flow, validation).mean(),
        rows,
        rate,
        FLOW_DECAY,
        min(N_EPOCHS, n_updates // updates_per_epoch(len(rows))),
        PATIENCE,
    )
    text = f"{n_transforms} transforms, {n_hidden} units, {activation.__name__}, {epoch} epochs"
    return score, lambda x: log_density(flow, x), text


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


def variational_autoencoder(X, seed, choice=()):
    """Fit a variational autoencoder; scores are importance-weighted lower bounds, 256 samples.

    Encoder and decoder have hidden layers (128, 128). The grid is 2, min(8, d) and min(16, d)
    latents x learning rates 3e-3 and 1e-3. Training maximises the bound of a single sample, with
    Adam, in at most 8,000 updates; it stops after 1,000 without progress. Early stopping and the
    choice go by the bound of 32 samples on validation rows. Other splits of a set train the first
    one's choice alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows, validation = split_rows(X, seed)
        per_epoch = updates_per_epoch(len(rows))

        def validate(model):
            generator = torch.Generator().manual_seed(seed)  # the same noise for all epochs
            return model.bound(validation, N_WEIGHTS_TUNING, generator).mean()

        latents = sorted({min(k, max(2, X.shape[1])) for k in (2, 8, 16)})
        trials = []
        for n_latents, rate in [choice] if choice else itertools.product(latents, RATES):
            score, model, epoch = train(
                Autoencoder(X.shape[1], n_latents),
                lambda model, x: model.bound(x, 1).mean(),
                validate,
                rows,
                rate,
                0.0,
                math.ceil(N_VAE_UPDATES / per_epoch),
                max(PATIENCE, VAE_PATIENCE // per_epoch),
            )
            text = f"{n_latents} latents, learning rate {rate:g}, {epoch} epochs"
            trials.append((score, model, text, (n_latents, rate)))
    _, model, text, choice = max(trials, key=lambda trial: trial[0])

    def log_density(x):
        return model.bound(x, N_WEIGHTS, torch.Generator().manual_seed(seed))

    return fitted(log_density, text, X, 128, choice)
