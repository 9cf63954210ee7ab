"""scikit-learn's own densities, tuned on training rows: rivals of the density benchmark."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

COMPONENTS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 80)
COVARIANCES = ("full", "tied", "diag", "spherical")
N_WORSE = 3  # grid points without improvement that end the search of a covariance type
LEAST_SEARCHED = 11  # components that are tried in any case
N_FOLDS = 3
BANDWIDTHS = np.geomspace(0.02, 2.0, 20)


class Fitted(NamedTuple):
    """A tuned density."""

    score_samples: object
    settings: str
    diverged: bool = False
    choice: tuple = ()  # what other splits of the same set need not search again


def searched_mixtures(X, loss):
    """Return the loss of each mixture tried: all types, components until they stop helping."""
    losses = {}
    for kind in COVARIANCES:
        best, n_worse = np.inf, 0
        for n_components in COMPONENTS:
            # shells look like one Gaussian until there are many components
            stale = n_worse >= N_WORSE and n_components > LEAST_SEARCHED
            if n_components > len(X) // 3 or stale:
                break
            value = loss(n_components, kind)
            losses[n_components, kind] = value
            n_worse = 0 if value < best else n_worse + 1
            best = min(best, value)
    return losses


def fitted_mixture(X, n_components, kind, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(n_components, covariance_type=kind, random_state=seed).fit(X)


def named_mixture(X, choice, seed):
    mixture = fitted_mixture(X, *choice, seed)
    return Fitted(mixture.score_samples, f"{choice[0]} {choice[1]}")


def mixture_by_bic(X, seed):
    """Fit the Gaussian mixture with the lowest BIC."""
    losses = searched_mixtures(X, lambda n, kind: fitted_mixture(X, n, kind, seed).bic(X))
    return named_mixture(X, min(losses, key=losses.get), seed)


def mixture_by_cross_validation(X, seed):
    """Fit the Gaussian mixture with the best held-out likelihood over three folds."""
    folds = list(KFold(N_FOLDS, shuffle=True, random_state=seed).split(X))

    def loss(n_components, kind):
        return -np.mean(
            [
                fitted_mixture(X[train], n_components, kind, seed).score(X[test])
                for train, test in folds
                if n_components <= len(train)
            ]
        )

    losses = searched_mixtures(X, loss)
    return named_mixture(X, min(losses, key=losses.get), seed)


def kernel_density(X, seed):
    """Fit a Gaussian kernel density, its bandwidth by cross-validation."""
    folds = KFold(N_FOLDS, shuffle=True, random_state=seed)
    # the tolerance changes a log-density by 1e-4 nats and makes ten thousand rows affordable
    search = GridSearchCV(KernelDensity(rtol=1e-4), {"bandwidth": BANDWIDTHS}, cv=folds).fit(X)
    width = search.best_params_["bandwidth"]
    return Fitted(search.best_estimator_.score_samples, f"bandwidth {width:.2g}")


def by_cross_validation(make):
    """Return a rival whose number of components is chosen by cross-validation."""

    def fit(X, seed):
        grid = {"n_components": [k for k in (1, 2, 4, 8, 16, 32) if k < X.shape[1]]}
        folds = KFold(N_FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            search = GridSearchCV(make(), grid, cv=folds).fit(X)
        n_components = search.best_params_["n_components"]
        return Fitted(search.best_estimator_.score_samples, f"{n_components} components")

    return fit


RIVALS = {
    "probabilistic PCA": by_cross_validation(PCA),
    "factor analysis": by_cross_validation(FactorAnalysis),
    "mixture by BIC": mixture_by_bic,
    "mixture by CV": mixture_by_cross_validation,
    "kernel density": kernel_density,
}
