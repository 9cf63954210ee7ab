"""What all displays promise: axes, figures, arrays, no window, and advice without matplotlib."""

import builtins

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sklvebm import DensityOutlierDetector, MixtureStack, plotting

PANELS = {
    "CalibrationDisplay": 2,
    "DensityDisplay": 1,
    "EnergyDisplay": 1,
    "ImputationDisplay": 1,
    "LatentDisplay": 1,
    "OutlierDisplay": 1,
    "SampleComparisonDisplay": 16,
    "TrainingDisplay": 3,
}
every_display = pytest.mark.parametrize("name", sorted(PANELS))


@pytest.fixture(scope="session")
def detector(table):
    density = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
    return DensityOutlierDetector(density, n_folds=2, random_state=0).fit(table)


@pytest.fixture
def drawn(stack, detector, fitted, moons, table):
    """A function of a display's name that draws it, on given axes."""

    def draw(name, ax=None):
        display = getattr(plotting, name)
        if name == "OutlierDisplay":
            return display.from_estimator(detector, table, n_rows=3, ax=ax)
        if name in ("LatentDisplay", "TrainingDisplay"):
            return display.from_estimator(fitted, moons, ax=ax)
        rows = np.where(np.arange(4) == np.arange(300)[:, None] % 9, np.nan, table)
        X = rows[:40] if name == "ImputationDisplay" else table[:60]
        return display.from_estimator(stack, X, ax=ax)

    return draw


def test_every_display_is_listed_and_tested():
    assert plotting.__all__ == sorted(plotting.__all__) == sorted(PANELS)


@every_display
def test_one_line_makes_a_figure_and_shows_no_window(drawn, name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a window"))
    display = drawn(name)
    assert plt.get_fignums() == [display.figure_.number]
    assert display.ax_.figure is display.figure_
    shown = [ax for ax in display.figure_.axes if ax.axison and ax.get_label() != "<colorbar>"]
    assert len(shown) == PANELS[name]
    display.figure_.canvas.draw()


@every_display
def test_given_axes_are_used_and_others_left_alone(drawn, name):
    figure, (left, right) = plt.subplots(1, 2)
    display = drawn(name, left)
    assert display.ax_ is left
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert not right.has_data()
    figure.canvas.draw()


@every_display
def test_a_display_can_be_drawn_again(drawn, name):
    display = drawn(name)
    first = display.figure_
    assert display.plot() is display
    assert display.figure_ is not first
    assert display.ax_.figure is display.figure_


@every_display
def test_without_matplotlib_the_message_says_what_to_install(drawn, name, monkeypatch):
    importer = builtins.__import__

    def refused(module, *args, **kwargs):
        if module.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {module!r}")
        return importer(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(ImportError, match=rf'{name} needs matplotlib.*pip install "sklvebm\[plot'):
        drawn(name)


def test_axes_that_cannot_be_divided_are_refused(drawn):
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(ValueError, match="pass axes of plt.subplots"):
        drawn("CalibrationDisplay", ax)


@pytest.mark.filterwarnings("ignore:X has feature names")  # the model was fitted without
@pytest.mark.parametrize("features", [["b", "d"], [1, 3]])
def test_columns_are_chosen_by_name_or_index_and_labelled(stack, table, features):
    frame = pd.DataFrame(table, columns=list("abcd"))
    display = plotting.DensityDisplay.from_estimator(
        stack, frame if features[0] == "b" else table, features=features, grid_resolution=10
    )
    labels = (display.ax_.get_xlabel(), display.ax_.get_ylabel())
    assert labels == (("b", "d") if features[0] == "b" else ("x1", "x3"))
    assert np.ptp(display.points[0]) == pytest.approx(1.3 * np.ptp(table[:, 1]))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["e"], "features must be among .*, got 'e'"),
        ([4], "features must be from 0 to 3, got 4"),
        ([1, 1], "features must be one or more different columns"),
        ([], "features must be one or more different columns"),
    ],
)
def test_features_that_do_not_exist_are_refused(stack, table, features, message):
    with pytest.raises(ValueError, match=message):
        plotting.DensityDisplay.from_estimator(stack, table, features=features)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_estimators_of_frames_are_given_frames(table, library):
    frames = pytest.importorskip(library)
    X = frames.DataFrame(dict(zip("abcd", table.T, strict=True)))
    density = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
    model, name = density.fit(X), "b"
    plotting.DensityDisplay.from_estimator(model, X, features=[name, "a"], grid_resolution=9)
    plotting.EnergyDisplay.from_estimator(model, X, response="correction", grid_resolution=9)
    plotting.SampleComparisonDisplay.from_estimator(model, X, random_state=0)
    plotting.CalibrationDisplay.from_estimator(model, X, features=[name], max_rows=20)
    holes = np.where(np.arange(4) == np.arange(300)[:, None] % 9, np.nan, table)
    missing = frames.DataFrame(dict(zip("abcd", holes.T, strict=True)))
    display = plotting.ImputationDisplay.from_estimator(model, missing, X_true=X)
    assert display.feature_names == ["a", "b"]
    detector = DensityOutlierDetector(density, n_folds=2, random_state=0).fit(X)
    display = plotting.OutlierDisplay.from_estimator(detector, X, n_rows=2)
    assert display.feature_names == ["a", "b", "c", "d"]


@pytest.mark.parametrize("display", ["SampleComparisonDisplay", "CalibrationDisplay"])
def test_missing_cells_that_cannot_be_shown_are_named_with_what_helps(display, stack, table):
    rows = table.copy()
    rows[:3, 0] = np.nan
    with pytest.raises(ValueError, match="3 rows with missing cells.*ParticleImputer"):
        getattr(plotting, display).from_estimator(stack, rows)
    rows[0, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        getattr(plotting, display).from_estimator(stack, rows)
