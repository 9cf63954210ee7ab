"""Networks for rows that are flattened images: x enters through convolutions.

`ConvEnergy` is deep and takes latents, for `AnchoredEnergy`. `ConvLayerEnergy` has a single layer
with a cheap exact Laplacian, for `AnchoredPotential`. Both are smooth and start at zero;
`AnchoredEnergy` and `AnchoredPotential` bound them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklvebm.models.energies import ACTIVATIONS, Energy

_MIN_SIDE = 4  # pixels
_MAX_LAST_SIDE = 4  # pixels, of the last feature maps
_CHANNELS = (16, 32, 64)  # of each layer; further layers have as many as the last
_KERNEL_SIDE, _STRIDE, _PADDING = 4, 2, 1  # pixels; halves the sides, with equal weight per pixel
_MAX_PLACES = 64  # of each kernel of a `ConvLayerEnergy`


def checked_image_shape(image_shape: Sequence[int], n_features: int) -> tuple[int, int, int]:
    """Return height, width and channels.

    Raises
    ------
    ValueError
        If there are not two or three numbers, a side is shorter than four pixels, or the product is
        not `n_features`.
    """
    shape = tuple(int(side) for side in image_shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            "image_shape must be (height, width) or (height, width, channels), got "
            f"{tuple(image_shape)}."
        )
    if min(shape[:2]) < _MIN_SIDE:
        raise ValueError(f"Sides of image_shape must be at least {_MIN_SIDE}, got {shape}.")
    if math.prod(shape) != n_features:
        raise ValueError(
            f"image_shape must multiply to the number of features: {shape} has "
            f"{math.prod(shape)} pixels, but X has {n_features} features."
        )
    height, width, n_channels = (*shape, 1) if len(shape) == 2 else shape
    return height, width, n_channels


def _filled(shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Return weights of variance 2 / fan_in, which preserves the scale of activations."""
    weight = torch.empty(shape, dtype=torch.float32)
    if generator is not None:
        weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
    return nn.Parameter(weight)


def _offsets(n: int, generator: torch.Generator | None) -> nn.Parameter:
    offset = torch.empty(n, dtype=torch.float32)
    if generator is not None:
        offset.uniform_(-1.0, 1.0, generator=generator)
    return nn.Parameter(offset)


class ConvEnergy(Energy):
    r"""A smooth convolutional network on x, with z as an input of its dense part; starts at zero.

    Layers of 4 x 4 kernels halve the sides twice, and further until they have at most four
    pixels. Feature maps shift with the content of the image. Dense layers take all feature maps and
    the latents.

    Parameters
    ----------
    n_features, n_latents : int
        Widths of x and z.
    image_shape : sequence of int
        Height and width, or height, width and channels, of the images that rows are, flattened in
        this order; sides of at least four pixels.
    hidden_layer_sizes : sequence of int, default=(64,)
        Units of the dense layers; z is an input of the first.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        Smooth, because Langevin dynamics needs a Lipschitz gradient.
    generator : torch.Generator or None, default=None
        Source of the initial weights; required unless the weights are loaded afterwards.

    Raises
    ------
    ValueError
        If the shape is not one of an image, or not of rows of this width.

    See Also
    --------
    ConvLayerEnergy : A single layer, with cheap second derivatives.
    MLPEnergy : For rows whose columns have no order.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import ConvEnergy
    >>> energy = ConvEnergy(64, 2, (8, 8), generator=torch.Generator().manual_seed(0))
    >>> energy(torch.zeros(5, 64), torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        n_features: int,
        n_latents: int,
        image_shape: Sequence[int],
        hidden_layer_sizes: Sequence[int] = (64,),
        activation: str = "tanh",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        height, width, n_in = self._full_shape = checked_image_shape(image_shape, n_features)
        self.n_features, self.n_latents = n_features, n_latents
        self.image_shape = tuple(int(side) for side in image_shape)
        self.hidden_layer_sizes, self.activation = tuple(hidden_layer_sizes), activation
        self.kernels, self.kernel_biases = nn.ParameterList(), nn.ParameterList()
        self.multiply_adds = 0  # of one image
        while len(self.kernels) < 2 or max(height, width) > _MAX_LAST_SIDE:
            if min(height, width) < 2:
                break
            n_out = _CHANNELS[min(len(self.kernels), len(_CHANNELS) - 1)]
            shape = (n_out, n_in, _KERNEL_SIDE, _KERNEL_SIDE)
            self.kernels.append(_filled(shape, n_in * _KERNEL_SIDE**2, generator))
            self.kernel_biases.append(_offsets(n_out, generator))
            n_in, height, width = n_out, height // 2, width // 2
            self.multiply_adds += math.prod(shape) * height * width
        widths = [n_in * height * width, *hidden_layer_sizes]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        # images and latents contribute equal variances at first, for any number of pixels
        self.latent_weight = _filled((widths[1], n_latents), max(1, 2 * n_latents), generator)
        for layer, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            spread = 2 * fan_in if layer == 0 else fan_in
            self.weights.append(_filled((fan_out, fan_in), spread, generator))
            self.biases.append(_offsets(fan_out, generator))
            self.multiply_adds += fan_in * fan_out
        self.output = nn.Parameter(torch.zeros(widths[-1], dtype=torch.float32))

    def feature_maps(self, x: Tensor) -> Tensor:
        """Return the last feature maps of rows x (B, D): (B, channels, height, width)."""
        height, width, n_in = self._full_shape
        maps = x.reshape(len(x), height, width, n_in).permute(0, 3, 1, 2)
        for kernel, bias in zip(self.kernels, self.kernel_biases, strict=True):
            maps = nn.functional.conv2d(maps, kernel, bias, stride=_STRIDE, padding=_PADDING)
            maps = ACTIVATIONS[self.activation](maps)
        return maps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        hidden = self.feature_maps(x).flatten(1)
        offset: Tensor | float = z @ self.latent_weight.T  # of the first layer alone
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = ACTIVATIONS[self.activation](offset + torch.addmm(bias, hidden, weight.T))
            offset = 0.0
        return hidden @ self.output


class ConvLayerEnergy(Energy):
    r"""One layer of smooth local units with shared kernels; latents shift all units of a kernel.

    .. math:: g(x, t) = \sum_{c, p} v_{cp}\, a\big((k_c * x)_p + s_c t + b_c\big)

    Parameters
    ----------
    n_features : int
        Width of x.
    n_latents : int
        Width of z; in a flow, z is the time.
    image_shape : sequence of int
        As for `ConvEnergy`.
    n_channels : int, default=16
        Kernels c. Each is applied at no more than 64 places p: at all pixels of an 8 x 8 image, and
        with a stride at larger ones, where kernels overlap.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        The function a.
    generator : torch.Generator or None, default=None
        Source of the initial weights; required unless the weights are loaded afterwards.

    Raises
    ------
    ValueError
        If the shape is not one of an image, or not of rows of this width.

    See Also
    --------
    ConvEnergy : A deep network with latents.
    PotentialFlowEBM : Trains one where rows are images.

    Notes
    -----
    The layer equals a dense layer with the same `weights` and `biases`, whose second derivatives
    are cheap (`potentials.network_jet`).

    Examples
    --------
    >>> import torch
    >>> from sklvebm import ConvLayerEnergy
    >>> energy = ConvLayerEnergy(64, 1, (8, 8), generator=torch.Generator().manual_seed(0))
    >>> energy(torch.zeros(5, 64), torch.zeros(5, 1)).shape
    torch.Size([5])
    """

    places: Tensor

    def __init__(
        self,
        n_features: int,
        n_latents: int,
        image_shape: Sequence[int],
        n_channels: int = 16,
        activation: str = "tanh",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        height, width, n_in = checked_image_shape(image_shape, n_features)
        self.n_features, self.n_latents = n_features, n_latents
        self.image_shape = tuple(int(side) for side in image_shape)
        self.activation, self.hidden_layer_sizes = activation, (n_channels,)
        stride = 1
        while math.ceil(height / stride) * math.ceil(width / stride) > _MAX_PLACES:
            stride += 1
        size = 2 * stride + 3
        places = _places(height, width, n_in, size, stride)
        self.n_places = len(places)
        self.register_buffer("places", places, persistent=False)
        fan_in = n_in * size**2 + n_latents
        self.kernel = _filled((n_channels, n_in * size**2), fan_in, generator)
        self.latent_weight = _filled((n_channels, n_latents), fan_in, generator)
        self.bias = _offsets(n_channels, generator)
        self.output = nn.Parameter(torch.zeros(n_channels * self.n_places, dtype=torch.float32))

    @property
    def weights(self) -> list[Tensor]:
        """The layer's weights on x and z, (n_channels * n_places, D + L)."""
        # the appended zero is the entry of pixels outside the kernel
        padded = nn.functional.pad(self.kernel, (0, 1))
        local = padded[:, self.places].flatten(0, 1)
        shared = self.latent_weight.repeat_interleave(self.n_places, 0)
        return [torch.cat([local, shared], 1)]

    @property
    def biases(self) -> list[Tensor]:
        """The layer's offsets, (n_channels * n_places,)."""
        return [self.bias.repeat_interleave(self.n_places)]

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        hidden = torch.addmm(self.biases[0], torch.cat([x, z], 1), self.weights[0].T)
        return ACTIVATIONS[self.activation](hidden) @ self.output


def _places(height: int, width: int, n_in: int, size: int, stride: int) -> Tensor:
    """Return the index of the kernel entry for each pixel at each place, (n_places, D).

    The index of pixels outside the kernel is the kernel's size.
    """

    def along(side: int) -> Tensor:
        centre = torch.arange(0, side, stride) + (stride - 1) // 2
        return torch.arange(side) - centre.clamp(max=side - 1)[:, None] + size // 2

    down, across = along(height), along(width)
    entry = (down[:, None, :, None] * size + across[None, :, None, :])[..., None]
    entry = entry * n_in + torch.arange(n_in)
    reached = (
        ((down >= 0) & (down < size))[:, None, :, None]
        & ((across >= 0) & (across < size))[None, :, None, :]
    )[..., None]
    entry = torch.where(reached, entry, n_in * size**2)
    return entry.reshape(down.shape[0] * across.shape[0], height * width * n_in)
