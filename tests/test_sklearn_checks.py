"""scikit-learn's own checks, of the default estimator and of configurations beside it."""

import os
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklvebm import (
    DensityOutlierDetector,
    GaussianMargins,
    MixtureStack,
    ParticleImputer,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# few epochs, and one Gaussian: the checks are about the interface, and each of them fits. The
# defaults, mixtures chosen by cross-validation among them, are checked as they are
CONFIGURATIONS = [
    {"dtype": "float64", "max_iter": 3},
    {"early_stopping": False, "max_iter": 3},
    {"warm_start": True, "max_iter": 3},
    {"n_temperatures": 1, "dynamics": "ula", "early_stopping": False, "max_iter": 5},
    {"n_components": 5, "max_iter": 3},
    {"dynamics": "mala", "max_iter": 3},
]
FLOW_CONFIGURATIONS = [
    {"dtype": "float64", "max_iter": 3, "hidden_layer_sizes": (8,)},
    {"warm_start": True, "max_iter": 3, "early_stopping": False},
    {"loss": "vapo", "max_iter": 3, "energy_time": 0.9, "n_langevin_steps": 2},
]
WASSERSTEIN_CONFIGURATIONS = [
    {"dtype": "float64", "max_iter": 3, "proximal": "gradient-penalty"},
    {"warm_start": True, "max_iter": 3, "early_stopping": False, "dynamics": "heun"},
    {"n_temperatures": 1, "dynamics": "mala", "n_inner_steps": 5, "max_iter": 3},
]
GAUSSIAN = {"reference": "gaussian", "random_state": 0}
ONE_NORMAL = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)


class Curve(ParticleLVEBM):
    """One latent, few epochs: a constructor with fewer parameters."""

    def __init__(self, random_state=None):
        super().__init__(1, reference="gaussian", max_iter=2, random_state=random_state)


class Flow(PotentialFlowEBM):
    """The same of the flow."""

    def __init__(self, random_state=None):
        super().__init__(
            reference="gaussian", max_iter=2, hidden_layer_sizes=(8,), random_state=random_state
        )


class Proximal(WassersteinFlowEBM):
    """The same of the flow of particles, with a parameter of its own."""

    def __init__(self, n_epochs=2, random_state=None):
        super().__init__(
            reference="gaussian",
            max_iter=n_epochs,
            hidden_layer_sizes=(8,),
            random_state=random_state,
        )
        self.n_epochs = n_epochs


class Edges(GaussianMargins):
    """Margins with few bins."""

    def __init__(self):
        super().__init__(max_bins=8)


class Mixture(TransformedDensity):
    """A mixture behind margins."""

    def __init__(self, transformer=None):
        super().__init__(GaussianMixture(random_state=0), transformer=transformer)


# checks that give `fit` weights which differ between rows
UNEQUAL_WEIGHTS = {
    "check_sample_weights_not_overwritten",
    "check_sample_weight_equivalence_on_dense_data",
}
SUBCLASSES = [
    Curve(random_state=0),
    Flow(random_state=0),
    Proximal(random_state=0),
    Edges(),
    Mixture(),
]


@parametrize_with_checks(
    [
        *SUBCLASSES,
        MixtureStack(random_state=0),
        ParticleLVEBM(random_state=0),
        *[ParticleLVEBM(**GAUSSIAN, **parameters) for parameters in CONFIGURATIONS],
        PotentialFlowEBM(random_state=0),
        *[PotentialFlowEBM(**GAUSSIAN, **parameters) for parameters in FLOW_CONFIGURATIONS],
        WassersteinFlowEBM(random_state=0),
        *[
            WassersteinFlowEBM(**GAUSSIAN, **parameters)
            for parameters in WASSERSTEIN_CONFIGURATIONS
        ],
        DensityOutlierDetector(ONE_NORMAL, n_folds=2, random_state=0),
        DensityOutlierDetector(GaussianMixture(random_state=0), random_state=0),
        ParticleImputer(ONE_NORMAL, strategy="sample", add_indicator=True, random_state=0),
        TransformedDensity(ParticleLVEBM(1, max_iter=1, **GAUSSIAN)),
        TransformedDensity(PotentialFlowEBM(max_iter=1, **GAUSSIAN)),
        TransformedDensity(WassersteinFlowEBM(max_iter=1, **GAUSSIAN)),
    ]
)
def test_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    warm = "warm_start" in estimator.get_params(deep=False)
    if warm and check.func.__name__ == "check_pipeline_consistency":
        # it fits one instance again and again and expects equal results, which a continued fit
        # cannot give; where other checks do so, scikit-learn switches warm_start off itself
        estimator.set_params(warm_start=False)
    takes_none = isinstance(getattr(estimator, "estimator", None), GaussianMixture)
    if takes_none and check.func.__name__ in UNEQUAL_WEIGHTS:
        with pytest.raises(TypeError, match=r"GaussianMixture.fit takes no sample_weight"):
            check(estimator)
    else:
        check(estimator)


def test_the_array_api_check_is_not_skipped():
    assert os.environ["SCIPY_ARRAY_API"] == "1"


@pytest.mark.parametrize("preset", SUBCLASSES, ids=lambda model: type(model).__name__)
def test_a_subclass_with_a_constructor_of_its_own_is_cloned_and_stored(preset):
    X = np.random.default_rng(0).normal(size=(60, 2))
    model = clone(preset).fit(X)
    answer = model.transform if isinstance(model, GaussianMargins) else model.score_samples
    copied = pickle.loads(pickle.dumps(model))
    assert copied.get_params(deep=False).keys() == preset.get_params(deep=False).keys()
    again = answer(X)
    np.testing.assert_array_equal(getattr(copied, answer.__name__)(X), again)


def test_a_subclass_that_forgets_its_base_is_told_what_is_missing():
    class Forgetful(ParticleLVEBM):
        def __init__(self, max_iter=2):
            self.max_iter = max_iter

    with pytest.raises(TypeError, match=r"Forgetful must have .*'n_components'.*super\(\)"):
        Forgetful().fit(np.eye(3))
