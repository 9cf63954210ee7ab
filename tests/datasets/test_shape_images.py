"""Images of bars and ellipses: factors against moments of the pixels, symmetries, sizes."""

import numpy as np
import pytest

from sklvebm.datasets import make_shape_images
from sklvebm.datasets.shape_images import ASPECT, rendered


def moments(X, size):
    """Return total brightness in squared sides, centre and covariance of the ink of images."""
    weight = X / X.sum(1, keepdims=True)
    middle = (np.arange(size) + 0.5) / size
    at = np.stack([np.tile(middle, size), np.repeat(middle, size)], 1)
    centre = weight @ at
    centred = at[None] - centre[:, None]
    covariance = np.einsum("np,npi,npj->nij", weight, centred, centred)
    return X.sum(1) / size**2, centre, covariance


@pytest.mark.parametrize("size", [16, 32])
def test_ink_is_centred_where_the_factors_say(size):
    X, factors = make_shape_images(200, size=size, noise=0.0, return_factors=True, random_state=0)
    _, centre, _ = moments(X, size)
    # soft edges reach over the border a little
    assert np.abs(centre - factors[:, :2]).max() < 0.01


@pytest.mark.parametrize("shape", ["bar", "ellipse"])
def test_ink_is_turned_by_the_angle(shape):
    X, factors = make_shape_images(
        200, size=32, shape=shape, noise=0.0, return_factors=True, random_state=1
    )
    _, _, covariance = moments(X, 32)
    _, axes = np.linalg.eigh(covariance)
    longest = axes[:, :, 1]
    # rows count downwards
    angle = np.arctan2(-longest[:, 1], longest[:, 0])
    apart = np.abs(np.mod(angle - factors[:, 3] + np.pi / 2.0, np.pi) - np.pi / 2.0)
    assert apart.max() < 0.05
    assert np.unique(factors[:, 4]).tolist() == [float(shape == "ellipse")]


def test_areas_are_those_of_bars_and_ellipses():
    """At a high resolution, soft edges matter little: areas by geometry, to one per cent."""
    X, factors = make_shape_images(40, size=200, noise=0.0, return_factors=True, random_state=2)
    area, _, _ = moments(X, 200)
    half_length, round_ = factors[:, 2], factors[:, 4]
    expected = np.where(round_ == 1.0, np.pi, 4.0) * ASPECT * half_length**2
    assert np.allclose(area, expected, rtol=0.01)
    assert 0 < round_.sum() < 40


def test_half_a_turn_changes_nothing_and_a_quarter_does():
    factors = np.array([[0.5, 0.5, 0.25, 0.3, 0.0], [0.5, 0.5, 0.25, 0.3, 1.0]])
    turned = factors + [0.0, 0.0, 0.0, np.pi, 0.0]
    assert np.allclose(rendered(factors, 16), rendered(turned, 16), atol=1e-12)
    quarter = factors + [0.0, 0.0, 0.0, np.pi / 2.0, 0.0]
    image = rendered(factors, 16).reshape(2, 16, 16)
    assert np.allclose(
        rendered(quarter, 16).reshape(2, 16, 16), np.rot90(image, axes=(1, 2)), atol=1e-12
    )
    assert not np.allclose(rendered(quarter, 16), rendered(factors, 16), atol=0.1)


def test_pixels_follow_the_factors_smoothly():
    """A step in any continuous factor moves no pixel by more than a bounded multiple of it."""
    factors = np.array([[0.5, 0.45, 0.2, 1.0, 0.0], [0.55, 0.5, 0.25, 2.0, 1.0]])
    for column in range(4):
        step = np.zeros(5)
        step[column] = 1e-6
        change = np.abs(rendered(factors + step, 16) - rendered(factors, 16)).max()
        assert 0.0 < change < 60.0 * 1e-6


def test_brightness_stays_between_nought_and_one():
    X = make_shape_images(50, noise=0.0, random_state=3)
    assert X.min() >= 0.0
    assert X.max() <= 1.0
    assert (X.max(1) > 0.7).all()
    assert (X.min(1) < 0.01).all()


def test_illegal_sizes_and_shapes_are_named():
    with pytest.raises(ValueError, match="'size' parameter .* Got 3"):
        make_shape_images(5, size=3)
    with pytest.raises(ValueError, match="'shape' parameter .* Got 'star'"):
        make_shape_images(5, shape="star")
