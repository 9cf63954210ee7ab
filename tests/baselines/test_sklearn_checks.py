"""scikit-learn's own checks of every baseline, none of them expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklvebm.baselines import (
    VAE,
    HardEM,
    LatentEBM,
    NonAmortizedVI,
    ParticleGradientDescent,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# few epochs of a small network: the checks are about the interface, and each of them fits
BRIEF = {"max_iter": 2, "hidden_layer_sizes": (8,), "n_importance_samples": 16, "random_state": 0}


@parametrize_with_checks(
    [
        VAE(**BRIEF),
        NonAmortizedVI(**BRIEF),
        HardEM(**BRIEF),
        ParticleGradientDescent(**BRIEF),
        LatentEBM(**BRIEF, prior_layer_sizes=(8,)),
    ]
)
def test_baseline_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)
