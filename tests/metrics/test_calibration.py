"""Calibration of conditional quantiles: exact for a known Gaussian, and seen where it is wrong."""

import numpy as np
import pytest
from scipy.stats import norm

from sklvebm.metrics import conditional_calibration

COVARIANCE = np.array([[2.0, 1.2, 0.0], [1.2, 1.0, -0.3], [0.0, -0.3, 0.5]])


class Gaussian:
    """Conditional quantiles of a Gaussian, from its precision; optionally wrong ones."""

    def __init__(self, covariance=COVARIANCE, shift=0.0, stretch=1.0):
        self.precision = np.linalg.inv(covariance)
        self.shift, self.stretch = shift, stretch

    def conditional_quantiles(self, X, quantiles):
        found = np.repeat(X[:, None], len(quantiles), axis=1)
        for row, column in zip(*np.nonzero(np.isnan(X)), strict=True):
            others = np.delete(np.arange(X.shape[1]), column)
            pull = self.precision[column, others] @ X[row, others]
            deviation = self.precision[column, column] ** -0.5
            mean = -(deviation**2) * pull + self.shift * deviation
            found[row, :, column] = mean + self.stretch * deviation * norm.ppf(quantiles)
        return found


def rows(n=400, seed=0):
    return np.random.RandomState(seed).multivariate_normal(np.zeros(3), COVARIANCE, n)


def test_transforms_are_the_conditional_distribution_functions():
    X = rows(300)
    report = conditional_calibration(Gaussian(), X, n_quantiles=199)
    precision = np.linalg.inv(COVARIANCE)
    for column in range(3):
        others = np.delete(np.arange(3), column)
        variance = 1.0 / precision[column, column]
        mean = -variance * X[:, others] @ precision[column, others]
        exact = norm.cdf((X[:, column] - mean) / np.sqrt(variance))
        # beyond the outermost quantile, the tail of 1/200 is filled evenly
        assert np.abs(report.transforms[:, column] - exact).max() < 1.0 / 200
        inside = (exact > 0.005) & (exact < 0.995)
        assert (
            np.abs(report.transforms[inside, column] - exact[inside]).max() < 1e-3
        )  # linear over 1/200


def test_coverage_and_widths_are_counted_over_central_intervals():
    X = rows(500)
    report = conditional_calibration(Gaussian(), X, levels=(0.5, 0.9), columns=[1])
    precision = np.linalg.inv(COVARIANCE)[1]
    deviation = precision[1] ** -0.5
    mean = -(deviation**2) * (X[:, [0, 2]] @ precision[[0, 2]])
    for place, level in enumerate((0.5, 0.9)):
        half = norm.ppf(0.5 + 0.5 * level) * deviation
        share = np.mean(np.abs(X[:, 1] - mean) <= half)
        assert report.coverage[place, 0] == pytest.approx(share)
        assert report.widths[place, 0] == pytest.approx(2.0 * half / X[:, 1].std())
    assert report.coverage_error == pytest.approx(np.sqrt([0.25 / 500, 0.09 / 500]))
    assert report.columns.tolist() == [1]


def test_right_conditionals_are_rejected_as_often_as_the_level_says():
    reports = [conditional_calibration(Gaussian(), rows(100, seed)) for seed in range(100)]
    p_values = np.concatenate([report.p_values for report in reports])
    # binomial: 300 tests, of which those of one sample depend on each other
    assert 0.01 < np.mean(p_values < 0.05) < 0.10
    assert sum(not report.calibrated() for report in reports) <= 12


@pytest.mark.parametrize("wrong", [{"shift": 0.35}, {"stretch": 0.7}, {"stretch": 1.5}])
def test_wrong_conditionals_are_seen(wrong):
    report = conditional_calibration(Gaussian(**wrong), rows())
    assert not report.calibrated()
    assert (report.p_values < 0.01).all()
    if "stretch" in wrong:
        too_narrow = wrong["stretch"] < 1.0
        excess = (report.coverage - report.levels[:, None]) / report.coverage_error[:, None]
        assert (excess[1] < -3.0 if too_narrow else excess[1] > 3.0).all()


def test_a_wrong_dependence_is_seen():
    signs = np.diag([1.0, -1.0, 1.0])  # the sign of a correlation
    report = conditional_calibration(Gaussian(signs @ COVARIANCE @ signs), rows())
    assert not report.calibrated()


def test_ignored_dependence_is_calibrated_but_wide():
    of_columns = conditional_calibration(Gaussian(np.diag(np.diag(COVARIANCE))), rows())
    joint = conditional_calibration(Gaussian(), rows())
    assert of_columns.calibrated()
    assert (joint.widths[:, :2] < 0.6 * of_columns.widths[:, :2]).all()


def test_the_report_has_a_line_for_every_column():
    report = conditional_calibration(Gaussian(), rows(50), columns=[2, 0], levels=(0.8,))
    lines = report.report().splitlines()
    assert [line.split()[0] for line in lines] == ["column", "2", "0", "chance"]
    assert f"{100 * report.coverage[0, 1]:.1f}" in lines[2]


def test_illegal_arguments_are_refused():
    X = rows(20)
    with pytest.raises(ValueError, match=r"columns must be indices below 3, got \[3\]"):
        conditional_calibration(Gaussian(), X, columns=[3])
    with pytest.raises(ValueError, match="levels must lie between zero and one"):
        conditional_calibration(Gaussian(), X, levels=(0.5, 1.0))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        conditional_calibration(Gaussian(), np.where(X > 1.0, np.nan, X))
    with pytest.raises(ValueError, match="implementing 'conditional_quantiles'"):
        conditional_calibration(object(), X)
