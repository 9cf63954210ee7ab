r"""Products of powers of densities: their factors, a covering reference, draws and normaliser.

.. math:: E(x) = -\sum_i w_i \log p_i(x), \qquad Z = \int \prod_i p_i(x)^{w_i} dx
          \qquad \text{(docs/theory/composition.md, eq. 1)}

An *expert* is one factor. Latents of experts with weight 1 are sampled jointly: the product over x
is exactly the marginal of the product on `(x, z_1, z_2, ...)`. With other weights, the power of the
marginal is not the marginal of the power, and latents are integrated out over fixed nodes.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from sklvebm.inference.equilibration import MIN_WALKERS, Equilibrated, bracketed, equilibrated
from sklvebm.inference.missed_components import missed_components
from sklvebm.mcmc.state import Target, stack_rows
from sklvebm.mixtures.components import LOG_2PI
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.targets import autograd_correction_and_grad, joint_target
from sklvebm.preprocessing.scaling import Standardisation
from sklvebm.smc.log_partition import Normalisation
from sklvebm.smc.quasi_random import latent_nodes

_MAX_PAIRED_NUMBERS = 2**24  # entries of the precisions of all pairs of components: 128 MB
_MAX_COMPONENTS = 256  # of the reference of a product
_MAX_TAIL_COMBINATIONS = 4096  # combinations of components in the check of the tails
_TAIL_WEIGHT = 0.2  # of the component with the composition's tails
_MIN_PRECISION_SHARE = 1e-6  # of a precision, that must remain in all directions after division
_MIN_ENERGY_NODES = 256  # latent nodes of experts with weight 1, for their energy only
_CHUNK_POSITIONS = 2**14  # rows times nodes at once


class Expert(NamedTuple):
    """One factor of a composition: a reference, a correction and the units of both.

    Estimators with a method `_expert()` that returns one can be composed.

    Attributes
    ----------
    reference : MixtureReference
        Normalised, float64, in standardised units.
    correction : callable
        Maps standardised x (B, D) and latents z (B, L) of the reference to the energy above the
        reference's, (B,), nats; differentiable in both. L may be zero.
    mean, scale : Tensor of shape (D,)
        Rows x in the units of the data are `(x - mean) / scale` in standardised ones.
    log_partition : float
        log Z of reference and correction, nats. Draws and scores do not depend on it.
    bounded : bool
        Whether the correction is bounded, so that the reference has the tails of the density.
    """

    reference: MixtureReference
    correction: Callable[[Tensor, Tensor], Tensor]
    mean: Tensor
    scale: Tensor
    log_partition: float
    bounded: bool


def affine_units(units: Standardisation) -> dict[str, Any]:
    """Return `mean` and `scale` of an expert.

    Raises
    ------
    ValueError
        If some columns are mapped: the tails of a product are known for Gaussian mixtures only.
    """
    if units.margins is not None:
        columns = np.flatnonzero(units.is_mapped).tolist()
        raise ValueError(
            f"A model whose columns {columns} are mapped to normal ones cannot be composed. Fit it "
            "with margins='none'."
        )
    return {name: torch.from_numpy(np.array(getattr(units, name))) for name in ("mean", "scale")}


class Composition:
    """A product of powers as an energy anchored on a mixture, in units of one expert.

    Parameters
    ----------
    experts : sequence of Expert
        The densities p_i, of the same features.
    weights : sequence of float
        The powers w_i, not zero.
    n_nodes : int
        Nodes over the latents of an expert whose weight is not 1; a power of two. Others use nodes
        for their energy only, at least 256.

    Raises
    ------
    ValueError
        If the product cannot be shown to be integrable.
    """

    def __init__(self, experts: list[Expert], weights: list[float], n_nodes: int) -> None:
        self.experts, self.weights = list(experts), list(weights)
        first = self.experts[self.weights.index(max(self.weights))]
        self.mean, self.scale = first.mean, first.scale
        self.joint = [e.reference.n_latents > 0 and w == 1.0 for e, w in self._pairs()]
        widths = [e.reference.n_latents for e in self.experts]
        self._nodes = [
            latent_nodes(max(n_nodes, _MIN_ENERGY_NODES) if own else n_nodes, width, seed=0)
            if width > 0
            else None
            for width, own in zip(widths, self.joint, strict=True)
        ]
        n_latents = sum(itertools.compress(widths, self.joint))
        self.reference = covering_reference(self._components(), self.weights, n_latents)
        self.n_features, self.n_latents = self.reference.n_features, n_latents

    def _pairs(self) -> Any:
        return zip(self.experts, self.weights, strict=True)

    def _components(self) -> list["Components"]:
        return [components(expert, self.mean, self.scale) for expert in self.experts]

    def _inner(self, expert: Expert, u: Tensor) -> Tensor:
        """Map positions u (B, D) to the standardised units of an expert."""
        return (self.mean + self.scale * u - expert.mean) / expert.scale

    def _log_density(self, number: int, x: Tensor) -> Tensor:
        """Return the normalised log-density of an expert, its latents integrated; (B,), nats."""
        expert = self.experts[number]
        base = expert.reference.log_marginal(x) - expert.log_partition
        base = base - torch.log(expert.scale).sum()
        nodes = self._nodes[number]
        if nodes is None:
            return base - expert.correction(x, x[:, :0])
        k = len(nodes)
        rows = stack_rows(x, k)
        z = expert.reference.to_latents(rows, nodes.repeat(len(x), 1))
        f = expert.correction(rows, z).reshape(len(x), k)
        return base + torch.logsumexp(-f, 1) - math.log(k)

    def correction(self, u: Tensor, e: Tensor) -> Tensor:
        """Return the energy of u (B, D) with whitened latents e (B, L) above the reference's."""
        total = self.reference.log_marginal(u) - torch.log(self.scale).sum()
        offset = 0
        for number, (expert, weight) in enumerate(self._pairs()):
            x = self._inner(expert, u)
            if not self.joint[number]:
                total = total - weight * self._log_density(number, x)
                continue
            own = e[:, offset : offset + expert.reference.n_latents]
            offset += expert.reference.n_latents
            f = expert.correction(x, expert.reference.to_latents(x, own))
            log_marginal = expert.reference.log_marginal(x) - torch.log(expert.scale).sum()
            total = total + f - log_marginal + expert.log_partition
        return total

    def energy(self, X: Tensor) -> Tensor:
        """Return `-sum w_i log p_i` of rows X (N, D) in the units of the data; (N,), nats."""
        per_row = max((len(nodes) for nodes in self._nodes if nodes is not None), default=1)
        parts = []
        for rows in X.split(max(1, _CHUNK_POSITIONS // per_row)):
            terms = [
                weight * self._log_density(number, (rows - expert.mean) / expert.scale)
                for number, (expert, weight) in enumerate(self._pairs())
            ]
            parts.append(-torch.stack(terms).sum(0))
        return torch.cat(parts)

    def target(self) -> Target:
        """Return the path from the reference to the composition."""
        return joint_target(self, autograd_correction_and_grad(self))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw rows of the composition, (n, D), in the units of the data."""
        position = self.equilibrated(n, generator).chains.position
        u = self.reference.to_features(position[:, : self.n_features])
        return self.mean + self.scale * u

    def normalise(
        self, n_walkers: int, tolerance: float, generator: torch.Generator
    ) -> Normalisation:
        """Bracket log Z, nats, by annealing in both directions with `n_walkers` each."""
        return bracketed(self.equilibrated(n_walkers, generator), tolerance, generator)

    def equilibrated(self, n: int, generator: torch.Generator) -> Equilibrated:
        """Return n chains of the composition, and the path on which they were annealed."""
        nodes = zip(self._nodes, self.joint, strict=True)
        per_position = max(1 if k is None or own else len(k) for k, own in nodes)
        chunk = _CHUNK_POSITIONS // per_position
        missed = missed_components(self, max(n, MIN_WALKERS), generator, chunk=chunk)
        return equilibrated(self, n, missed, generator)


class Components(NamedTuple):
    """Gaussian functions `exp(log_weight) N(u; mean, precision^-1)`; float64."""

    log_weights: Tensor  # (M,)
    means: Tensor  # (M, D)
    precisions: Tensor  # (M, D, D)

    def take(self, index: Tensor) -> "Components":
        """Return some of the components."""
        return Components(*(part[index] for part in self))


def components(expert: Expert, mean: Tensor, scale: Tensor) -> Components:
    """Return the components of an expert's reference, in units `u = (x - mean) / scale`."""
    reference = expert.reference
    factors = reference.factors.double()
    if reference.is_diagonal:
        factors = torch.diag_embed(factors)
    factors = reference.inverse_root.double().T @ factors
    stretch = (scale / expert.scale)[:, None]
    precisions = (stretch * factors) @ (stretch * factors).transpose(1, 2)
    precisions = precisions[reference.covariance_of]
    precisions = precisions / reference.scales.double().square()[:, None, None]
    means = reference.to_features(reference.means).double()
    means = (expert.mean + expert.scale * means - mean) / scale
    return Components(reference.log_weights.double(), means, precisions)


def covering_reference(
    parts: list[Components], weights: list[float], n_latents: int
) -> MixtureReference:
    """Return a mixture that covers a product of powers of mixtures, with white latents.

    Parameters
    ----------
    parts : list of Components
        The mixtures, in common units.
    weights : list of float
        Their powers.
    n_latents : int
        Latents, which are standard normal and independent of x.

    Raises
    ------
    ValueError
        If the product cannot be shown to be integrable.

    Notes
    -----
    Powers of mixtures are taken component by component, which is exact if components do not
    overlap. Products of mixtures are mixtures. Negative powers enter by the tail component only.
    """
    tail = tail_component(parts, weights)
    product: Components | None = None
    for part, weight in zip(parts, weights, strict=True):
        if weight > 0.0:
            powered = power(part, weight)
            product = powered if product is None else multiply(product, powered)
    product = keep_heaviest(cast(Components, product), _MAX_COMPONENTS)
    log_weights = torch.log_softmax(product.log_weights, 0)
    if tail is not None:
        log_weights = torch.cat(
            [
                log_weights + math.log1p(-_TAIL_WEIGHT),
                log_weights.new_tensor([math.log(_TAIL_WEIGHT)]),
            ]
        )
        product = Components(
            log_weights, *(torch.cat(pair) for pair in zip(product[1:], tail[1:], strict=True))
        )
    covariances = torch.cholesky_inverse(torch.linalg.cholesky(product.precisions))
    d = product.means.shape[1]
    shares = log_weights.exp()
    return MixtureReference(
        shares / shares.sum(),
        product.means,
        covariances,
        latent_map=covariances.new_zeros(n_latents, d),
        latent_variance=covariances.new_ones(n_latents),
        location=shares @ product.means,
    )


def power(part: Components, weight: float) -> Components:
    """Raise every component to a positive power."""
    d = part.means.shape[1]
    log_det = torch.logdet(part.precisions)
    constant = 0.5 * ((weight - 1.0) * (log_det - d * LOG_2PI) - d * math.log(weight))
    return Components(weight * part.log_weights + constant, part.means, weight * part.precisions)


def multiply(first: Components, second: Components) -> Components:
    """Return the product of two mixtures, with as many components of each as memory allows."""
    d = first.means.shape[1]
    most = max(8, math.isqrt(min(2**14, _MAX_PAIRED_NUMBERS // d**2)))
    first, second = keep_heaviest(first, most), keep_heaviest(second, most)
    precisions = (first.precisions[:, None] + second.precisions[None]).flatten(0, 1)
    pulls = [(p.precisions @ p.means[:, :, None]).squeeze(2) for p in (first, second)]
    pull = (pulls[0][:, None] + pulls[1][None]).flatten(0, 1)
    root = torch.linalg.cholesky(precisions)
    means = torch.cholesky_solve(pull[:, :, None], root).squeeze(2)
    own = [
        p.log_weights + 0.5 * torch.logdet(p.precisions) - 0.5 * (q * p.means).sum(1)
        for p, q in zip((first, second), pulls, strict=True)
    ]
    log_det = 2.0 * torch.log(torch.diagonal(root, dim1=1, dim2=2)).sum(1)
    log_weights = (own[0][:, None] + own[1][None]).flatten()
    log_weights = log_weights + 0.5 * ((pull * means).sum(1) - log_det - d * LOG_2PI)
    return Components(log_weights, means, precisions)


def keep_heaviest(part: Components, n: int) -> Components:
    """Return n components: the heaviest, and always the widest."""
    if len(part.log_weights) <= n:
        return part
    traces = torch.diagonal(part.precisions, dim1=1, dim2=2).sum(1)
    heaviest = torch.topk(part.log_weights, n).indices
    widest = traces.argmin()
    if not bool((heaviest == widest).any()):
        heaviest[-1] = widest
    return part.take(heaviest)


def tail_component(parts: list[Components], weights: list[float]) -> Components | None:
    r"""Return a Gaussian with the composition's tails, or None if no factor divides.

    At large distances, a mixture decays like its component of least precision in that direction.
    With precisions Λ_im of component m of factor i, the product is integrable if and only if, for
    every direction v,

    .. math:: \sum_{w_i > 0} w_i \min_m v^T \Lambda_{im} v
              > \sum_{w_i < 0} |w_i| \min_m v^T \Lambda_{im} v
              \qquad \text{(docs/theory/composition.md, eq. 2)}

    It suffices that, for every choice of components of the factors with positive weights, some
    choice of components of the others gives a positive definite total precision.

    Raises
    ------
    ValueError
        If this cannot be shown.
    """
    if min(weights) > 0.0:
        return None
    if max(weights) <= 0.0:
        raise ValueError(
            f"At least one weight must be positive, got {weights}: a product of negative powers "
            "grows without bound and cannot be normalised."
        )
    kept = [least_precise(part) for part in parts]
    above = [_scaled(k, w) for k, w in zip(kept, weights, strict=True) if w > 0.0]
    below = [_scaled(k, w) for k, w in zip(kept, weights, strict=True) if w < 0.0]
    if math.prod(len(part) for part in above + below) > _MAX_TAIL_COMBINATIONS:
        raise ValueError(
            "The tails of these models have too many components to show that their product is "
            "integrable; use positive weights, or models with a simpler reference."
        )
    tails = []
    for multiplied in itertools.product(*above):
        tail = _positive_tail(multiplied, below)
        if tail is None:
            raise ValueError(
                f"The composition with weights {weights} cannot be shown to be integrable: in some "
                "direction a model with a negative weight decays as fast as the others together, "
                "or faster. Make negative weights smaller or positive ones larger."
            )
        tails.append(tail)
    precision, pull = min(tails, key=lambda tail: float(torch.trace(tail[0])))
    mean = torch.linalg.solve(precision, pull)
    return Components(mean.new_zeros(1), mean[None], precision[None])


def _scaled(part: Components, weight: float) -> list[tuple[Tensor, Tensor]]:
    """Return `weight * precision` and `weight * precision @ mean` of each component."""
    return [(weight * p, weight * (p @ m)) for m, p in zip(*part[1:], strict=True)]


def _positive_tail(multiplied: Any, below: Any) -> tuple[Tensor, Tensor] | None:
    """Return precision and `precision @ mean` of the first positive definite total, or None."""
    total, pull = (sum(terms) for terms in zip(*multiplied, strict=True))
    root = torch.linalg.cholesky(total)
    for divided in itertools.product(*below):
        precision = total + sum(term[0] for term in divided)
        # relative to the factors with positive weights, hence independent of units
        white = torch.linalg.solve_triangular(root, precision, upper=False)
        white = torch.linalg.solve_triangular(root, white.T, upper=False)
        if float(torch.linalg.eigvalsh(white).min()) > _MIN_PRECISION_SHARE:
            return precision, pull + sum(term[1] for term in divided)
    return None


def least_precise(part: Components) -> Components:
    """Return the components that are not at least as precise as another in every direction."""
    order = torch.diagonal(part.precisions, dim1=1, dim2=2).sum(1).argsort()
    kept: list[int] = []
    for number in order.tolist():
        precision = part.precisions[number]
        tolerance = 1e-9 * float(torch.trace(precision))
        if not any(
            float(torch.linalg.eigvalsh(precision - part.precisions[other]).min()) >= -tolerance
            for other in kept
        ):
            kept.append(number)
    return part.take(torch.tensor(kept, device=part.means.device))
