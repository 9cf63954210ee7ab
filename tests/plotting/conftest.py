"""Figures that are closed after every test, and models whose pictures are known."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from sklvebm import MixtureStack


@pytest.fixture(autouse=True)
def _closed():
    """No window, and no figure of an earlier test."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def table():
    """Three hundred correlated normal rows of four columns in different units."""
    factors = np.random.RandomState(0).normal(size=(300, 4))
    mixed = factors @ np.array([[1.0, 0.8, 0, 0], [0, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 1.0]])
    return mixed * [1.0, 10.0, 0.1, 2.0] + [0.0, 5.0, 0.0, -3.0]


@pytest.fixture(scope="session")
def stack(table):
    """One Gaussian of the table, with an exact density that allows missing cells."""
    return MixtureStack(covariance_types=["full"], max_components=1, random_state=0).fit(table)


@pytest.fixture(scope="session")
def gaussian(table):
    """The same without missing cells."""
    return GaussianMixture(random_state=0).fit(table)
