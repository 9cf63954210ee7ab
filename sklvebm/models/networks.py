"""Which network corrects a reference, by the constructor parameters, and how it is stored."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from sklvebm.models.convolutions import ConvEnergy, ConvLayerEnergy, checked_image_shape
from sklvebm.models.energies import MLPEnergy

Network = MLPEnergy | ConvEnergy | ConvLayerEnergy
_KINDS = {"mlp": MLPEnergy, "conv": ConvEnergy, "conv-layer": ConvLayerEnergy}
_DENSE_UNITS, _LOCAL_CHANNELS = (64,), (16,)


def resolve_image_shape(
    settings: SimpleNamespace, n_features: int, *, single_layer: bool = False
) -> None:
    """Check `image_shape` and choose hidden layers that suit images, in place.

    Raises
    ------
    ValueError
        If rows are no such images, or a single layer is given several widths.
    """
    if settings.image_shape is None:
        return
    settings.image_shape = tuple(int(side) for side in settings.image_shape)
    checked_image_shape(settings.image_shape, n_features)
    if isinstance(settings.hidden_layer_sizes, str):
        settings.hidden_layer_sizes = _LOCAL_CHANNELS if single_layer else _DENSE_UNITS
    widths = tuple(settings.hidden_layer_sizes)
    if single_layer and len(widths) > 1:
        raise ValueError(
            "hidden_layer_sizes must be 'auto' or one number of channels with image_shape, got "
            f"{settings.hidden_layer_sizes}."
        )


def correction_network(
    settings: SimpleNamespace, n_features: int, n_latents: int, generator: torch.Generator
) -> MLPEnergy | ConvEnergy:
    """Return the zero network of `ParticleLVEBM`."""
    if settings.image_shape is not None:
        return ConvEnergy(
            n_features,
            n_latents,
            settings.image_shape,
            settings.hidden_layer_sizes,
            settings.activation,
            generator,
        )
    return MLPEnergy(
        n_features,
        n_latents,
        settings.hidden_layer_sizes,
        settings.activation,
        generator,
        input_gain=settings.input_gain,
    )


def potential_network(
    settings: SimpleNamespace, n_features: int, generator: torch.Generator
) -> MLPEnergy | ConvLayerEnergy:
    """Return the zero network of `PotentialFlowEBM`, with the time in place of a latent."""
    if settings.image_shape is not None:
        return ConvLayerEnergy(
            n_features,
            1,
            settings.image_shape,
            *settings.hidden_layer_sizes,
            settings.activation,
            generator,
        )
    return MLPEnergy(
        n_features,
        1,
        settings.hidden_layer_sizes,
        settings.activation,
        generator,
        input_gain=settings.input_gain,
    )


def shape_of(network: nn.Module) -> dict[str, Any]:
    """Return the constructor parameters that a network has to keep while a fit continues."""
    if not isinstance(network, Network):
        return {}
    return {
        "image_shape": getattr(network, "image_shape", None),
        "hidden_layer_sizes": network.hidden_layer_sizes,
        "activation": network.activation,
    }


def plain_network(network: Network) -> dict[str, Any]:
    """Describe a network by plain types and its arrays."""
    shape = getattr(network, "image_shape", None)
    return {
        "kind": next(kind for kind, own in _KINDS.items() if type(network) is own),
        "hidden_layer_sizes": list(network.hidden_layer_sizes),
        "activation": network.activation,
        "image_shape": None if shape is None else list(shape),
        "arrays": {name: value.cpu().numpy() for name, value in network.state_dict().items()},
    }


def network_from_plain(plain: dict[str, Any], n_features: int, n_latents: int) -> Network:
    """Rebuild what `plain_network` described."""
    widths, activation = plain["hidden_layer_sizes"], plain["activation"]
    kind = plain["kind"]
    if kind == "mlp":
        network = MLPEnergy(n_features, n_latents, widths, activation)
    elif kind == "conv":
        network = ConvEnergy(n_features, n_latents, plain["image_shape"], widths, activation)
    else:
        shape = plain["image_shape"]
        network = ConvLayerEnergy(n_features, n_latents, shape, *widths, activation)
    load_arrays(network, plain["arrays"])
    return network


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Return a copy of an array in torch's own memory, its strides kept.

    NumPy's begins where a cache line need not, and a product may then round differently: a model
    that was stored must answer as it did before.
    """
    return torch.from_numpy(np.array(array)).clone()


def load_arrays(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Load NumPy arrays as parameters and buffers, in their own dtype, in place."""
    tensors = {name: tensor_of(value) for name, value in arrays.items()}
    module.load_state_dict(tensors, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
