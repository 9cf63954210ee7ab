"""White coordinates of particles, and the rows that are computed from them in one product."""

import pytest
import torch

from sklvebm.mixtures.reference import MixtureReference
from sklvebm.mixtures.row_frames import (
    OF_A_ROW,
    densities_in_frames,
    draw_joint,
    numbers_of_frames,
    row_frames,
)

D, L, N_ROWS, N_JOINT = 3, 2, 4, 30


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def mixture(is_diagonal):
    covariances = torch.stack([torch.eye(D), torch.diag(torch.tensor([0.5, 1.0, 2.0]))])
    return MixtureReference(
        torch.tensor([0.4, 0.6]),
        normal(2, D, seed=1),
        covariances if is_diagonal else covariances + 0.3,
        latent_map=normal(L, D, seed=2),
        latent_variance=torch.tensor([0.75, 0.5]),
        location=normal(D, seed=3),
        defensive_weight=0.2,
        defensive_covariance=9.0 * torch.eye(D),
        defensive_scales=torch.tensor([3.0]),
    )


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_densities_in_frames_are_those_of_the_components(is_diagonal):
    reference, particles = mixture(is_diagonal), normal(N_JOINT, D + L, seed=6)
    means, whitening, log_peaks = densities_in_frames(reference)
    white = torch.einsum("bmd,mde->bme", particles[:, None] - means, whitening)
    found = log_peaks - 0.5 * white.square().sum(2)
    y, e = particles[:, :D], particles[:, D:]
    expected = reference.log_components(y) - 0.5 * e.square().sum(1, keepdim=True)
    difference = found - expected
    torch.testing.assert_close(difference, difference[:1, :1].expand_as(difference))


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_coordinates_and_rows_are_those_of_the_reference(is_diagonal):
    reference = mixture(is_diagonal)
    component = torch.randint(0, 3, (N_JOINT,), generator=generator())
    x, e = normal(N_ROWS, D, seed=4), normal(N_ROWS, L, seed=5)
    every = torch.cat([torch.full((N_ROWS,), OF_A_ROW), component])
    frames = row_frames(reference, every, reference.offset_of(x))
    joint = normal(N_JOINT, D + L, seed=6)
    position = torch.cat([torch.cat([torch.zeros(N_ROWS, D), e], 1), joint])
    s = frames.whiten(position)
    y_frame = reference.frame_of(component)
    torch.testing.assert_close(s[:N_ROWS], position[:N_ROWS])
    torch.testing.assert_close(s[N_ROWS:, :D], y_frame.whiten(joint[:, :D]))
    torch.testing.assert_close(s[N_ROWS:, D:], joint[:, D:])
    torch.testing.assert_close(frames.colour(s), position)
    of_rows = torch.cat([x, reference.to_latents(x, e)], 1)
    expected = torch.cat([of_rows, reference.rows(joint)])
    torch.testing.assert_close(frames.rows(s), expected)
    behind = frames.behind(N_ROWS)
    torch.testing.assert_close(behind.rows(s[N_ROWS:]), expected[N_ROWS:])
    # gradients: those of automatic differentiation, and none where nothing depends on s
    s = s.requires_grad_()
    slopes = normal(len(s), D + L, seed=7)
    (wanted,) = torch.autograd.grad((frames.rows(s) * slopes).sum(), s)
    torch.testing.assert_close(frames.pull(slopes), wanted)
    assert not wanted[:N_ROWS, :D].any()


@pytest.mark.parametrize("is_diagonal", [True, False])
def test_draws_are_those_of_the_reference(is_diagonal):
    reference = mixture(is_diagonal)
    drawn = torch.full((50, D + L), torch.nan, dtype=torch.float64)
    draw_joint(reference, drawn, generator(8))
    torch.testing.assert_close(drawn, reference.sample(50, generator(8)))


def test_other_weights_take_over_what_depends_on_none():
    reference = mixture(False)
    draw_joint(reference, normal(4, D + L), generator())
    position = normal(20, D)
    reference.log_components(position)
    log_weights = torch.log_softmax(normal(3, seed=9), 0)
    other = reference.reweighted(log_weights)
    assert "row frames" in other.__dict__["_results"]
    change = log_weights - reference.log_weights
    expected = reference.log_components(position) + change
    torch.testing.assert_close(other.log_components(position), expected)


def test_numbers_of_frames_grow_with_particles_and_components():
    reference = mixture(False)
    assert numbers_of_frames(reference, 10) == 10 * 17 * 5
    assert numbers_of_frames(reference, 1) == 4 * 17 * 5
