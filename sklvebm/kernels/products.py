"""Matrix products of a layer, by whichever of torch's two CPU libraries is faster at them.

BLAS has the shorter call, oneDNN the faster kernel: on processors whose vectors BLAS does not use
to their full width it is two to three times as fast, and it applies a tanh on the way
(docs/performance.md).
"""

import torch
from torch import Tensor

_NARROW = 16  # columns up to which BLAS is faster at the transposed product
# multiply-adds of a product above which oneDNN makes up for its longer call
_LARGE = 5e5


def _find_onednn():
    """Return torch's fused linear layer of oneDNN, or None where this build has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        # what torch.compile calls for a linear layer on the CPU
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


_onednn_linear = _find_onednn()


def _suits_onednn(rows: Tensor, n_units: int) -> bool:
    """Tell whether a product of rows (B, K) with n_units columns is better left to oneDNN."""
    return (
        _onednn_linear is not None
        and rows.dtype == torch.float32
        and rows.device.type == "cpu"
        and rows.shape[0] * rows.shape[1] * n_units > _LARGE
    )


def affine(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `rows @ weight.T + bias`, (B, W), for rows (B, K), weight (W, K), bias (W,)."""
    if _suits_onednn(rows, len(weight)):
        return _onednn_linear(rows, weight, bias, "none", [], "")
    return torch.addmm(bias, rows, weight.T)


def affine_tanh(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `tanh(rows @ weight.T + bias)`, (B, W); shapes as `affine`."""
    if _suits_onednn(rows, len(weight)):
        return _onednn_linear(rows, weight, bias, "tanh", [], "")
    # tanh(a) = 2 sigmoid(2 a) - 1, and torch's sigmoid is several times faster than its tanh
    return torch.addmm(bias, rows, weight.T).mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return `rows @ weight`, (B, K), for rows (B, W) and weight (W, K)."""
    if _suits_onednn(rows, weight.shape[1]):
        return _onednn_linear(rows, weight.T, None, "none", [], "")
    if weight.shape[1] <= _NARROW:
        return (weight.T @ rows.T).T
    return rows @ weight
