"""Rows in parts: side by side where the work is large, one after another where memory is short."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sklvebm.mcmc.state import IndependentNoise
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.energies import multiply_adds
from sklvebm.threads import n_parts, side_by_side

# rows whose activations a gradient keeps, and how many at a time where there are more
_MOST_IN_GRAPH, _PART = 2**14, 2**12


def parts_of_work(energy: nn.Module, n_rows: int, device: torch.device, further: int = 0) -> int:
    """Return into how many parts to cut calls of an energy on rows: one on a GPU.

    Parameters
    ----------
    energy : torch.nn.Module
        What is called.
    n_rows : int
        Its rows.
    device : torch.device
        Where they are.
    further : int, default=0
        Multiply-adds per row beside those of the network.
    """
    return n_parts(n_rows, multiply_adds(energy) + further) if device.type == "cpu" else 1


def noises_of_parts(noise: IndependentNoise, n: int) -> list[IndependentNoise]:
    """Return sources of noise for n parts; the source itself for one."""
    if n == 1:
        return [noise]
    device = noise.generator.device
    seeds = torch.randint(2**62, (n,), generator=noise.generator, device=device).tolist()
    return [IndependentNoise(torch.Generator(device).manual_seed(seed)) for seed in seeds]


def in_parts(network: nn.Module, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Return `function(*rows)`, (B, ...), for tensors of B rows each, in parts where B is large.

    Beyond 2^14 rows, parts are computed again on the way back: activations of all rows would be
    many times the rows. Only parameters are differentiated in parts, not the rows.

    Parameters
    ----------
    network : torch.nn.Module
        Has all parameters that the function depends on.
    function : callable
        Treats every row by itself.
    *rows : Tensor of shape (B, ...)
        Its arguments.
    """
    n_rows = len(rows[0])
    size = _part_size(network, n_rows, rows[0].device)
    if size >= n_rows:
        return function(*rows)
    parameters = [p for p in network.parameters() if p.requires_grad]
    # torch has no annotations for `apply`
    values: Tensor = _InParts.apply(  # type: ignore[no-untyped-call]
        function, size, len(rows), *rows, *parameters
    )
    return values


class Rows(Protocol):
    """Rows (B, D + L), of which slices are made when they are needed, as those of a tensor."""

    def __len__(self) -> int:
        """Return their number."""

    def __getitem__(self, part: slice) -> Tensor:
        """Return some of them."""


class JoinedRows:
    """Rows, and those of particles of a pool, which are mapped when they are needed.

    All of them together would take as much memory as a large pool.
    """

    def __init__(self, reference: MixtureReference, first: Tensor, particles: Tensor) -> None:
        self.reference = reference
        self.first = first  # (N, D + L), rows
        self.particles = particles  # (M, D + L), in the reference's coordinates

    def __len__(self) -> int:
        return len(self.first) + len(self.particles)

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(len(self))
        n = len(self.first)
        own = self.particles[max(start - n, 0) : max(stop - n, 0)]
        return torch.cat([self.first[start:stop], self.reference.rows(own)])


def contrast_in_parts(
    network: nn.Module, contrast: Callable[[Tensor, Tensor], Tensor], rows: Rows, weights: Tensor
) -> Tensor:
    """Return `contrast(rows, weights)`, 0-d, in parts as `in_parts` makes them.

    Parameters
    ----------
    network : torch.nn.Module
        What the contrast evaluates.
    contrast : callable
        A sum over rows that keeps no activations; see `backends.select_contrast`.
    rows : Rows
        Rows (x, z), a tensor for example.
    weights : Tensor of shape (B,)
        Their weights.
    """
    size = _part_size(network, len(rows), weights.device)
    if size >= len(rows):
        return contrast(rows[:], weights)

    def of_part(own: Tensor, first: int) -> Tensor:
        return contrast(rows[first : first + size], own)

    parts = _of_parts(of_part, weights.split(size), range(0, len(rows), size))
    return torch.stack(parts).sum()


def _of_parts(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """Return `function` of each part: side by side on the CPU.

    Elsewhere in turn: threads have streams of their own, which a CUDA graph does not record.
    """
    if columns[0][0].device.type == "cpu":
        return side_by_side(function, *columns)
    return [function(*part) for part in zip(*columns, strict=True)]


def _part_size(network: nn.Module, n_rows: int, device: torch.device) -> int:
    """Return the number of rows of a part."""
    if n_rows > _MOST_IN_GRAPH:
        return _PART
    return -(-n_rows // parts_of_work(network, n_rows, device))


class _InParts(torch.autograd.Function):
    """One node of the graph for all parts.

    The way back of a graph runs on one thread, and here parts go side by side. Beyond what a graph
    keeps, nodes for each part would also leave their small results between the large activations
    that are made and freed, and the C library could not give the same memory to the next part: the
    process would grow by ten times what it uses.
    """

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], size: int, n_arguments: int, *tensors: Tensor
    ) -> Tensor:
        rows = tensors[:n_arguments]
        ctx.function, ctx.parameters, ctx.size = function, tensors[n_arguments:], size
        ctx.save_for_backward(*rows)
        keeps_graphs = len(rows[0]) <= _MOST_IN_GRAPH and any(ctx.needs_input_grad)

        def value(*part: Tensor) -> Tensor:
            with torch.set_grad_enabled(keeps_graphs):
                return function(*part)

        values = _of_parts(value, *(t.split(size) for t in rows))
        ctx.values = values if keeps_graphs else None
        return torch.cat([part.detach() for part in values])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, parameters = ctx.saved_tensors, ctx.parameters

        slopes = grad.split(ctx.size)
        # made before the activations of any part, between which gradients would leave holes
        shares = [p.new_empty((len(slopes), *p.shape)) for p in parameters]

        def share(slope: Tensor, number: int, values: Tensor | None, *part: Tensor) -> None:
            if values is None:
                with torch.enable_grad():
                    values = ctx.function(*part)
            own = torch.autograd.grad(
                values, parameters, slope, allow_unused=True, materialize_grads=True
            )
            for every, of_part in zip(shares, own, strict=True):
                every[number].copy_(of_part)

        kept = ctx.values or [None] * len(slopes)
        ctx.values = None  # the graphs can be walked once
        numbers = range(len(slopes))
        _of_parts(share, slopes, numbers, kept, *(t.split(ctx.size) for t in rows))
        totals = [every.sum(0) for every in shares]
        return (None, None, None, *(None for _ in rows), *totals)
