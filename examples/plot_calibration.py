"""
Do conditional intervals hold?
==============================

Each cell of held-out rows is hidden and compared with its quantiles given the other cells. A
Gaussian that is fitted to moons has intervals of the wrong shape, which the display shows.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

from sklvebm import MixtureStack
from sklvebm.plotting import CalibrationDisplay

X, _ = make_moons(1000, noise=0.1, random_state=0)
train, test = train_test_split(X, test_size=200, random_state=0)
models = {
    "one Gaussian": MixtureStack(covariance_types=["full"], max_components=1, random_state=0),
    "stack of mixtures": MixtureStack(max_components=12, random_state=0),
}
figure, axes = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")
reports = {}
for ax, (name, model) in zip(axes, models.items(), strict=True):
    display = CalibrationDisplay.from_estimator(model.fit(train), test, ax=ax)
    display.axes_[0, 1].set_title(name)
    reports[name] = display.report

# %%
# The report has p-values of uniform transforms, coverage in percent, and widths of the intervals in
# standard deviations of the columns. :func:`~sklvebm.metrics.conditional_calibration` returns it
# without a picture, also for other levels.

for name, report in reports.items():
    print(f"{name}: {'calibrated' if report.calibrated() else 'not calibrated'}")
    print(report.report())
