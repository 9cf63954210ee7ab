"""Marginal energy-based models trained by persistent contrastive divergence, normalised.

`neural_rivals.py` offers the two rivals of this file, one per library: torchebm and ebmkit. Both
get the same recipe, out of the parts that the library itself provides.

Energy: network(x) + 0.5 |x|^2 / 4, the network an MLP (128, 128) with SiLU. An MLP is linear far
out and does not always normalise; the Gaussian term makes it, for both libraries. The libraries see
this full energy in training and in sampling.

Training: the library's persistent contrastive divergence with its replay buffer and its unadjusted
Langevin sampler, noise sqrt(2 step), 20 steps an update. Adam, batch 256, learning rate decayed to
a tenth, gradients clipped at norm 10, parameters averaged over about 100 updates. The grid is
learning rate x step, by successive halving: all four settings have 500 updates, the better two
1,500, the best 4,000; other splits of a set train the first one's choice alone, for 1.25 times the
updates that were best there. The step is in the grid because Langevin steps of size 0.01 cannot
show structure below sqrt(2 * 0.01) = 0.14 standard deviations, while smaller ones travel less; an
energy that grows sharper than its step allows diverges, which costs it its later checkpoints. On
digits and on 100 rows of moons a rate of 3e-4 fitted worse in as many updates, and so did 40 steps
in half as many updates on 2,000 rows of moons. Checkpoints of every 250 updates, of all the
settings, compete on validation rows.

Normaliser: quadrature for up to three features, annealed importance sampling (AIS) beyond. AIS
tends to say a log Z that is too low, which makes a log-density too high: its error is in favour of
the rival. The settings give its effective sample size.
"""

import copy
import itertools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from classical_rivals import Fitted
from sklearn.covariance import LedoitWolf
from torch import nn

HIDDEN, BATCH = 128, 256
GRID = tuple((rate, step) for rate in (3e-3, 1e-3) for step in (0.01, 0.0025))
N_LANGEVIN = 20  # steps per update
N_BETWEEN = 250  # updates per checkpoint
RUNGS = (500, 1500, 4000)  # updates; after each, half of the settings go on
LONGER = 1.25  # updates of other splits, times those that were best on the first
N_FINALISTS = 3  # checkpoints that get the dear normaliser
BASE_VARIANCE = 4.0
HALF_WIDTH = 8.0  # of the quadrature's box, standard deviations
N_GRID = {1: 4000, 2: 400, 3: 160}  # cells per side
BORDER_MASS = 1e-4  # the share of the outermost cells that quadrature puts up with
EFFECTIVE_SHARE = 0.02  # of the chains, below which AIS says nothing


class Normaliser(NamedTuple):
    """An estimate of log Z."""

    value: float
    trusted: bool
    text: str


class Learner(NamedTuple):
    """What a library contributes: an energy, its loss for a batch, and its chains."""

    energy: nn.Module
    loss: Callable  # (batch, d) tensor -> scalar tensor
    chains: Callable  # () -> (chains, d) tensor


class Checkpoint(NamedTuple):
    """An energy with its mean log-likelihood of validation rows."""

    score: float
    energy: nn.Module
    chains: torch.Tensor
    update: int
    seconds: float  # processor time of all updates so far


def split_rows(X, seed):
    """Return training and validation rows: 10 % at random, at least 10 rows, as float32."""
    order = np.random.default_rng(seed).permutation(len(X))
    n_validation = max(10, len(X) // 10)
    rows = torch.from_numpy(np.asarray(X, dtype=np.float64)).float()
    return rows[order[n_validation:]], rows[order[:n_validation]]


def below_gaussian(X, scores):
    """Say whether scores of rows are not finite, or 10 nats a feature below a Gaussian's."""
    if not np.isfinite(scores).all():
        return True
    return bool(scores.mean() < LedoitWolf().fit(X).score(X) - 10.0 * X.shape[1])


def energies(energy, x, chunk=65_536):
    """Return the energies of rows in double precision, without a graph."""
    with torch.no_grad():
        return torch.cat([energy(part).double() for part in x.split(chunk)])


# Normalisers -------------------------------------------------------------------------------------


def quadrature(energy, rows, n_cells):
    """Return log Z by the midpoint rule on a box around rows; two resolutions must agree."""
    margin = torch.tensor(2.0)
    low = torch.minimum(rows.amin(0) - margin, torch.tensor(-HALF_WIDTH))
    high = torch.maximum(rows.amax(0) + margin, torch.tensor(HALF_WIDTH))
    values = []
    for n in (n_cells // 2, n_cells):
        width = (high - low) / n
        axes = [a + w * (torch.arange(n) + 0.5) for a, w in zip(low, width, strict=True)]
        points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        logs = -energies(energy, points)
        values.append(float(logs.logsumexp(0) + width.double().log().sum()))
    index = torch.cartesian_prod(*[torch.arange(n)] * len(axes)).reshape(-1, len(axes))
    outermost = ((index == 0) | (index == n - 1)).any(1)
    border = float((logs[outermost].logsumexp(0) - logs.logsumexp(0)).exp())
    error = abs(values[1] - values[0])
    trusted = math.isfinite(values[1]) and border < BORDER_MASS and error < 0.05
    return Normaliser(values[1], trusted, f"quadrature, border {border:.0e}")


def energy_and_gradient(energy, y, mean, factor):
    """Return the energies of mean + factor y, and their gradients in y."""
    with torch.enable_grad():
        y = y.detach().requires_grad_(True)
        values = energy(mean + y @ factor.T)
        (gradient,) = torch.autograd.grad(values.sum(), y)
    return values.detach(), gradient


@torch.no_grad()
def annealed(energy, rows, chains, seed, n_chains, n_temperatures):
    """Return log Z by annealed importance sampling from a Gaussian.

    Moves are Metropolis-adjusted Langevin. The Gaussian is fitted to the rows and to the chains of
    training together: the model can be wider than nearly collinear rows. Chains run in the
    coordinates that make it standard normal. The step follows the acceptance rate.
    """
    generator = torch.Generator().manual_seed(seed)
    both = torch.cat([rows, chains])
    mean, d = both.mean(0), both.shape[1]
    try:
        factor = torch.linalg.cholesky(both.T.cov().reshape(d, d) + 1e-3 * torch.eye(d))
    except torch.linalg.LinAlgError:  # chains that ran away
        return Normaliser(math.nan, False, "AIS without a base")
    constant = 0.5 * d * math.log(2 * math.pi) + float(factor.diagonal().double().log().sum())
    y = torch.randn(n_chains, d, generator=generator)
    e, slope = energy_and_gradient(energy, y, mean, factor)
    log_weights = torch.zeros(n_chains, dtype=torch.float64)
    step, betas = 0.5 / d ** (1 / 3), torch.linspace(0, 1, n_temperatures + 1).tolist()
    for before, beta in zip(betas, betas[1:], strict=False):
        log_weights += (beta - before) * (0.5 * y.square().sum(1) - e).double()
        drift = (1 - beta) * y + beta * slope
        noise = torch.randn(y.shape, generator=generator)
        proposed = y - step * drift + math.sqrt(2 * step) * noise
        e_new, slope_new = energy_and_gradient(energy, proposed, mean, factor)
        back = y - proposed + step * ((1 - beta) * proposed + beta * slope_new)
        log_ratio = (
            (1 - beta) * 0.5 * (y.square() - proposed.square()).sum(1)
            + beta * (e - e_new)
            + 0.5 * noise.square().sum(1)
            - back.square().sum(1) / (4 * step)
        )
        accepted = torch.rand(n_chains, generator=generator).log() < log_ratio
        y = torch.where(accepted[:, None], proposed, y)
        slope = torch.where(accepted[:, None], slope_new, slope)
        e = torch.where(accepted, e_new, e)
        step *= math.exp(0.2 * (float(accepted.double().mean()) - 0.6))
    total = log_weights.logsumexp(0)
    effective = float((2 * total - (2 * log_weights).logsumexp(0)).exp())
    value = float(total) - math.log(n_chains) + constant
    trusted = math.isfinite(value) and effective >= EFFECTIVE_SHARE * n_chains
    return Normaliser(value, trusted, f"AIS, {effective:.0f} of {n_chains} effective")


def normalise(energy, rows, chains, seed, *, final):
    """Return log Z of an energy; a cheaper estimate serves to choose among checkpoints."""
    d = rows.shape[1]
    if d in N_GRID:
        return quadrature(energy, rows, N_GRID[d] if final else N_GRID[d] // 2)
    sizes = (1000, 1000) if final else (300, 300)
    return annealed(energy, rows, chains, seed, *sizes)


# Training ----------------------------------------------------------------------------------------


def torchebm_learner(n_features, step):
    """Return the parts from torchebm.

    The buffer is as large as a batch, so that every chain goes on where it ended: of a larger one
    the library draws slots but overwrites others, first in, first out. Chains begin at standard
    normal rows; the library's default is 0.01 of that. Its default penalty on squared energies is
    off, because it biases the likelihood.
    """
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence
    from torchebm.models import TimeConditionedMLP
    from torchebm.samplers import LangevinDynamics

    class Energy(BaseModel):
        def __init__(self):
            super().__init__()
            self.network = TimeConditionedMLP(
                in_dim=n_features,
                out_dim=1,
                hidden_dim=HIDDEN,
                depth=2,
                conditioning="concat",
                cond_dim=0,  # no conditioning: a plain MLP
                activation=nn.SiLU,
            )

        def forward(self, x):
            return self.network(x).squeeze(-1) + 0.5 * x.square().sum(1) / BASE_VARIANCE

    energy = Energy()
    loss = ContrastiveDivergence(
        energy,
        LangevinDynamics(energy, step_size=step, noise_scale=1.0),  # 1: noise sqrt(2 step)
        k_steps=N_LANGEVIN,
        persistent=True,
        buffer_size=BATCH,
        new_sample_ratio=0.0,
        energy_reg_weight=0.0,
    )
    loss.initialize_buffer((n_features,), init_noise_scale=1.0)
    return Learner(energy, lambda x: loss(x)[0], lambda: loss.replay_buffer)


def ebmkit_learner(n_features, step):
    """Return the parts from ebmkit.

    Chains of its buffer are never restarted: the library's default of 5 % restarts fitted worse on
    moons, and larger buffers no better. The library draws slots with replacement.
    """
    from ebm import ContrastiveDivergence, LangevinDynamics, ReplayBuffer, SumEnergy
    from ebm.nets import MLPEnergy

    energy = SumEnergy(
        MLPEnergy(n_features, hidden=(HIDDEN, HIDDEN)),
        lambda x: 0.5 * x.square().sum(1) / BASE_VARIANCE,
    )
    sampler = LangevinDynamics(step_size=step, steps=N_LANGEVIN)  # noise sqrt(2 step)
    buffer = ReplayBuffer(BATCH, (n_features,), reinit_prob=0.0)
    loss = ContrastiveDivergence(sampler, buffer=buffer)
    return Learner(energy, lambda x: loss(energy, x).loss, lambda: buffer.data)


def checkpoints(learner, rate, training, validation, seed):
    """Train; yield a checkpoint of the averaged parameters now and then, until it diverges."""
    average = torch.optim.swa_utils.AveragedModel(
        learner.energy, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    optimiser = torch.optim.Adam(learner.energy.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=RUNGS[-1])
    begin, seconds = time.process_time(), 0.0
    for update in range(1, RUNGS[-1] + 1):
        batch = training[torch.randint(len(training), (BATCH,))]
        optimiser.zero_grad(set_to_none=True)
        learner.loss(batch).backward()
        nn.utils.clip_grad_norm_(learner.energy.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(learner.energy)
        if update % N_BETWEEN == 0:
            seconds += time.process_time() - begin
            energy, chains = copy.deepcopy(average.module), learner.chains().clone()
            log_z = normalise(energy, training, chains, seed, final=False)
            score = -float(energies(energy, validation).mean()) - log_z.value
            usable = log_z.trusted and math.isfinite(score)
            yield Checkpoint(score if usable else -math.inf, energy, chains, update, seconds)
            if not math.isfinite(score):
                return
            begin = time.process_time()


def candidates(make_learner, training, validation, seed, choice):
    """Return the checkpoints of all settings, best first, by successive halving.

    With a choice (learning rate, step, best update), those of this setting.
    """
    found, running = [], []
    grid, rungs = (choice[:2],) if choice else GRID, RUNGS
    if choice:
        rungs = (min(RUNGS[-1], N_BETWEEN * math.ceil(LONGER * choice[2] / N_BETWEEN)),)
    for setting in grid:
        rate, step = setting
        learner = make_learner(training.shape[1], step)
        running.append((checkpoints(learner, rate, training, validation, seed), setting))
    done = 0
    for rung in rungs:
        ranked = []
        for run, setting in running:
            items = list(itertools.islice(run, (rung - done) // N_BETWEEN))
            found += [(item, setting) for item in items]
            ranked.append((max((item.score for item in items), default=-math.inf), run, setting))
        ranked.sort(key=lambda entry: -entry[0])
        running = [entry[1:] for entry in ranked[: len(ranked) // 2]]
        done = rung
    return sorted(found, key=lambda entry: -entry[0].score)


def contrastive_rival(make_learner, X, seed, choice):
    """Fit a marginal energy with one library's parts; see the top of this file."""
    with torch.random.fork_rng(devices=[]):  # the libraries draw from the global generator
        torch.manual_seed(seed)
        training, validation = split_rows(X, seed)
        finalists = []
        ranked = candidates(make_learner, training, validation, seed, choice)
        for found, setting in ranked[:N_FINALISTS]:
            log_z = normalise(found.energy, training, found.chains, seed, final=True)
            score = -float(energies(found.energy, validation).mean()) - log_z.value
            usable = log_z.trusted and math.isfinite(score)
            finalists.append((score if usable else -math.inf, found, log_z, setting))
    _, found, log_z, setting = max(finalists, key=lambda entry: entry[0])
    energy = found.energy

    def score_samples(rows):
        x = torch.from_numpy(np.asarray(rows, dtype=np.float64)).float()
        return -energies(energy, x).numpy() - log_z.value

    diverged = not log_z.trusted or below_gaussian(X, score_samples(X))
    text = f"learning rate {setting[0]:g}, Langevin step {setting[1]:g}, {found.update} updates"
    text = f"{text}, log Z {log_z.value:.2f} by {log_z.text}"
    return Fitted(score_samples, text, diverged, (*setting, found.update))


def persistent_cd_torchebm(X, seed, choice=()):
    """Fit a marginal energy by the persistent contrastive divergence of torchebm."""
    return contrastive_rival(torchebm_learner, X, seed, choice)


def persistent_cd_ebmkit(X, seed, choice=()):
    """Fit a marginal energy by the persistent contrastive divergence of ebmkit."""
    return contrastive_rival(ebmkit_learner, X, seed, choice)
