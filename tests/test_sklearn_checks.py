"""scikit-learn's own checks, of the default estimator and of configurations beside it."""

import os

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# few epochs: the checks are about the interface, and each of them fits
CONFIGURATIONS = [
    {"dtype": "float64", "max_iter": 3},
    {"early_stopping": False, "max_iter": 3},
    {"warm_start": True, "max_iter": 3},
    {"n_temperatures": 1, "dynamics": "ula", "early_stopping": False, "max_iter": 5},
    {"reference": "gaussian", "max_iter": 5},
    {"n_components": 5, "information_weight": 0.5, "max_iter": 3},
    {"dynamics": "mala", "max_iter": 3},
]
FLOW_CONFIGURATIONS = [
    {"reference": "gaussian", "max_iter": 5},
    {"dtype": "float64", "max_iter": 3, "hidden_layer_sizes": (8,)},
    {"warm_start": True, "max_iter": 3, "early_stopping": False},
    {"loss": "vapo", "max_iter": 3, "energy_time": 0.9, "n_langevin_steps": 2},
]
WASSERSTEIN_CONFIGURATIONS = [
    {"reference": "gaussian", "max_iter": 5},
    {"dtype": "float64", "max_iter": 3, "proximal": "gradient-penalty"},
    {"warm_start": True, "max_iter": 3, "early_stopping": False, "dynamics": "heun"},
    {"n_temperatures": 1, "dynamics": "mala", "n_inner_steps": 5, "max_iter": 3},
]


@parametrize_with_checks(
    [
        ParticleLVEBM(random_state=0),
        *[ParticleLVEBM(random_state=0, **parameters) for parameters in CONFIGURATIONS],
        PotentialFlowEBM(random_state=0),
        *[PotentialFlowEBM(random_state=0, **parameters) for parameters in FLOW_CONFIGURATIONS],
        WassersteinFlowEBM(random_state=0),
        *[
            WassersteinFlowEBM(random_state=0, **parameters)
            for parameters in WASSERSTEIN_CONFIGURATIONS
        ],
    ]
)
def test_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    if check.func.__name__ == "check_pipeline_consistency":
        # it fits one instance again and again and expects equal results, which a continued fit
        # cannot give; where other checks do so, scikit-learn switches warm_start off itself
        estimator.set_params(warm_start=False)
    check(estimator)


def test_the_array_api_check_is_not_skipped():
    assert os.environ["SCIPY_ARRAY_API"] == "1"
