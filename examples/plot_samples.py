"""
Draws beside rows
=================

Draws of a model should look like rows that it has not seen. The title is the p-value of a
two-sample test. Counts and rounded columns have edges and steps: the second fit is behind
:class:`~sklvebm.GaussianMargins`, which makes every column normal first.
"""

from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from sklvebm import GaussianMargins, MixtureStack, TransformedDensity, dequantize
from sklvebm.plotting import SampleComparisonDisplay

table = load_diabetes(as_frame=True, scaled=False)
columns = ["age", "bmi", "bp", "s5"]
X = dequantize(table.data[columns], random_state=0)
train, test = train_test_split(X, test_size=0.5, random_state=0)

plain = MixtureStack(max_components=6, random_state=0).fit(train)
SampleComparisonDisplay.from_estimator(plain, test, features=range(4), random_state=0)

# %%
# The score on held-out rows says which of the two is better.

margins = TransformedDensity(
    MixtureStack(max_components=6, random_state=0), transformer=GaussianMargins()
).fit(train)
SampleComparisonDisplay.from_estimator(margins, test, features=range(4), random_state=0)
print(f"plain {plain.score(test):.3f}, behind margins {margins.score(test):.3f} nats per row")
