"""The computations behind `bound_quality.py`: each function returns one row as a dictionary."""

import copy
import functools
import inspect
import multiprocessing
import resource
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import quadrature
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from toy_data import TOYS, curved_rows, toy_rows

from sklvebm import ParticleLVEBM
from sklvebm.estimators._common.session import FitSession
from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.estimators._ebm.config import likelihood_config
from sklvebm.estimators._ebm.normalization import TrainedParticles, normalise
from sklvebm.inference.posterior import posterior_particles
from sklvebm.inference.variational import evidence_bound, fit_amortised, fit_gaussians
from sklvebm.models.energies import LinearGaussianEnergy
from sklvebm.preprocessing.prepared import prepare
from sklvebm.row_weights import distinct_rows
from sklvebm.runtime import numerical_session
from sklvebm.smc.resampling import effective_sample_size

N_FEATURES, N_LATENTS = 56, 8  # of the Gaussian model


class Sizes(NamedTuple):
    """How much work each part does."""

    seeds: int = 5
    toys: tuple[str, ...] = tuple(TOYS)
    latents: tuple[int, ...] = (1, 2)
    families: tuple[str, ...] = (*TOYS, "digits")
    n_train: int = 2000
    n_evaluate: int = 1000
    n_grid: int = 400  # of the quadrature, per side; refined where that is not enough
    n_refits: int = 10
    gaussian_seeds: int = 20
    n_scored: int = 10_000
    n_family_rows: int = 200
    n_gaussian_steps: int = 300
    n_encoder_steps: int = 2000
    n_replicates: int = 8
    max_iter: int = 200  # the default of ParticleLVEBM


def fitted(n_components, X, **parameters):
    """Fit a model without warnings on the screen; uncertain ones show in the tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ParticleLVEBM(n_components, margins="none", **parameters).fit(X)


@functools.lru_cache(maxsize=8)
def fitted_toy(name, n_latents, seed, sizes):
    X, _ = toy_rows(name, sizes.n_train, sizes.n_evaluate)
    return fitted(n_latents, X, random_state=seed, max_iter=sizes.max_iter)


def digits_rows():
    """Return training and held-out digits, as in the quickstart."""
    X, y = load_digits(return_X_y=True)
    X = X + np.random.default_rng(0).uniform(size=X.shape)
    return train_test_split(X, test_size=1 / 3, random_state=0, stratify=y)


@functools.lru_cache(maxsize=1)
def fitted_digits(sizes):
    return fitted(8, digits_rows()[0], random_state=0, max_iter=sizes.max_iter)


def standardised(model, X):
    return torch.from_numpy((X - model.mean_) / model.scale_)


def log_jacobian(model):
    return -float(np.log(model.scale_).sum())


def call_with_known(function, **arguments):
    """Call a function with those of the keyword arguments that it has."""
    known = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in known})


# Private names of the package appear in the next three functions only ---------------------------


def particles_of(model, x, seed=None):
    """Return the posterior particles that scoring uses, or those of another seed, in parts."""
    inner = model._model
    seed = inner.seed if seed is None else seed
    with numerical_session(torch.get_num_threads()):
        parts = [
            call_with_known(
                posterior_particles,
                energy=model.energy_,
                x=rows,
                step_size=inner.latent_step_size,
                seed=seed,
            )
            for rows in x.split(128)
        ]
    return parts


def normalised_again(model, X, seed):
    """Return log Z of a model fitted to X, estimated anew from the particles training left."""
    config = likelihood_config(model.get_params(), *X.shape)
    split = config.held_out_share, model._split_seed, model._model.standardisation
    data = prepare(distinct_rows(X, None), *split)
    session = FitSession(data, config, np.random.RandomState(seed), Reporter(model, "ELBO"))
    state = model._training.state
    rows = standardised(model, X).to(state.pool.dtype)
    trained = TrainedParticles(state, rows, seed, torch.Generator().manual_seed(seed))
    energy = copy.deepcopy(model.energy_).to(state.pool.dtype)
    with numerical_session(torch.get_num_threads()):
        again, _ = normalise(session, energy, model.reference_, trained)
    return again.log_partition


def both_bounds(model, X):
    """Return lower and upper bounds of rows; the second is None where there is none."""
    lower = model.score_samples(X)
    if "bound" not in inspect.signature(model.score_samples).parameters:
        return lower, None
    return lower, model.score_samples(X, bound="upper")


def bracket(log_z):
    """Return the fields of a `LogPartition` as a dictionary."""
    return {name: float(getattr(log_z, name)) for name in log_z._fields}


# Toys --------------------------------------------------------------------------------------------


def toy_row(name, n_latents, seed, sizes):
    """Compare one fitted model with quadrature."""
    begin = time.perf_counter()
    model = fitted_toy(name, n_latents, seed, sizes)
    fit_seconds = time.perf_counter() - begin
    _, X = toy_rows(name, sizes.n_train, sizes.n_evaluate)
    x, log_z = standardised(model, X), model.log_partition_
    exact = quadrature.posterior(model.energy_, x)
    n_nodes, node_error = quadrature.check_nodes(model.energy_, x, exact.log_evidence)
    grid = quadrature.integrate(model.energy_, n_nodes, sizes.n_grid)
    log_r = model.reference_.log_marginal(x).numpy()
    truth = float((log_r + exact.log_evidence).mean())
    truth += log_jacobian(model) - grid.log_partition
    lower, upper = both_bounds(model, X)
    gap = float(lower.mean()) - truth
    return {
        "score": float(lower.mean()),
        "truth": truth,
        "gap": gap,
        "evidence_gap": gap + log_z.upper - grid.log_partition,
        "log_z": bracket(log_z),
        "log_z_quadrature": grid.log_partition,
        "log_z_error": log_z.value - grid.log_partition,
        "standard_error": log_z.standard_error,
        "width": log_z.upper - log_z.lower,
        "upper_gap": None if upper is None else float(upper.mean()) - truth,
        "between": None if upper is None else float((upper - lower).mean()),
        **mean_errors(model, X, exact),
        "reference_error": grid.reference_error,
        "grid_change": grid.change,
        "node_error": node_error,
        "n_grid": grid.n_grid,
        "n_nodes": grid.n_nodes,
        "fit_seconds": fit_seconds,
        "seconds": time.perf_counter() - begin,
        "n_iter": model.n_iter_,
        "diagnostics": getattr(model, "diagnostics_", None),
    }


def mean_errors(model, X, exact):
    """Return the largest error of `transform` in posterior standard deviations."""
    x = standardised(model, X)
    e = model.reference_.from_latents(x, torch.from_numpy(model.transform(X))).numpy()
    errors = np.abs(e - exact.mean) / exact.deviation
    sizes = [effective_sample_size(part.log_weights) for part in particles_of(model, x)]
    standard_errors = torch.cat(sizes).rsqrt().numpy()
    worst = int(errors.max(1).argmax())
    return {
        "mean_error": float(errors.max()),
        "mean_standard_error": float(standard_errors[worst]),
        "least_effective": float(standard_errors.max() ** -2),
    }


# Digits ------------------------------------------------------------------------------------------


def digits_fit(sizes):
    """Fit digits; return its normaliser and the time it takes to score held-out rows."""
    begin = time.perf_counter()
    model = fitted_digits(sizes)
    fit_seconds = time.perf_counter() - begin
    X = digits_rows()[1]
    begin = time.perf_counter()
    lower = model.score_samples(X)
    score_seconds = time.perf_counter() - begin
    upper = both_bounds(model, X)[1]
    return {
        "score": float(lower.mean()),
        "between": None if upper is None else float((upper - lower).mean()),
        "log_z": bracket(model.log_partition_),
        "n_scored": len(X),
        "fit_seconds": fit_seconds,
        "score_seconds": score_seconds,
        "diagnostics": getattr(model, "diagnostics_", None),
    }


def digits_refit(seed, sizes):
    """Estimate log Z of the fitted digits model with another seed."""
    model = fitted_digits(sizes)
    begin = time.perf_counter()
    log_z = normalised_again(model, digits_rows()[0], 1000 + seed)
    return {"log_z": bracket(log_z), "seconds": time.perf_counter() - begin}


# Gaussian ----------------------------------------------------------------------------------------


def gaussian_row(seed):
    """Bracket log Z of a Gaussian on 64 dimensions, from the reference of another Gaussian."""
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((N_LATENTS, N_FEATURES))
    X = rng.standard_normal((2000, N_LATENTS)) @ loadings + rng.standard_normal((2000, N_FEATURES))
    parameters = {"max_iter": 0, "early_stopping": False, "random_state": seed}
    start = fitted(N_LATENTS, X, reference="gaussian", **parameters)
    energy = gaussian_energy(start, X, rng)
    begin = time.perf_counter()
    model = fitted(N_LATENTS, X, reference=start.reference_, energy=energy, **parameters)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        exact = float(model.energy_.network.log_partition())
    log_z = model.log_partition_
    return {
        "exact": exact,
        "log_z": bracket(log_z),
        "error": log_z.value - exact,
        "lower_error": log_z.lower - exact,
        "upper_error": log_z.upper - exact,
        "width": log_z.upper - log_z.lower,
        "standard_error": log_z.standard_error,
        "seconds": seconds,
    }


def gaussian_energy(start, X, rng):
    """Return a Gaussian model some five nats (Kullback-Leibler) away from a fitted reference."""
    reference = start.reference_
    x = standardised(start, X).numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T))
    root = vectors * np.sqrt(values)
    noise = rng.normal(scale=0.05, size=(N_FEATURES, N_FEATURES))
    stretch, turn = np.linalg.eigh((noise + noise.T) / np.sqrt(2.0))
    shape = root @ turn * np.exp(0.5 * stretch)  # covariance shape shape^T
    mean = 0.3 * root @ rng.standard_normal(N_FEATURES)
    scale = reference.latent_scale.numpy()
    tilt = rng.normal(scale=0.3 / np.sqrt(N_FEATURES), size=(N_LATENTS, N_FEATURES))
    design = reference.latent_map.numpy() + scale[:, None] * tilt @ np.linalg.inv(root)
    inverse_scale = np.exp(rng.normal(scale=0.1, size=N_LATENTS)) / scale
    half = inverse_scale[:, None] * np.hstack([design, -np.eye(N_LATENTS)])
    precision = half.T @ half
    precision[:N_FEATURES, :N_FEATURES] += np.linalg.inv(shape @ shape.T)
    ridge = 0.5 * float(np.linalg.eigvalsh(precision)[0])
    energy = LinearGaussianEnergy(N_FEATURES, N_LATENTS, ridge).double()
    width = N_FEATURES + N_LATENTS
    with torch.no_grad():
        factor = np.linalg.cholesky(precision - ridge * np.eye(width))
        energy.factor.copy_(torch.from_numpy(factor))
        energy.mean[:N_FEATURES] = torch.from_numpy(mean)
    return energy


# Throughput --------------------------------------------------------------------------------------


def throughput_row(sizes):
    """Score many rows in a fresh process, so that its peak memory is that of scoring."""
    model = fitted(2, curved_rows(2000, seed=0), max_iter=min(5, sizes.max_iter), random_state=0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(score_many, model, sizes.n_scored).result()


def score_many(model, n_rows):
    """Return time and growth of the peak memory of scoring, and how chunking changes it."""
    X = curved_rows(n_rows + 2000, seed=0)[2000:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    scores = model.score_samples(X)
    seconds = time.perf_counter() - begin
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    alone = model.score_samples(X[:50])
    return {
        "n_rows": n_rows,
        "seconds": seconds,
        "rows_per_second": n_rows / seconds,
        "memory_mb": growth / 1024.0,  # ru_maxrss is in KiB on Linux
        "threads": torch.get_num_threads(),
        "difference": float(np.abs(alone - scores[:50]).max()),
    }


# Families ----------------------------------------------------------------------------------------


def families_row(name, sizes):
    """Return the mean evidence of the same rows by each family, on one energy.

    Rows share nodes and random numbers, so a standard error is not divided by the root of the
    number of rows. Each wider family starts from the fitted narrower one.
    """
    if name == "digits":
        model, (train, X) = fitted_digits(sizes), digits_rows()
    else:
        model = fitted_toy(name, 2, 0, sizes)
        train, X = toy_rows(name, sizes.n_train, sizes.n_evaluate)
    x = standardised(model, X[: sizes.n_family_rows])
    with numerical_session(torch.get_num_threads()):
        row = gaussian_families(model.energy_, standardised(model, train), x, sizes)
        replicates = []
        for seed in range(sizes.n_replicates):
            parts = particles_of(model, x, 10_000 + 100 * seed)
            evidence = torch.cat([part.log_total_weight() for part in parts])
            replicates.append(float(evidence.mean()))
        error = float(np.std(replicates, ddof=1) / np.sqrt(len(replicates)))
        row["particles"] = (float(np.mean(replicates)), error)
        if name != "digits":
            exact = quadrature.posterior(model.energy_, x).log_evidence
            row["quadrature"] = (float(exact.mean()), 0.0)
        shift = float(model.reference_.log_marginal(x).mean())
    shift += log_jacobian(model) - model.log_partition_.upper
    return {family: (value + shift, error) for family, (value, error) in row.items()}


def gaussian_families(energy, train, x, sizes):
    """Return mean evidence and standard error by three families of Gaussians."""
    encoder = fit_amortised(
        energy, train, n_steps=sizes.n_encoder_steps, generator=torch.Generator().manual_seed(0)
    )
    amortised = encoder.gaussians(x)
    steps = {"n_steps": sizes.n_gaussian_steps}
    diagonal = fit_gaussians(energy, x, diagonal=True, start=amortised, **steps)
    full = fit_gaussians(energy, x, diagonal=False, start=diagonal, **steps)
    row = {}
    for family, q in {"amortised": amortised, "diagonal": diagonal, "full": full}.items():
        bound = evidence_bound(energy, x, q, seed=5000)
        row[family] = (float(bound.value.mean()), float(bound.standard_error.mean()))
    return row
