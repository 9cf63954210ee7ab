"""A `torch.distributions` object as a factor of `compose`: mixtures exactly, others by energies."""

from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, distributions

from sklvebm.estimators.mixture_stack import MixtureStack
from sklvebm.inference.products import Expert
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.runtime import numerical_session

_N_DRAWS = 2000  # of a distribution, for the mixture that covers it
_N_CHECKED = 64  # draws whose log-density is checked, in and around the distribution
_STRETCH = 2.0  # of draws, away from their mean
_SEED = 0


class DistributionExpert(BaseEstimator):
    """A distribution over rows as a density that `compose` takes; it has nothing to fit.

    Gaussian distributions and mixtures of them become a `MixtureReference`, exactly. Any other one
    is an energy, its negative log-density, on a mixture fitted to draws of it.

    Parameters
    ----------
    distribution : torch.distributions.Distribution
        With `event_shape` (n_features,), `log_prob` and `sample` in float64, positive everywhere.
    """

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution
        self.n_features_in_ = _checked_width(distribution)
        self._mixture = _gaussian_mixture(distribution)
        with torch.no_grad():
            self._reference = self._mixture or self._covering()

    def __deepcopy__(self, memo: Any) -> "DistributionExpert":
        # transforms of a flow hold tensors with gradients, which cannot be copied
        return self

    def _covering(self) -> MixtureReference:
        """Return a mixture fitted to draws, in the units of the rows."""
        drawn = _draws(self.distribution, _N_DRAWS)
        with numerical_session(1):
            stack = MixtureStack(max_components=20, margins="none", random_state=_SEED)
            fitted = stack.fit(drawn.numpy())
        self._units = (torch.from_numpy(fitted.mean_), torch.from_numpy(fitted.scale_))
        near = drawn[:_N_CHECKED]
        # an edge of the support lies between draws and what they become when they are stretched
        _check_values(self.distribution, torch.cat([near, near + _STRETCH * (near - near.mean(0))]))
        return fitted.reference_

    def _expert(self) -> Expert:
        """Return the density as a factor of `sklvebm.compose`."""
        width = self.n_features_in_
        if self._mixture is not None:
            mean, scale = torch.zeros(width).double(), torch.ones(width).double()
            return Expert(self._mixture, lambda x, z: x.new_zeros(len(x)), mean, scale, 0.0, True)
        mean, scale = self._units
        reference = self._reference

        def correction(x: Tensor, z: Tensor) -> Tensor:
            own = self.distribution.log_prob(x.double() * scale + mean) + scale.log().sum()
            return (reference.log_marginal(x.double()) - own).to(x)

        return Expert(reference, correction, mean, scale, 0.0, False)


def _checked_width(distribution: Any) -> int:
    """Return the number of features of a distribution, or raise."""
    if not isinstance(distribution, distributions.Distribution):
        hint = ""
        if isinstance(distribution, torch.nn.Module):
            hint = " A lazy flow of zuko is called to give its distribution: flow()."
        raise TypeError(
            f"distribution must be a torch.distributions.Distribution, got "
            f"{type(distribution).__name__}.{hint}"
        )
    event, batch = tuple(distribution.event_shape), tuple(distribution.batch_shape)
    if len(event) != 1 or batch:
        raise ValueError(
            "distribution must have event_shape (n_features,) and batch_shape (), got "
            f"{event} and {batch}; torch.distributions.Independent(distribution, 1) makes features "
            "of a batch."
        )
    return int(event[0])


def _draws(distribution: Any, number: int) -> Tensor:
    """Return draws (N, D) in float64; the global source of random numbers is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            drawn = distribution.sample((number,))
        except NotImplementedError as error:
            raise ValueError(
                f"distribution must have `sample`, which {type(distribution).__name__} has not."
            ) from error
    if drawn.dtype != torch.float64:
        raise ValueError(
            f"distribution must compute in float64, got draws of {drawn.dtype}; convert its "
            "parameters, a flow by flow.double()."
        )
    if not torch.isfinite(drawn).all():
        raise ValueError("draws of distribution must be finite, got NaN or infinity.")
    return drawn.detach().cpu()


def _check_values(distribution: Any, rows: Tensor) -> None:
    """Raise ValueError where a log-density has another shape or is not finite."""
    try:
        values = distribution.log_prob(rows)
    except NotImplementedError as error:
        raise ValueError(
            f"distribution must have `log_prob`, which {type(distribution).__name__} has not."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"distribution must be positive everywhere, but log_prob refuses a row: {error}"
        ) from error
    if values.shape != rows.shape[:1]:
        raise ValueError(
            f"log_prob of {len(rows)} rows must have shape ({len(rows)},), got "
            f"{tuple(values.shape)}."
        )
    if not torch.isfinite(values).all():
        raise ValueError(
            "distribution must be positive and finite everywhere, but log_prob of a row near its "
            f"draws is {float(values[~torch.isfinite(values)][0])}."
        )


def _gaussian_mixture(distribution: Any) -> MixtureReference | None:
    """Return a Gaussian distribution or mixture of them as a reference; None for all others."""
    weights, parts = torch.ones(1), distribution
    if isinstance(distribution, distributions.MixtureSameFamily):
        weights, parts = (
            distribution.mixture_distribution.probs,
            distribution.component_distribution,
        )
    base = parts
    if isinstance(parts, distributions.Independent) and parts.reinterpreted_batch_ndims == 1:
        base = parts.base_dist
    if type(base) is distributions.Normal and base is not parts:
        means, covariances = base.loc, torch.diag_embed(base.scale**2)
    elif type(parts) is distributions.MultivariateNormal:
        means, covariances = parts.loc, parts.covariance_matrix
    else:
        return None
    width = means.shape[-1]
    known = (weights, means.reshape(-1, width), covariances.reshape(-1, width, width))
    weights, means, covariances = (part.detach().cpu().double() for part in known)
    if not all(bool(torch.isfinite(part).all()) for part in (weights, means, covariances)):
        raise ValueError("parameters of distribution must be finite, got NaN or infinity.")
    one = torch.ones(1, dtype=torch.float64)
    maps = {"latent_map": one.new_ones(1, width), "latent_variance": one, "location": means[0]}
    return MixtureReference(weights, means, covariances, **maps).without_latents()
