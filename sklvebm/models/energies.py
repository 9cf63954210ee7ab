"""Energies E of models `p(x, z) = exp(-E(x, z)) / Z`, in nats.

`Energy` is the interface. `MLPEnergy` and `LinearGaussianEnergy` are complete energies.
`AnchoredEnergy` and `BridgedEnergy` join one of them to a reference: particles are tempered along
the path `E_ref + b * correction`, with b from 0 to 1 (docs/theory/model.md, eq. 4).
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sklvebm.latent_maps.maps import LatentMap
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.reach import Reach

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}


class Energy(nn.Module, abc.ABC):
    """E(x, z) of `p(x, z) ∝ exp(-E(x, z))`.

    Parameters
    ----------
    *args, **kwargs : object
        For `torch.nn.Module`, which takes none.

    Attributes
    ----------
    n_features : int
        Width D of x.
    n_latents : int
        Width L of z.

    See Also
    --------
    MLPEnergy : A perceptron on rows and latents.
    LinearGaussianEnergy : A quadratic energy with closed forms.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import Energy
    >>> class Bowl(Energy):
    ...     n_features, n_latents = 2, 1
    ...
    ...     def forward(self, x, z):
    ...         return x.square().sum(1) + (z - x[:, :1]).square().sum(1)
    >>> Bowl()(torch.ones(3, 2), torch.ones(3, 1))
    tensor([2., 2., 2.])
    """

    n_features: int
    n_latents: int
    n_networks = 1  # whose mean the energy is

    @abc.abstractmethod
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""

    def members(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies of single networks, (B, n_networks), of rows x (B, D), z (B, L)."""
        return self(x, z).unsqueeze(1)


class MLPEnergy(Energy):
    """A smooth multilayer perceptron on `(x, z)` with one output, which starts at zero.

    Parameters
    ----------
    n_features, n_latents : int
        Widths of x and z.
    hidden_layer_sizes : sequence of int, default=(128, 128)
        Units of each hidden layer.
    activation : {"silu", "softplus", "tanh"}, default="tanh"
        Smooth, because Langevin dynamics needs a Lipschitz gradient.
    generator : torch.Generator or None, default=None
        Source of the initial weights; required unless the weights are loaded afterwards.
    input_gain : float, default=1.0
        Factor on the first layer's initial weights and biases; larger values give a network that
        varies on smaller scales.

    See Also
    --------
    ConvEnergy : For rows that are images.
    AnchoredEnergy : Bounds the network and adds it to a reference.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import MLPEnergy
    >>> energy = MLPEnergy(3, 1, (8,), generator=torch.Generator().manual_seed(0))
    >>> energy(torch.ones(5, 3), torch.ones(5, 1)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        n_features: int,
        n_latents: int,
        hidden_layer_sizes: Sequence[int] = (128, 128),
        activation: str = "tanh",
        generator: torch.Generator | None = None,
        input_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.n_features, self.n_latents = n_features, n_latents
        self.hidden_layer_sizes = tuple(hidden_layer_sizes)
        self.activation = activation
        widths = [n_features + n_latents, *hidden_layer_sizes]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            weight = torch.empty(fan_out, fan_in, dtype=torch.float32)
            bias = torch.empty(fan_out, dtype=torch.float32)
            if generator is not None:
                gain = 1.0 if self.weights else input_gain
                # variance 2 / fan_in keeps the scale of activations through layers
                weight.normal_(0.0, gain * math.sqrt(2.0 / fan_in), generator=generator)
                bias.uniform_(-gain, gain, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        self.output = nn.Parameter(torch.zeros(widths[-1], dtype=torch.float32))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        hidden = torch.cat([x, z], 1)
        activation = ACTIVATIONS[self.activation]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = activation(torch.addmm(bias, hidden, weight.T))
        return hidden @ self.output


class LinearGaussianEnergy(Energy):
    r"""Quadratic energy: posterior, marginal, free energy and log Z are closed forms.

    .. math:: E(x, z) = \tfrac12 (u - m)^T \Lambda (u - m), \quad u = (x, z), \quad
              \Lambda = B B^T + \epsilon I

    Parameters
    ----------
    n_features, n_latents : int
        Widths of x and z.
    ridge : float, default=0.05
        The number ε, which keeps the precision positive definite. Nats per squared unit.

    See Also
    --------
    MLPEnergy : An energy of any shape, without closed forms.
    MixtureReference : A normalised density of rows and latents.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import LinearGaussianEnergy
    >>> energy = LinearGaussianEnergy(2, 1)
    >>> mean, covariance = energy.posterior(torch.zeros(3, 2))
    >>> mean.shape, covariance.shape
    (torch.Size([3, 1]), torch.Size([1, 1]))
    """

    def __init__(self, n_features: int, n_latents: int, ridge: float = 0.05) -> None:
        super().__init__()
        self.n_features, self.n_latents, self.ridge = n_features, n_latents, ridge
        width = n_features + n_latents
        self.factor = nn.Parameter(torch.eye(width))
        self.mean = nn.Parameter(torch.zeros(width))

    def precision(self) -> Tensor:
        """Return the joint precision Λ, (D + L, D + L)."""
        identity = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        return self.factor @ self.factor.T + self.ridge * identity

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        centred = torch.cat([x, z], 1) - self.mean
        return 0.5 * ((centred @ self.precision()) * centred).sum(1)

    def log_partition(self) -> Tensor:
        """Return the exact log Z, 0-d, in nats."""
        width = len(self.mean)
        return 0.5 * (width * math.log(2.0 * math.pi) - torch.logdet(self.precision()))

    def free_energy(self, x: Tensor) -> Tensor:
        """Return the exact `F(x) = -log ∫ exp(-E(x, z)) dz`, (B,), in nats."""
        precision, d = self.precision(), self.n_features
        latent = precision[d:, d:]
        marginal = precision[:d, :d] - precision[:d, d:] @ torch.linalg.solve(
            latent, precision[d:, :d]
        )
        centred = x - self.mean[:d]
        constant = 0.5 * (torch.logdet(latent) - self.n_latents * math.log(2.0 * math.pi))
        return 0.5 * ((centred @ marginal) * centred).sum(1) + constant

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (B, L) and covariance (L, L) of z given x."""
        precision, d = self.precision(), self.n_features
        covariance = torch.linalg.inv(precision[d:, d:])
        mean = self.mean[d:] - (x - self.mean[:d]) @ precision[:d, d:] @ covariance
        return mean, covariance


class AnchoredEnergy(Energy):
    r"""The reference plus a softly bounded correction.

    .. math:: E(x, z) = E_{ref}(x, z) + s(x) c \tanh(g(x, z) / c)      (docs/theory/model.md, eq. 1)

    Parameters
    ----------
    reference : MixtureReference
        Normalised density, which is the model while g is zero.
    network : Energy
        The function g.
    bound : float, default=15.0
        The number c, in nats. With a bounded correction, the energy is dissipative and normalisable
        for any network.
    reach : Reach or None, default=None
        The function s, zero far from rows and reference draws; None is one everywhere.

    See Also
    --------
    BridgedEnergy : Joins a complete energy to a reference.
    MixtureReference : The reference.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import AnchoredEnergy, MLPEnergy, MixtureReference
    >>> one, two = torch.eye(1), torch.eye(2)
    >>> maps = {"latent_map": torch.ones(1, 2), "latent_variance": one[0], "location": two[0]}
    >>> reference = MixtureReference(torch.ones(1), torch.zeros(1, 2), two[None], **maps)
    >>> energy = AnchoredEnergy(reference, MLPEnergy(2, 1, (8,)))
    >>> energy.is_zero  # a new network is zero: the model is the reference
    True
    """

    def __init__(
        self,
        reference: MixtureReference,
        network: Energy,
        bound: float = 15.0,
        reach: Reach | None = None,
    ) -> None:
        super().__init__()
        self.n_features, self.n_latents = reference.n_features, reference.n_latents
        self.reference, self.network, self.bound = reference, network, bound
        self.reach = reach

    def correction(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `E - E_ref`, (B,), in nats, of rows x (B, D) with latents z (B, L)."""
        bounded = self.bound * torch.tanh(self.network(x, z) / self.bound)
        return bounded if self.reach is None else self.reach(x) * bounded

    def corrections(self, x: Tensor, z: Tensor) -> Tensor:
        """Return corrections by single networks, (B, n_networks), of x (B, D) and z (B, L)."""
        bounded = self.bound * torch.tanh(self.network.members(x, z) / self.bound)
        return bounded if self.reach is None else self.reach(x).unsqueeze(1) * bounded

    @property
    def is_zero(self) -> bool:
        """Whether the correction is zero everywhere, because the network's last layer is."""
        output = getattr(self.network, "output", None)
        return output is not None and not bool(output.detach().any())

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        return self.reference.energy(x, z) + self.correction(x, z)


class BridgedEnergy(Energy):
    """A complete energy of the user, joined to the reference by a path.

    The module stays in evaluation mode during training, because particles need a fixed energy
    without dropout and batch statistics.

    Parameters
    ----------
    reference : MixtureReference
        The end of the path with an exact normaliser and exact draws.
    network : torch.nn.Module
        The other end: `network(x, z) -> (B,)`, in nats, integrable.

    See Also
    --------
    AnchoredEnergy : A reference that a network corrects.
    ParticleLVEBM : Builds one from its parameter `energy`.

    Examples
    --------
    >>> import torch
    >>> from sklvebm import BridgedEnergy, LinearGaussianEnergy, MixtureReference
    >>> one, two = torch.eye(1), torch.eye(2)
    >>> maps = {"latent_map": torch.ones(1, 2), "latent_variance": one[0], "location": two[0]}
    >>> reference = MixtureReference(torch.ones(1), torch.zeros(1, 2), two[None], **maps)
    >>> energy = BridgedEnergy(reference, LinearGaussianEnergy(2, 1))
    >>> energy(torch.zeros(5, 2), torch.zeros(5, 1)).shape
    torch.Size([5])
    """

    def __init__(self, reference: MixtureReference, network: nn.Module) -> None:
        super().__init__()
        self.n_features, self.n_latents = reference.n_features, reference.n_latents
        self.reference, self.network = reference, network
        self.eval()

    def train(self, mode: bool = True) -> "BridgedEnergy":
        """Stay in evaluation mode, for any `mode`."""
        return super().train(False)

    def correction(self, x: Tensor, z: Tensor) -> Tensor:
        """Return `E - E_ref`, (B,), in nats, of rows x (B, D) with latents z (B, L)."""
        # networks of users may need contiguous arguments, and x and z may be parts of joined rows
        x, z = x.contiguous(), z.contiguous()
        return self.network(x, z) - self.reference.energy(x, z)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        return self.network(x, z)


class MappedEnergy(Energy):
    """An anchored energy with a latent map; the density of rows is the same.

    Parameters
    ----------
    anchored : AnchoredEnergy
        The energy as it was trained.
    latent_map : LatentMap
        The coordinates of the latents z.

    See Also
    --------
    KernelLatentMap : Latents by a regression on Gaussian bumps.
    PerceptronLatentMap : Latents by the encoder of an autoencoder.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import ParticleLVEBM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> params = {"n_components": 1, "max_iter": 0, "latent_map": "manifold", "random_state": 0}
    >>> energy = ParticleLVEBM(reference="gaussian", **params).fit(X).energy_
    >>> energy(torch.zeros(5, 2).double(), torch.zeros(5, 1).double()).shape
    torch.Size([5])
    """

    def __init__(self, anchored: AnchoredEnergy, latent_map: LatentMap) -> None:
        super().__init__()
        self.n_features, self.n_latents = anchored.n_features, anchored.n_latents
        self.anchored, self.latent_map = anchored, latent_map

    @property
    def reference(self) -> MixtureReference:
        """The density that the energy is anchored on, with its own linear latents."""
        return self.anchored.reference

    def own_latents(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the anchored energy's latents (B, L) for z (B, L) at x (B, D)."""
        return self.reference.to_latents(x, self.latent_map.from_latents(x, z))

    def correction(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the energy above the reference's, (B,), in nats, of x (B, D) with z (B, L)."""
        return self.anchored.correction(x, self.own_latents(x, z))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D) with latents z (B, L)."""
        log_jacobian = torch.log(self.latent_map.scale / self.reference.latent_scale).sum()
        return self.anchored(x, self.own_latents(x, z)) + log_jacobian


class FeatureEnergy(nn.Module):
    """An anchored energy without latents, as a function of the features.

    Parameters
    ----------
    anchored : AnchoredEnergy
        With `n_latents = 0`.

    See Also
    --------
    AnchoredEnergy : The same as a function of rows and latents.
    WassersteinFlowEBM : Fits one.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import WassersteinFlowEBM
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = WassersteinFlowEBM(reference="gaussian", max_iter=0, random_state=0).fit(X)
    >>> model.energy_(torch.zeros(5, 2).double()).shape
    torch.Size([5])
    """

    def __init__(self, anchored: AnchoredEnergy) -> None:
        super().__init__()
        self.n_features, self.anchored = anchored.n_features, anchored

    @property
    def reference(self) -> MixtureReference:
        """The density that the energy is anchored on."""
        return self.anchored.reference

    def correction(self, x: Tensor) -> Tensor:
        """Return the energy above the reference's, (B,), in nats, of rows x (B, D)."""
        return self.anchored.correction(x, x[:, :0])

    def forward(self, x: Tensor) -> Tensor:
        """Return energies in nats, (B,), of rows x (B, D)."""
        return self.anchored(x, x[:, :0])


PathEnergy = AnchoredEnergy | BridgedEnergy


class Corrected(Protocol):
    """A normalised reference and a correction that is added to its energy."""

    @property
    def n_features(self) -> int:
        """Width D of x."""

    @property
    def n_latents(self) -> int:
        """Width L of z."""

    @property
    def reference(self) -> MixtureReference:
        """The density at the start of the path."""

    def correction(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the energy above the reference's, (B,), in nats, of x (B, D) with z (B, L)."""


def multiply_adds(energy: nn.Module) -> int:
    """Return the approximate multiply-adds of an energy per row.

    They are an attribute `multiply_adds` of the network, or the number of parameters.
    """
    network = getattr(energy, "network", energy)
    n_parameters = sum(parameter.numel() for parameter in energy.parameters())
    return getattr(network, "multiply_adds", n_parameters)
