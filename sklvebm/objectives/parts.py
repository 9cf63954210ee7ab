"""Many rows through a network in parts, also where the parameters are differentiated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# rows whose activations a gradient keeps, and how many at a time where there are more
_MOST_IN_GRAPH, _PART = 2**14, 2**12


def in_parts(network: nn.Module, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Return `function(*rows)`, (B,), for tensors of B rows each, in parts where B is large.

    The parts are computed again on the way back: activations of all rows would be many times the
    rows. Only parameters are differentiated then, not the rows.

    Parameters
    ----------
    network : torch.nn.Module
        Has all parameters that the function depends on.
    function : callable
        Treats every row by itself.
    *rows : Tensor of shape (B, ...)
        Its arguments.
    """
    if len(rows[0]) <= _MOST_IN_GRAPH:
        return function(*rows)
    parameters = [p for p in network.parameters() if p.requires_grad]
    return _InParts.apply(function, len(rows), *rows, *parameters)


class _InParts(torch.autograd.Function):
    """One node of the graph for all parts.

    With a node for each, their small results would lie between the large activations that are made
    and freed, and the C library could not give the same memory to the next part: the process would
    grow by ten times what it uses.
    """

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], n_arguments: int, *tensors: Tensor
    ) -> Tensor:
        rows = tensors[:n_arguments]
        ctx.function, ctx.parameters = function, tensors[n_arguments:]
        ctx.save_for_backward(*rows)
        values = rows[0].new_empty(len(rows[0]))
        for out, *part in zip(*(t.split(_PART) for t in (values, *rows)), strict=True):
            out.copy_(function(*part))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, parameters = ctx.saved_tensors, ctx.parameters
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for slope, *part in zip(*(t.split(_PART) for t in (grad, *rows)), strict=True):
            with torch.enable_grad():
                values = ctx.function(*part)
            shares = torch.autograd.grad(values, parameters, slope, allow_unused=True)
            for total, share in zip(totals, shares, strict=True):
                if share is not None:
                    total += share
        return (None, None, *(None for _ in rows), *totals)
