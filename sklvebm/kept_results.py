"""Results that a module keeps as long as the tensors it computed them from."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


class KeepsResults:
    """Mixin of modules whose tensors are replaced, and never changed in place."""

    def _kept(
        self,
        name: str,
        own: tuple[Tensor, ...],
        compute: Callable[[], tuple[Tensor, ...]],
        most_numbers: float = math.inf,
    ) -> tuple[Tensor, ...]:
        """Return `compute()`, kept until a tensor it depends on is replaced; never if large."""
        kept = self.__dict__.setdefault("_results", {})
        if name in kept and all(a is b for a, b in zip(kept[name][0], own, strict=True)):
            return cast(tuple[Tensor, ...], kept[name][1])
        found = compute()
        size = sum(tensor.numel() for tensor in found)
        # tensors of inference mode cannot be used for gradients later
        if size <= most_numbers and not torch.is_inference_mode_enabled():
            kept[name] = own, found
        return found

    def _share_results(self, other: "KeepsResults") -> None:
        """Take over what another module keeps, as far as both have the same tensors."""
        self.__dict__.setdefault("_results", {}).update(other.__dict__.get("_results", {}))

    def __getstate__(self) -> dict[str, Any]:
        # copies and pickles compute the results again
        return {name: value for name, value in self.__dict__.items() if name != "_results"}
