"""Estimators of flattened images: parameters, zero starts, small fits, persistence."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sklvebm import (
    ConvEnergy,
    ConvLayerEnergy,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
)

KINDS = [
    (ParticleLVEBM, ConvEnergy),
    (PotentialFlowEBM, ConvLayerEnergy),
    (WassersteinFlowEBM, ConvEnergy),
]
every_kind = pytest.mark.parametrize(("estimator", "network"), KINDS)


def stripes(n_rows, seed):
    """Return 4 x 4 images of a bright line at one of four places: far from any Gaussian."""
    random_state = np.random.RandomState(seed)
    X = 0.3 * random_state.randn(n_rows, 4, 4)
    place, upright = random_state.randint(4, size=n_rows), random_state.rand(n_rows) < 0.5
    for row in range(n_rows):
        line = (place[row], slice(None)) if upright[row] else (slice(None), place[row])
        X[row][line] += 1.5
    return X.reshape(n_rows, 16)


def fit(estimator, X, **parameters):
    model = estimator(
        **{"image_shape": (4, 4), "reference": "gaussian", "random_state": 0, **parameters}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X)


@pytest.fixture(scope="module")
def fits():
    """All estimators of stripes, trained until they leave the Gaussian.

    Four epochs gain thirty standard errors of what is tested, and a few more take annealing from
    the Gaussian five times as long.
    """
    X = stripes(300, 0)
    return {
        estimator: fit(estimator, X, max_iter=4, learning_rate_init=0.01) for estimator, _ in KINDS
    }


@every_kind
def test_an_untrained_model_is_its_reference(estimator, network):
    X = stripes(60, 1)
    model = fit(estimator, X, max_iter=0, early_stopping=False)
    x = torch.from_numpy((X - model.mean_) / model.scale_)
    expected = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    assert np.allclose(model.score_samples(X), expected, atol=1e-8)
    trained = model._training.optimisation.energy.network
    assert type(trained) is network
    assert trained.image_shape == (4, 4)


@every_kind
def test_training_beats_the_reference_on_fresh_rows(fits, estimator, network):
    model = fits[estimator]
    assert model.improved_
    X = stripes(500, 2)
    x = torch.from_numpy((X - model.mean_) / model.scale_)
    reference = model.reference_.log_marginal(x).numpy() - np.log(model.scale_).sum()
    gain = model.score_samples(X) - reference
    # five standard errors
    assert gain.mean() > 5.0 * gain.std() / np.sqrt(len(X))
    assert model.sample(7, random_state=0).shape == (7, 16)


@every_kind
def test_pickles_and_continued_fits_keep_the_network(fits, estimator, network):
    model, X = fits[estimator], stripes(50, 3)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.score_samples(X), model.score_samples(X))
    assert type(again._training.optimisation.energy.network) is network
    again.set_params(warm_start=True, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again.fit(stripes(300, 0))
    assert again.n_iter_ == model.n_iter_ + 1
    again.set_params(image_shape=None)
    with pytest.raises(ValueError, match=r"image_shape must stay \(4, 4\)"):
        again.fit(stripes(300, 0))
    assert clone(model).image_shape == (4, 4)


@every_kind
@pytest.mark.parametrize(
    ("image_shape", "error", "message"),
    [
        ((4, 5), ValueError, r"\(4, 5\) has 20 pixels, but X has 16 features"),
        ((2, 8), ValueError, "at least 4"),
        ((16,), ValueError, "must be .height, width."),
        ((4.0, 4.0), ValueError, "image_shape must be .* or None, got"),
        (4, TypeError, "image_shape must be .* or None, got 4"),
    ],
)
def test_illegal_shapes_are_named_before_any_work(estimator, network, image_shape, error, message):
    with pytest.raises(error, match=message):
        estimator(image_shape=image_shape).fit(stripes(20, 4))


def test_a_flow_of_images_has_one_layer():
    with pytest.raises(ValueError, match="one number of channels"):
        PotentialFlowEBM((8, 8), image_shape=(4, 4)).fit(stripes(20, 5))


def test_an_energy_of_the_users_own_makes_the_shape_irrelevant():
    class Bowl(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, z):
            return self.offset + 0.5 * (x.square().sum(1) + z.square().sum(1))

    model = fit(ParticleLVEBM, stripes(40, 6), energy=Bowl(), image_shape=(9, 9), max_iter=0)
    assert isinstance(model.energy_.network, Bowl)
