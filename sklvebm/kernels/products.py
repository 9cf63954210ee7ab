"""Matrix products of a layer by the faster of torch's two CPU libraries.

BLAS has the shorter call, oneDNN the faster kernel. oneDNN is two to three times as fast on
processors whose vector width BLAS does not use in full, and it applies a tanh in the same pass
(docs/benchmarks/performance.md).
"""

from typing import Any

import torch
from torch import Tensor

# multiply-adds of a product above which oneDNN is faster; more for up to `_NARROW` columns, which
# BLAS computes quickly as rows of the transposed product
_LARGE, _LARGE_NARROW, _NARROW = 5e5, 2e6, 16
# the same where no tanh is saved: oneDNN's call takes as long as half a million multiply-adds
_LARGE_PLAIN = 1.5e6


def _find_onednn() -> Any:
    """Return torch's fused linear layer of oneDNN, or None where this build has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        # what torch.compile calls for a linear layer on the CPU
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


_onednn_linear = _find_onednn()


def _suits_onednn(rows: Tensor, n_units: int, least: float = _LARGE) -> bool:
    """Return whether oneDNN is faster for a product of rows (B, K) with n_units columns."""
    return (
        rows.shape[0] * rows.shape[1] * n_units > least
        and _onednn_linear is not None
        and rows.dtype == torch.float32
        and rows.device.type == "cpu"
    )


def affine(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `rows @ weight.T + bias`, (B, W), for rows (B, K), weight (W, K), bias (W,)."""
    if _suits_onednn(rows, len(weight), _LARGE_PLAIN):
        return _onednn_linear(rows, weight, bias, "none", [], "")
    return torch.nn.functional.linear(rows, weight, bias)


def affine_tanh(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `tanh(rows @ weight.T + bias)`, (B, W); shapes as `affine`."""
    if _suits_onednn(rows, len(weight)):
        return _onednn_linear(rows, weight, bias, "tanh", [], "")
    if rows.device.type != "cpu":
        return torch.addmm(bias, rows, weight.T).tanh_()
    # tanh(a) = 2 sigmoid(2 a) - 1, and torch's sigmoid is several times faster than its tanh
    doubled = torch.addmm(bias, rows, weight.T, beta=2.0, alpha=2.0)
    return doubled.sigmoid_().mul_(2.0).sub_(1.0)


def plain_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return `product(rows, weight)`, by BLAS up to the size of `affine`."""
    return product(rows, weight, _LARGE_PLAIN)


def product(rows: Tensor, weight: Tensor, least: float = _LARGE) -> Tensor:
    """Return `rows @ weight`, (B, K), for rows (B, W) and weight (W, K)."""
    narrow = weight.shape[1] <= _NARROW
    if _suits_onednn(rows, weight.shape[1], _LARGE_NARROW if narrow else least):
        return _onednn_linear(rows, weight.T, None, "none", [], "")
    if narrow:
        return (weight.T @ rows.T).T
    return rows @ weight
