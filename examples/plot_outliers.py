"""
Outliers, and the cells that make them odd
==========================================

:class:`~sklvebm.DensityOutlierDetector` flags rows of low density. Its threshold comes from rows
that the density was not fitted to, so that it holds for new rows.
"""

import numpy as np
from sklearn.datasets import load_wine

from sklvebm import DensityOutlierDetector, MixtureStack
from sklvebm.plotting import OutlierDisplay

X = load_wine(as_frame=True).data
X = X.rename(columns={"od280/od315_of_diluted_wines": "od280/od315"})
detector = DensityOutlierDetector(MixtureStack(max_components=4), random_state=0).fit(X[10:])
flagged = detector.predict(X[10:]) == -1
print(f"{flagged.sum()} of {len(flagged)} wines are flagged")

# %%
# In three of ten new wines, one cell is replaced by a value that is ordinary for wines, but not for
# these wines.

new = X[:10].copy()
new.loc[1, "flavanoids"] = 0.6
new.loc[4, "proline"] = 400.0
new.loc[7, "hue"] = 0.6
print(np.flatnonzero(detector.predict(new) == -1))

# %%
# Shares of the cells in nats, of the rows with the lowest scores: red rows are outliers.

OutlierDisplay.from_estimator(detector, new)
