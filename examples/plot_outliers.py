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
density = MixtureStack(max_components=4)
detector = DensityOutlierDetector(density, contamination=0.05, random_state=0).fit(X[10:])
flagged = detector.predict(X[10:]) == -1
print(f"{flagged.sum()} of {len(flagged)} wines are flagged")

# %%
# In three of ten new wines, one cell is replaced by the low value of a different kind of wine.

new = X[:10].copy()
new.loc[1, "flavanoids"] = 0.4
new.loc[4, "proline"] = 300.0
new.loc[7, "hue"] = 0.5
print("flagged:", np.flatnonzero(detector.predict(new) == -1))

# %%
# Shares of the cells in nats, of the rows with the lowest scores. Rows in red are outliers. The
# third replaced cell does not make its row improbable enough, but its share is the largest.

OutlierDisplay.from_estimator(detector, new)
