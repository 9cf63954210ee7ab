"""The network that corrects a reference: its construction from parameters, and its storage."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sklvebm.models.convolutions import ConvEnergy, ConvLayerEnergy, checked_image_shape
from sklvebm.models.embeddings import PeriodicEnergy
from sklvebm.models.energies import MLPEnergy
from sklvebm.models.ensembles import EnsembleEnergy

EMBEDDINGS = ("auto", "periodic", "none")
SingleNetwork = MLPEnergy | PeriodicEnergy | ConvEnergy | ConvLayerEnergy
Network = SingleNetwork | EnsembleEnergy
_KINDS = {
    "mlp": MLPEnergy,
    "periodic": PeriodicEnergy,
    "conv": ConvEnergy,
    "conv-layer": ConvLayerEnergy,
}
_DENSE_UNITS, _LOCAL_CHANNELS = (64,), (16,)  # defaults with `image_shape`
# of each column: of a single network, and of each of several
_FREQUENCIES, _FREQUENCIES_OF_SEVERAL = 16, 8


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Parameters of the network that corrects a reference."""

    hidden_layer_sizes: tuple[int, ...]
    activation: str
    image_shape: tuple[int, ...] | None  # of one row; None for a dense network
    input_gain: float  # of the first layer's weights, for dense networks
    embedding: str = "none"  # of the columns, for dense networks: "periodic" or "none"
    n_networks: int = 1  # whose mean corrects the reference


def resolve_layers(
    parameters: dict[str, Any], n_features: int, *, single_layer: bool = False
) -> dict[str, Any]:
    """Return `image_shape` and `hidden_layer_sizes`; the latter stays "auto" without images.

    Raises
    ------
    ValueError
        If rows are no images of this shape, or a single layer is given several widths.
    """
    shape, widths = parameters["image_shape"], parameters["hidden_layer_sizes"]
    is_auto = isinstance(widths, str)
    if shape is not None:
        shape = tuple(int(side) for side in shape)
        checked_image_shape(shape, n_features)
        if is_auto:
            widths, is_auto = _LOCAL_CHANNELS if single_layer else _DENSE_UNITS, False
        if single_layer and len(tuple(widths)) > 1:
            raise ValueError(
                "hidden_layer_sizes must be 'auto' or one number of channels with image_shape, got "
                f"{widths}."
            )
    widths = widths if is_auto else tuple(int(width) for width in widths)
    return {"image_shape": shape, "hidden_layer_sizes": widths}


def correction_network(
    config: NetworkConfig, n_features: int, n_latents: int, generator: torch.Generator
) -> MLPEnergy | PeriodicEnergy | ConvEnergy | EnsembleEnergy:
    """Return a network, or several, for the correction of a joint energy, zero at first."""
    shape = config, n_features, n_latents, generator
    if config.n_networks == 1:
        return _single_correction(*shape)
    return EnsembleEnergy([_single_correction(*shape) for _ in range(config.n_networks)])


def _single_correction(
    config: NetworkConfig, n_features: int, n_latents: int, generator: torch.Generator
) -> MLPEnergy | PeriodicEnergy | ConvEnergy:
    if config.embedding == "periodic":
        widths, activation = config.hidden_layer_sizes, config.activation
        n_frequencies = _FREQUENCIES if config.n_networks == 1 else _FREQUENCIES_OF_SEVERAL
        shape = n_features, n_latents, widths, activation, generator
        return PeriodicEnergy(*shape, n_frequencies=n_frequencies)
    if config.image_shape is None:
        return _dense_network(config, n_features, n_latents, generator)
    widths, activation = config.hidden_layer_sizes, config.activation
    return ConvEnergy(
        n_features, n_latents, config.image_shape, widths, activation, generator=generator
    )


def potential_network(
    config: NetworkConfig, n_features: int, generator: torch.Generator
) -> MLPEnergy | ConvLayerEnergy:
    """Return a network for the correction of a potential, zero at first; its latent is the time."""
    if config.image_shape is None:
        return _dense_network(config, n_features, 1, generator)
    (width,), activation = config.hidden_layer_sizes, config.activation
    return ConvLayerEnergy(
        n_features, 1, config.image_shape, width, activation, generator=generator
    )


def _dense_network(
    config: NetworkConfig, n_features: int, n_latents: int, generator: torch.Generator
) -> MLPEnergy:
    widths, gain = config.hidden_layer_sizes, config.input_gain
    return MLPEnergy(n_features, n_latents, widths, config.activation, generator, input_gain=gain)


def shape_of(network: nn.Module) -> dict[str, Any]:
    """Return the parameters of a network that a continued fit must not change."""
    if isinstance(network, EnsembleEnergy):
        return {**shape_of(network.networks[0]), "n_networks": len(network.networks)}
    if not isinstance(network, SingleNetwork):
        return {}
    return {
        "image_shape": getattr(network, "image_shape", None),
        "hidden_layer_sizes": network.hidden_layer_sizes,
        "activation": network.activation,
        "embedding": "periodic" if isinstance(network, PeriodicEnergy) else "none",
        "n_networks": 1,
    }


def plain_network(network: Network) -> dict[str, Any]:
    """Describe a network by plain types and its arrays."""
    if isinstance(network, EnsembleEnergy):
        singles = [plain_network(cast(SingleNetwork, own)) for own in network.networks]
        return {"kind": "ensemble", "networks": singles}
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
    kind = plain["kind"]
    if kind == "ensemble":
        shape = n_features, n_latents
        return EnsembleEnergy([network_from_plain(own, *shape) for own in plain["networks"]])
    widths, activation = plain["hidden_layer_sizes"], plain["activation"]
    network: SingleNetwork
    if kind == "mlp":
        network = MLPEnergy(n_features, n_latents, widths, activation)
    elif kind == "periodic":
        own = {"n_frequencies": plain["arrays"]["frequencies"].shape[1]}
        network = PeriodicEnergy(n_features, n_latents, widths, activation, **own)
    elif kind == "conv":
        network = ConvEnergy(n_features, n_latents, plain["image_shape"], widths, activation)
    else:
        shape, (n_channels,) = plain["image_shape"], widths
        network = ConvLayerEnergy(n_features, n_latents, shape, n_channels, activation)
    load_arrays(network, plain["arrays"])
    return network


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Return a copy of an array in memory that torch allocates, with the same strides.

    NumPy's memory can have another alignment, with which products may round differently. A stored
    model must give the same results as before.
    """
    return torch.from_numpy(np.array(array)).clone()


def load_arrays(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Load NumPy arrays as parameters and buffers, in their own dtype, in place."""
    tensors = {name: tensor_of(value) for name, value in arrays.items()}
    module.load_state_dict(tensors, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
