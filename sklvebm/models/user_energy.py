"""Copies energies of the user, and checks them before training."""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import BridgedEnergy

_N_PROBE_ROWS = 256  # rows, and as many draws of the reference
_N_FIRST = 3  # rows of the first call, which checks types and shapes
_NEAR_RADIUS, _FAR_RADIUS = 1e3, 1e6  # standardised units, between which growth is measured
_N_DIRECTIONS = 16  # random directions, besides the axes and the flattest one
_RELATIVE_ROUNDING = 1e-6  # relative differences of energies that count as rounding


def build_user_energy(
    given: Any, reference: MixtureReference, seed: int, *, is_trained: bool
) -> BridgedEnergy:
    """Join a reference to a copy of the user's energy, or to the result of the user's factory.

    An energy that is trained needs parameters that require gradients.

    Raises
    ------
    TypeError, ValueError
        If `energy` is not a module or factory, does not return one differentiable energy per row,
        or has nothing to train.
    """
    if isinstance(given, nn.Module):
        network = copy.deepcopy(given).cpu()
    elif callable(given):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = given(reference.n_features, reference.n_latents)
    else:
        network = given
    if not isinstance(network, nn.Module):
        raise TypeError(
            "energy must be None, a torch.nn.Module or a callable (n_features, n_latents) -> "
            f"Module, got {given!r}."
        )
    energy = BridgedEnergy(reference, network.double())
    _check_values(network, *_draws(reference, _N_FIRST, seed))
    trainable = [parameter.requires_grad for parameter in network.parameters()]
    if not trainable or (is_trained and not any(trainable)):
        raise ValueError(
            "energy must have parameters that require gradients: there is nothing to train in "
            f"{given!r}."
        )
    return energy


def _draws(reference: MixtureReference, n: int, seed: int) -> tuple[Tensor, Tensor]:
    return reference.split(reference.sample(n, torch.Generator().manual_seed(seed)))


def _called(network: nn.Module, x: Tensor, z: Tensor) -> Any:
    """Call the user's energy without an effect on torch's generator."""
    with torch.random.fork_rng(devices=[]):
        return network(x, z)


def _check_values(network: nn.Module, x: Tensor, z: Tensor) -> None:
    """Raise unless the energies of rows x (B, D) are differentiable and of shape (B,)."""
    with torch.enable_grad():
        x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
        try:
            values = _called(network, x, z)
        except RuntimeError as error:
            if "numpy()" not in str(error):
                raise
            raise TypeError(
                "energy must be computed by torch from x and z, so that it can be differentiated, "
                f"but it converts them to NumPy arrays: {error}"
            ) from error
    rule = "energy must return a tensor of floating-point energies that torch can differentiate"
    if not isinstance(values, Tensor):
        kind = type(values)
        raise TypeError(f"{rule}, got {kind.__module__}.{kind.__qualname__}.")
    if not values.is_floating_point():
        raise TypeError(f"{rule}, got a tensor of {values.dtype}.")
    if values.shape != (len(x),):
        raise ValueError(
            "energy must map x (B, n_features) and z (B, n_components) to energies of shape "
            f"(B,); for B = {len(x)} it returned shape {tuple(values.shape)}."
        )
    if not values.requires_grad:
        raise ValueError(f"{rule}, got a detached tensor; compute it without detach or no_grad.")


def probe(energy: BridgedEnergy, rows: np.ndarray, seed: int) -> None:
    """Raise if the user's energy is not finite, not a function of the row, or not integrable.

    Parameters
    ----------
    energy : BridgedEnergy
        Float64, on the CPU.
    rows : ndarray of shape (n_samples, n_features)
        Standardised rows, of which the first are used.
    seed : int
        Seed of draws and directions.

    Raises
    ------
    ValueError
        Names the problem, and where it occurs.
    """
    network, reference = energy.network, energy.reference
    x, z = _draws(reference, 2 * _N_PROBE_ROWS, seed)
    some = torch.from_numpy(np.array(rows[:_N_PROBE_ROWS], dtype=np.float64))
    x = torch.cat([some, x[: len(x) - len(some)]])
    with torch.no_grad():
        values = _called(network, x, z)
    _check_finite(values, x, z)
    _check_function(network, values, x, z)
    _check_integrable(network, x, z, seed)


def _check_finite(values: Tensor, x: Tensor, z: Tensor) -> None:
    for what, wrong in (("NaN", torch.isnan(values)), ("infinite", torch.isinf(values))):
        if wrong.any():
            place = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"energy must be finite wherever rows and latents can be, but it is {what} at "
                f"{int(wrong.sum())} of {len(values)} rows and draws, for example at "
                f"x={_written(x[place])}, z={_written(z[place])} (standardised units)."
            )


def _check_function(network: nn.Module, values: Tensor, x: Tensor, z: Tensor) -> None:
    """Raise if an energy is random, or depends on the other rows of its batch."""
    allowed = _RELATIVE_ROUNDING * (1.0 + values.abs())
    with torch.no_grad():
        change = (_called_elsewhere(network, x, z) - values).abs()
        if not (change <= allowed).all():
            raise ValueError(
                "energy must be a function of x and z, but it is random: the same rows gave "
                f"energies that differ by up to {float(change.max()):.2g} nats. Draw nothing in "
                "forward; dropout is switched off by the module's training flag."
            )
        rule = "energy must be a function of each row alone, but it depends on the batch"
        try:
            alone = torch.cat(
                [_called(network, x[i : i + 1], z[i : i + 1]) for i in range(_N_FIRST)]
            )
        except (IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"{rule}: a single row fails ({error}).") from error
        twice = _called(network, torch.cat([x, x]), torch.cat([z, z]))
    for which, found in (("a row alone", alone), ("the same rows twice in one", twice)):
        own = values[: len(found)]
        change = (found[: len(own)] - own).abs()
        if not (change <= allowed[: len(own)]).all():
            raise ValueError(
                f"{rule}: {which} has energies that differ by {float(change.max()):.2g} nats. "
                "Remove means over rows and batch statistics from forward."
            )


def _called_elsewhere(network: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """Call the user's energy with torch's generator in another state, which is then restored."""
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        return network(x, z)


def _check_integrable(network: nn.Module, x: Tensor, z: Tensor, seed: int) -> None:
    """Raise if an energy grows too slowly along a ray for `exp(-E)` to be integrable.

    In n dimensions, E must grow by more than n nats for each factor e of the radius.
    """
    generator = torch.Generator().manual_seed(seed)
    position = torch.cat([x, z], 1)[:_N_PROBE_ROWS]
    d, width = x.shape[1], position.shape[1]
    with torch.enable_grad():
        at = (position * torch.rand(len(position), 1, generator=generator).mul(4.0)).double()
        at.requires_grad_()
        (slopes,) = torch.autograd.grad(_called(network, at[:, :d], at[:, d:]).sum(), at)
    slopes = torch.nan_to_num(slopes, 0.0, 0.0, 0.0)
    for name, part in (("z", slice(d, width)), ("x", slice(0, d)), ("x and z", slice(0, width))):
        n = part.stop - part.start
        if n == 0:
            continue
        random = torch.randn(_N_DIRECTIONS, n, generator=generator, dtype=torch.float64)
        flattest = torch.linalg.svd(slopes[:, part], full_matrices=True).Vh[-1:]
        rays = torch.cat([torch.eye(n, dtype=torch.float64), flattest, random])
        rays = nn.functional.normalize(torch.cat([rays, -rays]))
        start = position[:1].expand(len(rays), width)
        ends = []
        for radius in (_NEAR_RADIUS, _FAR_RADIUS):
            end = start.clone()
            end[:, part] += radius * rays
            with torch.no_grad():
                ends.append(_called(network, end[:, :d], end[:, d:]))
        # infinite energies are acceptable; between two infinite ones the growth is unknown
        growth = torch.nan_to_num(ends[1] - ends[0], math.inf) / math.log(
            _FAR_RADIUS / _NEAR_RADIUS
        )
        worst = int(growth.argmin())
        if growth[worst] <= n:
            raise ValueError(
                f"exp(-energy) must be integrable, but it is improper in {name}: along "
                f"{_written(rays[worst])} the energy grows by {float(growth[worst]):.2g} nats for "
                f"each factor e of the distance, where more than {n} are needed. Add "
                f"0.5 * ({' + '.join(f'{v}.square().sum(1)' for v in name.split(' and '))})."
            )


def _written(values: Tensor) -> str:
    text = ", ".join(f"{float(value):.3g}" for value in values[:4])
    return f"({text}{', ...' if len(values) > 4 else ''})"
