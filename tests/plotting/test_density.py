"""`DensityDisplay` and `EnergyDisplay` against a Gaussian with known marginals and slices."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from sklvebm.plotting import DensityDisplay, EnergyDisplay
from sklvebm.plotting.density import mass_levels


def moments(gaussian):
    return gaussian.means_[0], gaussian.covariances_[0]


def on_mesh(display):
    """Return the points of a plane of a display, as its values are laid out."""
    return np.stack(np.meshgrid(*display.points), -1)


def test_regions_hold_their_mass():
    axis = np.linspace(-6.0, 6.0, 241)
    x, y = np.meshgrid(axis, axis)
    levels = mass_levels(-0.5 * (x**2 + y**2), (0.99, 0.5, 0.2))
    # of a normal plane, a disc of squared radius r2 holds 1 - exp(-r2 / 2)
    assert levels == pytest.approx(np.log(1.0 - np.array([0.99, 0.5, 0.2])), abs=0.01)


def test_the_marginal_integrates_the_other_columns_out(stack, table):
    display = DensityDisplay.from_estimator(stack, table, features=[1, 2], grid_resolution=31)
    mean, covariance = table.mean(0), np.cov(table.T, bias=True)
    exact = multivariate_normal(mean[1:3], covariance[1:3, 1:3]).logpdf(on_mesh(display))
    near = exact > exact.max() - 4.0
    # the stack has tails, and a ridge chosen by cross-validation
    assert np.abs(display.log_densities[0, 1] - exact)[near].max() < 0.1
    assert display.others == "marginal"
    assert display.ax_.get_title() == "marginal density"


def test_a_slice_is_the_joint_density_with_the_others_fixed(gaussian, table):
    at = np.array([1.0, 99.0, 0.05, 99.0])
    display = DensityDisplay.from_estimator(
        gaussian, table, features=[3, 1], at=at, grid_resolution=15
    )
    mesh = on_mesh(display)
    rows = np.empty((*mesh.shape[:2], 4))
    rows[..., 3], rows[..., 1], rows[..., 0], rows[..., 2] = mesh[..., 0], mesh[..., 1], 1.0, 0.05
    exact = multivariate_normal(*moments(gaussian)).logpdf(rows)
    assert display.log_densities[0, 1] == pytest.approx(exact)
    assert display.ax_.get_title() == "slice of the joint density"


def test_slices_are_at_the_medians_unless_told_otherwise(gaussian, table):
    display = DensityDisplay.from_estimator(gaussian, table, features=0, grid_resolution=15)
    rows = np.tile(np.median(table, axis=0), (15, 1))
    rows[:, 0] = display.points[0]
    exact = multivariate_normal(*moments(gaussian)).logpdf(rows)
    assert display.log_densities[0,] == pytest.approx(exact)


def test_a_curve_is_the_density(stack, table):
    display = DensityDisplay.from_estimator(stack, table, features=3)
    curve = display.ax_.lines[0]
    near = np.abs(curve.get_xdata() - table[:, 3].mean()) < 1.5 * table[:, 3].std()
    exact = norm(table[:, 3].mean(), table[:, 3].std()).pdf(curve.get_xdata())
    assert curve.get_ydata()[near] == pytest.approx(exact[near], rel=0.05)


def test_a_plane_shows_regions_and_rows(stack, table):
    display = DensityDisplay.from_estimator(stack, table, features=[0, 1])
    regions, points = display.ax_.collections
    assert regions.levels[:-1] == pytest.approx(
        mass_levels(display.log_densities[0, 1], (0.99, 0.95, 0.8, 0.5, 0.2))
    )
    assert np.array_equal(points.get_offsets(), table[:, :2])
    bar = display.figure_.axes[1]
    assert [text.get_text() for text in bar.get_yticklabels()][:2] == ["99 %", "95 %"]


def test_a_grid_has_curves_on_its_diagonal_and_pairs_below(stack, table):
    display = DensityDisplay.from_estimator(
        stack, table, features=[0, 1, 3], grid_resolution=20, show_rows=False
    )
    assert display.axes_.shape == (3, 3)
    for i, j in np.ndindex(3, 3):
        panel = display.axes_[i, j]
        assert panel.axison == (i >= j)
        assert len(panel.lines) == (i == j)
    assert display.axes_[2, 1].get_xlabel() == "x1"
    assert display.axes_[2, 0].get_ylabel() == "x3"
    # the panel in row 2 and column 1 has feature 1 to the right and feature 3 upwards
    (pair,) = display.axes_[2, 1].collections
    corner = pair.get_datalim(display.axes_[2, 1].transData).max
    assert corner[0] <= display.points[1][-1]
    assert corner[1] <= display.points[2][-1]


def test_a_density_without_missing_cells_has_no_marginals(gaussian, table):
    with pytest.raises(TypeError, match='GaussianMixture allows no missing.*others="slice"'):
        DensityDisplay.from_estimator(gaussian, table, others="marginal")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"others": "mean"}, "others must be one of"),
        ({"grid_resolution": 1}, "grid_resolution must be at least 2, got 1"),
        ({"at": [0.0]}, "at must hold 4 values"),
    ],
)
def test_illegal_options_are_refused(gaussian, table, options, message):
    with pytest.raises(ValueError, match=message):
        DensityDisplay.from_estimator(gaussian, table, **options)


def test_rows_with_missing_cells_set_the_limits(stack, table):
    rows = np.where(np.arange(4) == np.arange(300)[:, None] % 9, np.nan, table)
    display = DensityDisplay.from_estimator(stack, rows, grid_resolution=10)
    assert np.isfinite(np.concatenate(display.points)).all()


def test_an_energy_is_the_negative_log_density_above_its_minimum(gaussian, table):
    display = EnergyDisplay.from_estimator(gaussian, table, grid_resolution=15)
    density = DensityDisplay.from_estimator(gaussian, table, grid_resolution=15)
    log_density = density.log_densities[0, 1]
    assert display.values == pytest.approx(log_density.max() - log_density)
    filled = display.ax_.collections[0]
    assert filled.levels[[0, -1]] == pytest.approx([0.0, 10.0])
    assert display.figure_.axes[1].get_ylabel() == "energy above its minimum, nats"


def test_a_correction_is_what_the_reference_lacks(fitted, moons):
    display = EnergyDisplay.from_estimator(fitted, moons, response="correction", grid_resolution=25)
    rows = on_mesh(display).reshape(-1, 2)
    one = multivariate_normal(moons.mean(0), np.cov(moons.T, bias=True))
    expected = (one.logpdf(rows) - fitted.score_samples(rows)).reshape(25, 25)
    near = one.logpdf(rows).reshape(25, 25) > one.logpdf(moons.mean(0)) - 1.5
    # the reference has defensive components, of a weight of a few percent
    assert np.abs(display.values - expected)[near].max() < 0.25
    assert np.ptp(display.values[near]) > 1.0
    filled = display.ax_.collections[0]
    assert filled.levels[0] == -filled.levels[-1]


def test_the_correction_of_a_stack_vanishes_in_every_unit(stack, table):
    for features in ([0, 1], [2]):  # with other columns integrated out
        display = EnergyDisplay.from_estimator(
            stack, table, features=features, response="correction", grid_resolution=9
        )
        assert np.abs(display.values).max() < 1e-9


def test_energies_of_more_than_two_columns_are_refused(stack, gaussian, table):
    with pytest.raises(ValueError, match="features must be one or two, got 3"):
        EnergyDisplay.from_estimator(stack, table, features=[0, 1, 2])
    with pytest.raises(ValueError, match="response must be one of"):
        EnergyDisplay.from_estimator(stack, table, response="force")
    with pytest.raises(TypeError, match="GaussianMixture has no reference"):
        EnergyDisplay.from_estimator(gaussian, table, response="correction")
