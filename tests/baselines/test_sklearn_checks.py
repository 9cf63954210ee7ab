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


class PresetVAE(VAE):
    """A constructor with fewer parameters, as in the classes below."""

    def __init__(self, random_state=None):
        super().__init__(**{**BRIEF, "random_state": random_state})


class PresetNonAmortizedVI(NonAmortizedVI):
    """As above."""

    def __init__(self, random_state=None):
        super().__init__(**{**BRIEF, "random_state": random_state})


class PresetHardEM(HardEM):
    """As above."""

    def __init__(self, random_state=None):
        super().__init__(**{**BRIEF, "random_state": random_state})


class PresetParticles(ParticleGradientDescent):
    """As above."""

    def __init__(self, random_state=None):
        super().__init__(**{**BRIEF, "random_state": random_state})


class PresetLatentEBM(LatentEBM):
    """As above."""

    def __init__(self, random_state=None):
        super().__init__(**{**BRIEF, "random_state": random_state}, prior_layer_sizes=(8,))


PRESETS = [PresetVAE, PresetNonAmortizedVI, PresetHardEM, PresetParticles, PresetLatentEBM]


@parametrize_with_checks(
    [
        *[preset(random_state=0) for preset in PRESETS],
        VAE(**BRIEF),
        NonAmortizedVI(**BRIEF),
        HardEM(**BRIEF),
        ParticleGradientDescent(**BRIEF),
        LatentEBM(**BRIEF, prior_layer_sizes=(8,)),
    ]
)
def test_baseline_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)
