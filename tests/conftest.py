"""Settings that must precede the imports of the tests, and the models that several files share."""

import os

# SciPy reads it once, at import: without it scikit-learn skips its array API check
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# figures are never shown
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # workers that share the cores would wait for each other's threads at every operation
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib  # noqa: E402
import importlib.util  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import make_moons  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

from sklvebm import (  # noqa: E402
    MixtureReference,
    MLPEnergy,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
)
from sklvebm.flows.interpolant import interpolant_marginals  # noqa: E402
from sklvebm.flows.potentials import AnchoredPotential, Jet  # noqa: E402
from sklvebm.models.energies import AnchoredEnergy  # noqa: E402

# doctests import every module, and this one registers a device with torch
collect_ignore = ["pretended_device.py"]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def script(monkeypatch):
    """A function that imports an example, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(EXAMPLES)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def pretended():
    """A context in which the device of `tests/pretended_device.py` exists.

    Torch counts devices at the first backward pass of a process, and processes that have one cannot
    be forked: those that may have the device are started by `tests/test_pretended_device.py`.
    """
    if "SKLVEBM_PRETENDED" not in os.environ:
        pytest.skip("runs in a process of its own, which another test starts")
    path = Path(__file__).with_name("pretended_device.py")
    spec = importlib.util.spec_from_file_location("pretended_device", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:
        pytest.skip("this torch cannot be given a device in Python")
    return module.pretended


@pytest.fixture(scope="session")
def moons():
    """Two hundred rows of two features, read-only because all tests share them."""
    X, _ = make_moons(200, noise=0.1, random_state=0)
    X.flags.writeable = False
    return X


@pytest.fixture(scope="session")
def fitted(moons):
    """A model of the moons with one latent, trained long enough to leave its Gaussian reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        options = {"reference": "gaussian", "init": "reference", "random_state": 0}
        model = ParticleLVEBM(1, max_iter=30, **options)
        assert model.fit(moons).improved_
        return model


@pytest.fixture(scope="session")
def fitted_flow():
    """A potential flow of a thousand moons, anchored on a Gaussian, whose correction was kept."""
    X, _ = make_moons(1000, noise=0.1, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = PotentialFlowEBM(reference="gaussian", max_iter=100, random_state=0).fit(X)
    assert model.improved_
    return model


@pytest.fixture(scope="session")
def fitted_wasserstein():
    """An energy of a thousand moons, anchored on a Gaussian, whose correction was kept."""
    X, _ = make_moons(1000, noise=0.1, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        options = {"reference": "gaussian", "init": "reference", "random_state": 0}
        model = WassersteinFlowEBM(max_iter=60, **options).fit(X)
    assert model.improved_
    return model


@pytest.fixture(scope="session")
def small():
    """A function that returns unfitted models which train in about a tenth of a second.

    Of one Gaussian: a mixture is chosen by cross-validation, which takes ten times as long.
    """

    def make(**parameters):
        return ParticleLVEBM(
            **{
                "n_components": 1,
                "hidden_layer_sizes": (8,),
                "reference": "gaussian",
                "n_chains": 16,
                "n_temperatures": 3,
                "early_stopping": False,
                "max_iter": 3,
                "random_state": 0,
                **parameters,
            }
        )

    return make


def random_reference(n_components=3, n_features=3, diagonal=False, defensive_weight=0.1, seed=0):
    """Return a random mixture as a reference without latents."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factors = 0.5 * normal(n_components, n_features, n_features)
    identity = torch.eye(n_features, dtype=torch.float64)
    covariances = factors @ factors.transpose(1, 2) + 0.01 * identity
    if diagonal:
        covariances = covariances * identity
    return MixtureReference(
        torch.softmax(normal(n_components), 0),
        normal(n_components, n_features),
        covariances,
        latent_map=normal(0, n_features),
        latent_variance=normal(0),
        location=torch.zeros(n_features),
        defensive_weight=defensive_weight,
        defensive_covariance=4.0 * identity,
    )


class KnownPotential(AnchoredPotential):
    """The potential of one mixture, anchored on another: the correction is known."""

    def __init__(self, reference, data):
        placeholder = MLPEnergy(reference.n_features, 1, (1,)).double()
        super().__init__(interpolant_marginals(reference), placeholder)
        self.data = interpolant_marginals(data)

    def correction(self, x, t):
        ours, theirs = (
            mixture.values(x.unsqueeze(1), t).log_ratio[:, 0]
            for mixture in (self.data, self.mixture)
        )
        return (ours - theirs) / t

    def jet(self, x, t, directions=None):
        with torch.enable_grad():
            x, t = x.detach().requires_grad_(), t.detach().clamp(min=1e-4).requires_grad_()
            value = self.correction(x, t)
            grad, rate = torch.autograd.grad(value.sum(), (x, t), create_graph=True)
            second = None
            if directions is not None:
                rows = [torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in grad.T]
                hessian = torch.stack(rows, 1)
                second = torch.einsum("skd,bde,ske->bs", directions, hessian, directions)
        return Jet(*(None if p is None else p.detach() for p in (value, grad, rate, second)))


@pytest.fixture(scope="session")
def mixture_reference():
    """A function that returns a random mixture as a reference without latents."""
    return random_reference


@pytest.fixture(scope="session")
def known_potential():
    """A function of two references: the potential of the second, anchored on the first."""
    return KnownPotential


class Lift(torch.nn.Module):
    """Lowers the energy by a constant, nats, beyond x_0 = 20, where only a missed component is."""

    n_features, n_latents = 2, 1

    def __init__(self, lift):
        super().__init__()
        self.lift = lift

    def forward(self, x, z):
        return -self.lift * torch.sigmoid(5.0 * (x[:, 0] - 20.0)) + 0.0 * z[:, 0]


@pytest.fixture
def lifted_component():
    """A function from (weight, lift in nats) to an energy on three components, one of them rare."""

    def build(weight, lift):
        reference = MixtureReference(
            torch.tensor([0.6, 0.4 - weight, weight]),
            torch.tensor([[-1.0, 0.0], [1.0, 0.0], [40.0, 0.0]]),
            torch.stack([torch.eye(2), 0.3 * torch.eye(2), 0.01 * torch.eye(2)]),
            latent_map=torch.tensor([[0.5, 0.0]]),
            latent_variance=torch.tensor([0.75]),
            location=torch.zeros(2),
        )
        return AnchoredEnergy(reference, Lift(lift), bound=1e9)

    return build
