"""Settings that must precede the imports of the tests, and the models that several files share."""

import os

# SciPy reads it once, at import: without it scikit-learn skips its array API check
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import importlib  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from sklearn.datasets import make_moons  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

from sklvebm import ParticleLVEBM  # noqa: E402

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
        model = ParticleLVEBM(1, reference="gaussian", max_iter=30, random_state=0)
        assert model.fit(moons).improved_
        return model


@pytest.fixture(scope="session")
def small():
    """A function that returns unfitted models which train in about a tenth of a second."""

    def make(**parameters):
        return ParticleLVEBM(
            **{
                "n_components": 1,
                "hidden_layer_sizes": (8,),
                "n_chains": 16,
                "n_temperatures": 3,
                "early_stopping": False,
                "max_iter": 3,
                "random_state": 0,
                **parameters,
            }
        )

    return make
