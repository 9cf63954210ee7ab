"""
Draws beside rows
=================

Draws of a model should look like rows that it has not seen. The title is the p-value of a
two-sample test. Waiting times, shares and counts have edges, which smooth mixtures blur. By
default, :class:`~sklvebm.MixtureStack` makes such columns normal by their histograms, where
held-out rows prefer it.
"""

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.model_selection import train_test_split

from sklvebm import MixtureStack
from sklvebm.plotting import SampleComparisonDisplay

normal = np.random.RandomState(0).multivariate_normal(
    np.zeros(3), [[1.0, 0.7, 0.3], [0.7, 1.0, 0.5], [0.3, 0.5, 1.0]], 1200
)
uniform = norm.cdf(normal)
X = pd.DataFrame(
    {"waiting time": -np.log(1.0 - uniform[:, 0]), "share": uniform[:, 1], "size": normal[:, 2]}
)
train, test = train_test_split(X, test_size=0.5, random_state=0)

# %%
# Without histograms, one draw in thirty has a negative waiting time.

plain = MixtureStack(margins="none", max_components=6, random_state=0).fit(train)
SampleComparisonDisplay.from_estimator(plain, test, features=range(3), random_state=0)

# %%
# By default, the waiting time gets a histogram: draws beyond its edge are rare, and the score is
# higher. The edges of the share are blurred in both models, because held-out rows do not prefer a
# histogram there.

mapped = MixtureStack(max_components=6, random_state=0).fit(train)
SampleComparisonDisplay.from_estimator(mapped, test, features=range(3), random_state=0)
for name, model in {"plain": plain, "default": mapped}.items():
    negative = (model.sample(2000, random_state=0)[:, 0] < 0.0).mean()
    print(f"{name}: {model.score(test):.3f} nats per row, {negative:.2%} negative waiting times")
print("bins of each column:", mapped.n_bins_)
