"""Particles, the path of targets on which they move, and sources of noise.

Shape letters of the package: `N` rows of X, `B` any list of positions, `K` particles per row,
`T` temperatures, `C` chains per temperature, `D` features, `L` latents, `P` position width.

Every target is a point of a path from a known density to the wanted one
(docs/theory/model.md, eq. 4),

    E_b(position) = base(position) + b * correction(position),   0 <= b <= 1,

so that tempering, annealing and plain sampling (b = 1) share one kind of evaluation.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Value(NamedTuple):
    """The correction at each position, cached from one step to the next; detached."""

    correction: Tensor  # (B,), nats
    grad: Tensor  # (B, P), nats per unit of position


class DeferredValue:
    """A `Value` that is computed when a part of it is first read; see `deferred`."""

    def __init__(self, evaluate: Callable[[Tensor], "AnyValue"], position: Tensor) -> None:
        self._evaluate, self._position = evaluate, position
        self._value: AnyValue | None = None

    def _computed(self) -> "AnyValue":
        if self._value is None:
            self._value = self._evaluate(self._position)
        return self._value

    @property
    def correction(self) -> Tensor:
        """Return the correction at each position, (B,), nats."""
        return self._computed().correction

    @property
    def grad(self) -> Tensor:
        """Return its gradient, (B, P), nats per unit of position."""
        return self._computed().grad

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.correction, self.grad))


AnyValue = Value | DeferredValue


class Frame(NamedTuple):
    """Coordinates in which the base of a path is a standard normal, one for every position.

    A mixture has one frame for each component. A position's component is drawn from its probability
    given the position. This Gibbs move leaves every target of the path invariant
    (docs/theory/model.md, eq. 5).
    """

    whiten: Callable[[Tensor], Tensor]  # positions (B, P) -> white coordinates (B, P)
    colour: Callable[[Tensor], Tensor]  # its inverse
    pull: Callable[[Tensor], Tensor]  # gradients in positions -> gradients in white coordinates


class Target(NamedTuple):
    """A path of densities that kernels can move particles on."""

    evaluate: Callable[[Tensor], AnyValue]  # positions (B, P) -> corrections and gradients
    base: Callable[[Tensor], tuple[Tensor, Tensor]]  # -> energies (B,) and gradients (B, P)
    frames: Callable[[Tensor, "Noise"], Frame]  # positions, noise -> a frame for each
    # the gradients of `base` alone, where they are cheaper without the energies
    base_grad: Callable[[Tensor], Tensor] | None = None

    def pull(self, position: Tensor) -> Tensor:
        """Return the gradient of the base at positions (B, P), (B, P)."""
        return self.base(position)[1] if self.base_grad is None else self.base_grad(position)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


STANDARD_FRAME = Frame(_unchanged, _unchanged, _unchanged)  # for a standard normal base


class Chains(NamedTuple):
    """Positions with the cached correction at each of them."""

    position: Tensor  # (B, P)
    value: AnyValue


class Batch(NamedTuple):
    """Rows of one update."""

    x: Tensor  # (B, D)
    # (B,), addresses the particles that belong to the rows; hides `tuple.index`
    index: Tensor  # type: ignore[assignment]


class StepInfo(NamedTuple):
    """Statistics of one step."""

    like: Tensor  # (B,), gives shape, dtype and device
    ratio: Tensor | None = None  # (B,), Metropolis ratio; None for unadjusted kernels

    @property
    def acceptance(self) -> Tensor:
        """Return the probability of acceptance, (B,); one for unadjusted kernels."""
        if self.ratio is None:
            return torch.ones_like(self.like)
        return self.ratio.clamp(max=1.0).nan_to_num_(nan=0.0)


class ParticleState(NamedTuple):
    """The particles of a fit, and what is adapted to them.

    Positions are in the reference's own coordinates (`MixtureReference.split`), where the
    reference posterior of the latents is a standard normal.
    """

    # moved at every update
    latents: Any  # the posteriors of all rows; for particles (N, K, L), K per training row
    pool: Tensor  # (T, C, D + L) joint negative particles, one slice per temperature
    # adapted at every update
    pool_step_size: Tensor  # (T,), squared position units per nat
    latent_step_size: Tensor  # 0-d, squared position units per nat
    log_partitions: Tensor  # (T,) float64, nats, relative to the reference; zero first
    spread: Tensor  # (T,) running variance of the correction at each rung, nats^2
    # adapted now and then
    betas: Tensor  # (T,) inverse temperatures, ascending, last one 1
    n_updates: int


def take_chains(chains: Chains, index: Tensor) -> Chains:
    """Select or reorder chains by an integer index (n,)."""
    return Chains(chains.position[index], Value(*(part[index] for part in chains.value)))


def deferred(target: Target) -> Target:
    """Return the target with values that are computed only where they are read.

    The value at the last position of an unadjusted chain, for example, is read by nobody.
    """
    evaluate = target.evaluate
    return target._replace(evaluate=lambda position: DeferredValue(evaluate, position))


def hold_frames(target: Target) -> Target:
    """Return the target with frames that are drawn at the first step and kept for all others.

    Every step leaves the joint distribution of positions and components of the base invariant.
    Components may therefore be redrawn less often than positions. Positions must keep their order.
    """
    held: list[Frame] = []

    def frames(position: Tensor, noise: "Noise") -> Frame:
        if not held:
            held.append(target.frames(position, noise))
        return held[0]

    return target._replace(frames=frames)


def stack_rows(index: Tensor, n_copies: int) -> Tensor:
    """Repeat each row `n_copies` times in place: (B, ...) -> (B * n_copies, ...)."""
    if n_copies == 1:
        return index
    return index.repeat_interleave(n_copies, dim=0)


def averages_of(n_first: int, n_rungs: int, n_chains: int, like: Tensor) -> Tensor:
    """Return the matrix (1 + n_rungs, n_first + n_rungs * n_chains) of means over groups.

    The first group has `n_first` members, the others `n_chains` each.
    """
    matrix = like.new_zeros(1 + n_rungs, n_first + n_rungs * n_chains)
    matrix[0, :n_first] = 1.0 / n_first
    of_rungs = matrix[1:, n_first:].unflatten(1, (n_rungs, n_chains))
    torch.diagonal(of_rungs, dim1=0, dim2=1).fill_(1.0 / n_chains)
    return matrix


def of_chains(of_rungs: Tensor, n_chains: int) -> Tensor:
    """Repeat the value of each rung (T,) for its chains, (T * n_chains,); one rung is expanded."""
    if len(of_rungs) == 1:
        return of_rungs.expand(n_chains)
    return of_rungs.repeat_interleave(n_chains)


class IndependentNoise:
    """Fresh random numbers for every position, from one generator.

    Parameters
    ----------
    generator : torch.Generator
        Source of all numbers; lives on the device of the particles.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers with the shape, dtype and device of `like`."""
        return torch.randn(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform numbers on [0, 1) with the shape, dtype and device of `like`."""
        return torch.rand(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )


class SharedNoise:
    """The same random numbers for every row, so that a row's result depends on that row alone.

    Positions are stacked row by row, `n_copies` particles each. Particle k of every row receives
    the same numbers: results of different rows are correlated, and each is correct. The second half
    of the particles receives the normal numbers of the first with the sign changed.

    Parameters
    ----------
    generator : torch.Generator
        Source of all numbers.
    n_copies : int
        Particles per row.
    """

    def __init__(self, generator: torch.Generator, n_copies: int) -> None:
        self.generator = generator
        self.n_copies = n_copies

    def _expand(self, numbers: Tensor, like: Tensor) -> Tensor:
        n_rows = like.shape[0] // self.n_copies
        return numbers.expand(n_rows, *numbers.shape).reshape(like.shape)

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers, (n_rows * n_copies, ...), equal across rows."""
        shape = ((self.n_copies + 1) // 2, *like.shape[1:])
        half = torch.randn(shape, generator=self.generator, dtype=like.dtype)
        numbers = torch.cat([half, -half])[: self.n_copies]
        return self._expand(numbers.to(like.device), like)

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform numbers on [0, 1), (n_rows * n_copies, ...), equal across rows."""
        shape = (self.n_copies, *like.shape[1:])
        numbers = torch.rand(shape, generator=self.generator, dtype=like.dtype)
        return self._expand(numbers.to(like.device), like)


Noise = IndependentNoise | SharedNoise
