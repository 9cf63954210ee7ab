"""Displays of draws, latents, outliers, calibration, imputation and training: what is drawn."""

import warnings

import numpy as np
import pandas as pd
import pytest

from sklvebm import DensityOutlierDetector, MixtureStack, ParticleImputer
from sklvebm.metrics import conditional_calibration
from sklvebm.plotting import (
    CalibrationDisplay,
    DensityDisplay,
    ImputationDisplay,
    LatentDisplay,
    OutlierDisplay,
    SampleComparisonDisplay,
    TrainingDisplay,
)


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_rows_are_below_the_diagonal_and_draws_above(table):
    display = SampleComparisonDisplay.from_predictions(
        table[:150], table[150:], features=[0, 2], random_state=0
    )
    below, above = display.axes_[1, 0].collections[0], display.axes_[0, 1].collections[0]
    assert np.array_equal(below.get_offsets(), table[:150, [0, 2]])
    assert np.array_equal(above.get_offsets(), table[150:, [2, 0]])
    assert len(display.axes_[0, 0].patches) == 2
    assert display.axes_[1, 0].get_xlim() == display.axes_[0, 0].get_xlim()


def test_the_test_sees_another_distribution_and_not_the_same(stack, table):
    same = SampleComparisonDisplay.from_estimator(stack, table, random_state=0)
    other = SampleComparisonDisplay.from_predictions(table, -table, random_state=0)
    assert same.test.p_value > 0.05
    assert other.test.p_value < 0.01
    title = other.axes_[0, 0].get_title(loc="left")
    assert title == f"two-sample test: p = {other.test.p_value:.2g}"


def test_the_test_does_not_depend_on_units(table):
    shifted = table + 0.5 * table.std(0) * [0, 0, 1, 0]  # in the column of the smallest unit
    display = SampleComparisonDisplay.from_predictions(table, shifted, random_state=0)
    assert display.test.p_value < 0.01


def test_draws_of_scikit_learn_are_taken_without_their_labels(gaussian, table):
    display = SampleComparisonDisplay.from_estimator(gaussian, table, n_samples=70)
    assert display.draws.shape == (70, 4)


def test_latents_are_coloured_by_a_column_of_the_table(fitted, moons):
    display = LatentDisplay.from_estimator(fitted, moons, color=1)
    assert display.color_name == "x1"
    (points,) = display.ax_.collections
    # one latent, against the column
    expected = np.column_stack([fitted.transform(moons)[:, 0], moons[:, 1]])
    drawn = np.asarray(points.get_offsets())
    assert np.allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("particlelvebm0", "x1")
    named = pd.Series(moons[:, 0], name="left")
    assert LatentDisplay.from_estimator(fitted, moons, color=named).color_name == "left"


def test_labels_have_a_legend_and_numbers_a_bar():
    Z = np.random.RandomState(0).normal(size=(60, 3))
    labels = np.repeat(["a", "b", "c"], 20)
    display = LatentDisplay.from_predictions(Z, color=labels, color_name="kind", components=(2, 0))
    assert texts(display.ax_.get_legend()) == ["a", "b", "c"]
    assert display.ax_.get_legend().get_title().get_text() == "kind"
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("z2", "z0")
    points = display.ax_.collections[0]
    colour_of = {}
    places = {tuple(row): label for row, label in zip(Z[:, [2, 0]].round(9), labels, strict=True)}
    for row, colour in zip(points.get_offsets().round(9), points.get_facecolors(), strict=True):
        colour_of.setdefault(places[tuple(row)], set()).add(tuple(colour))
    assert [len(colours) for colours in colour_of.values()] == [1, 1, 1]
    assert len(set.union(*colour_of.values())) == 3
    display = LatentDisplay.from_predictions(Z, color=Z[:, 1], color_name="size")
    assert display.figure_.axes[1].get_ylabel() == "size"
    display = LatentDisplay.from_predictions(Z[:, :1], color=labels)
    heights = [patch.get_height() for patch in display.ax_.patches]
    assert sum(heights) == 60


def test_what_has_no_latents_is_refused(stack, table):
    with pytest.raises(TypeError, match="MixtureStack has no transform"):
        LatentDisplay.from_estimator(stack, table)
    with pytest.raises(ValueError, match="components must be one or two of 0 to 1"):
        LatentDisplay.from_predictions(table[:, :2], components=(0, 2))
    with pytest.raises(ValueError, match="color must hold 300 values"):
        LatentDisplay.from_predictions(table, color=[1, 2])


def test_the_lowest_rows_are_on_top_with_their_largest_cell(table):
    X = pd.DataFrame(table, columns=list("abcd"), index=[f"r{n}" for n in range(300)])
    X.loc["r11", "c"] += 3.0  # ten standard deviations and more
    X.loc["r40", "a"] += 6.0
    density = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
    detector = DensityOutlierDetector(density, n_folds=2, random_state=0).fit(X)
    display = OutlierDisplay.from_estimator(detector, X, n_rows=5)
    assert set(display.row_names[:2]) == {"r11", "r40"}
    for name, column in (("r11", "c"), ("r40", "a")):
        shares = display.shares[display.row_names.index(name)]
        assert display.feature_names[shares.argmax()] == column
    assert (np.diff(display.decision) >= 0.0).all()
    (image,) = display.ax_.images
    assert np.array_equal(image.get_array(), display.shares)
    colours = [label.get_color() for label in display.ax_.get_yticklabels()]
    assert colours == ["crimson" if score < 0.0 else "black" for score in display.decision]
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert labels[0] == f"{display.row_names[0]}  ({display.decision[0]:+.1f})"


def test_given_shares_are_drawn_with_their_numbers():
    display = OutlierDisplay.from_predictions([[0.2, 5.0], [1.0, -2.0]], [-1.0, 2.0], max_share=4.0)
    assert [text.get_text() for text in display.ax_.texts] == ["5.0", "1.0"]
    assert display.ax_.images[0].get_clim() == (0.0, 4.0)
    with pytest.raises(ValueError, match="decision must hold 2 values"):
        OutlierDisplay.from_predictions([[0.2], [1.0]], [-1.0])


def test_transforms_and_coverage_are_those_of_the_report(stack, table):
    display = CalibrationDisplay.from_estimator(stack, table, features=[2, 0], max_rows=100)
    assert display.feature_names == ["x2", "x0"]
    assert len(display.report.transforms) == 100
    left, right = display.axes_[0]
    counts, _ = np.histogram(display.report.transforms, bins=10, range=(0.0, 1.0))
    assert [patch.get_height() for patch in left.patches[:10]] == pytest.approx(counts / 20.0)
    for line, coverage in zip(right.lines[1:], display.report.coverage.T, strict=True):
        assert np.array_equal(line.get_ydata(), coverage)
    assert texts(right.get_legend()) == ["x2", "x0"]
    smallest = min(1.0, 2.0 * display.report.p_values.min())
    assert left.get_title() == f"uniform: p = {smallest:.2g}"
    report = conditional_calibration(stack, table[:50], columns=[3], levels=(0.9,))
    assert CalibrationDisplay.from_report(report).feature_names == ["x3"]


def holes(table):
    rows = table.copy()
    rows[::5, 1] = np.nan
    return rows


def test_imputed_cells_and_intervals_are_drawn(stack, table):
    rows = holes(table)
    display = ImputationDisplay.from_estimator(stack, rows, max_rows=100)
    lines, uprights, complete, means = (display.ax_.collections[place] for place in (1, 2, 0, 3))
    assert len(complete.get_offsets()) == 80
    expected = stack.conditional_mean(rows[:100:5])[:, :2]
    assert np.allclose(means.get_offsets(), expected)
    ends = stack.conditional_quantiles(rows[:100:5], (0.05, 0.95))[:, :, 1]
    assert np.allclose([path.vertices[:, 1] for path in uprights.get_paths()], ends)
    # the observed cell has no interval
    assert np.allclose([np.ptp(path.vertices[:, 0]) for path in lines.get_paths()], 0.0)
    assert np.isnan(display.coverage_)


def test_an_imputer_fitted_to_a_frame_is_shown_without_warnings(table):
    names = [f"column {place}" for place in range(table.shape[1])]
    frame = pd.DataFrame(holes(table), columns=names)
    imputer = ParticleImputer(random_state=0).fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = ImputationDisplay.from_estimator(imputer, frame)
    assert display.feature_names == names[:2]


def test_planes_that_need_particles_have_fewer_points(stack, table):
    class Counting(MixtureStack):
        improved_ = False

        def score_samples(self, X):
            return np.zeros(len(X))

    model = Counting(random_state=0).fit(table)
    display = DensityDisplay.from_estimator(model, table)
    assert [len(points) for points in display.points] == [80, 80]
    model.improved_ = True
    display = DensityDisplay.from_estimator(model, table)
    assert [len(points) for points in display.points] == [32, 32]
    display = DensityDisplay.from_estimator(model, table, others="slice")
    assert [len(points) for points in display.points] == [80, 80]
    display = DensityDisplay.from_estimator(model, table, grid_resolution=20)
    assert [len(points) for points in display.points] == [20, 20]


def test_true_cells_are_counted_within_intervals(stack, table):
    display = ImputationDisplay.from_estimator(stack, holes(table), X_true=table)
    low, high = stack.conditional_quantiles(holes(table)[::5], (0.05, 0.95))[:, :, 1].T
    share = np.mean((low <= table[::5, 1]) & (table[::5, 1] <= high))
    assert display.coverage_ == pytest.approx(share)
    assert f"{100 * share:.0f} % of true cells" in display.axes_[0, 1].get_title()


def test_an_imputer_is_asked_for_its_density(table):
    density = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
    imputer = ParticleImputer(density, random_state=0).fit(holes(table))
    display = ImputationDisplay.from_estimator(imputer, holes(table))
    assert np.isfinite(display.means).all()


def test_densities_without_conditionals_are_refused(gaussian, stack, table):
    with pytest.raises(TypeError, match="GaussianMixture has no conditional_quantiles"):
        ImputationDisplay.from_estimator(gaussian, holes(table))
    with pytest.raises(ValueError, match="features must be two columns, got 1"):
        ImputationDisplay.from_estimator(stack, holes(table), features=[1])
    with pytest.raises(ValueError, match="X_true must have the shape of X"):
        ImputationDisplay.from_estimator(stack, holes(table), X_true=table[:, :2])


def test_the_course_of_a_fit_is_its_history(fitted, moons):
    display = TrainingDisplay.from_estimator(fitted, moons)
    top, middle, bottom = display.axes_[:, 0]
    assert np.array_equal(top.lines[0].get_ydata(), fitted.lower_bounds_)
    rates = [epoch["learning_rate"] for epoch in fitted.history_]
    assert np.array_equal(middle.lines[0].get_ydata(), rates)
    for line, key in zip(bottom.lines, ("swap_rate", "least_swap_rate"), strict=True):
        assert np.array_equal(line.get_ydata(), [epoch[key] for epoch in fitted.history_])
    assert top.get_title() == "kept: the trained model"
    scores = fitted.score_samples(moons)
    level = next(line for line in top.lines if line.get_label() == "score of X")
    assert level.get_ydata()[0] == pytest.approx(scores.mean())
    band = top.patches[0].get_extents().transformed(top.transData.inverted())
    assert band.height == pytest.approx(2.0 * scores.std() / np.sqrt(len(scores)))
    bracket = fitted.log_partition_
    above = next(line for line in top.lines if "lower log Z" in line.get_label())
    width = bracket.upper - bracket.lower
    assert above.get_ydata()[0] == pytest.approx(scores.mean() + width)


def test_undone_epochs_are_marked_and_flows_have_no_swaps():
    history = [
        {"epoch": n, "log_likelihood": -n, "learning_rate": 0.1, "problem": problem}
        for n, problem in ((1, ""), (2, "not finite"), (3, ""))
    ]
    display = TrainingDisplay.from_history(history, kept="kept", kept_value=-1.0)
    assert display.axes_.shape == (2, 1)
    undone = next(line for line in display.axes_[0, 0].lines if line.get_label() == "undone")
    assert undone.get_xdata().tolist() == [2.0]
    assert display.axes_[0, 0].get_ylabel() == "log-likelihood, nats"


def test_what_was_not_trained_has_no_course(stack, small, moons):
    with pytest.raises(TypeError, match="MixtureStack has no history_"):
        TrainingDisplay.from_estimator(stack)
    with pytest.raises(ValueError, match="history holds no epoch"):
        TrainingDisplay.from_estimator(small(max_iter=0).fit(moons))
    display = TrainingDisplay.from_estimator(small(max_iter=1).fit(moons))
    assert "kept: the " in display.kept
