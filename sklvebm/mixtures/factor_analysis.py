r"""Gaussian mixtures with covariances of low rank plus variances: mixtures of factor analysers.

.. math:: C_m = W_m W_m^T + \mathrm{diag}(\psi_m), \qquad W_m \in R^{D \times q}

With fewer rows than columns, a full covariance has more parameters than the rows have numbers, and
variances alone ignore every dependence. A few directions for all columns lie between. Inverses and
determinants are those of matrices of size q (Woodbury), so that a fit of sixty rows of a thousand
columns takes hundredths of a second.

References
----------
.. [1] Z. Ghahramani, G. E. Hinton, "The EM Algorithm for Mixtures of Factor Analyzers", 1996.
"""

import numpy as np

_LOG_2PI = float(np.log(2.0 * np.pi))
_MAX_ITERATIONS = 100
# nats, of which the larger counts: a smaller gain of an iteration ends them
_MIN_GAIN_PER_ROW, _MIN_GAIN_PER_CELL = 1e-3, 1e-4
_MAX_RESIDUALS = 300_000  # of components side by side: beyond, overhead per call no longer counts
_N_FACTOR_STEPS = 4  # of expectation maximisation over factors, for given responsibilities
_LEAST_SHARE = 0.05  # of a column's variance, that the first fit leaves to the column itself


def log_densities(X: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Return log densities of rows under each component, (n_samples, M), nats.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows.
    means : ndarray of shape (M, n_features)
        Centres.
    covariances : ndarray of shape (M, n_features, rank + 1)
        Loadings, and variances in the last column.
    """
    found = np.empty((len(X), len(means)))
    for some in _groups(X, len(means)):
        loadings, variances = covariances[some, :, :-1], covariances[some, :, -1]
        centred = X - means[some, None]
        scaled = loadings / variances[..., None]
        lower = np.linalg.cholesky(np.eye(loadings.shape[-1]) + _transposed(loadings) @ scaled)
        # matrices of size rank: an inverse and a product are faster than a solution
        explained = np.linalg.inv(lower) @ _transposed(centred @ scaled)
        quadratic = ((centred**2) @ (1.0 / variances)[..., None])[..., 0]
        quadratic -= (explained**2).sum(1)
        log_det = np.log(variances).sum(-1)
        log_det += 2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)
        constant = log_det + X.shape[1] * _LOG_2PI
        found[:, some] = -0.5 * (quadratic + constant[:, None]).T
    return found


def _groups(X: np.ndarray, n_components: int) -> list[slice]:
    """Return components in groups whose residuals fit into the cache, or one by one."""
    size = max(1, _MAX_RESIDUALS // max(1, X.size))
    return [slice(first, first + size) for first in range(0, n_components, size)]


def _transposed(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, -1, -2)


def dense(covariances: np.ndarray) -> np.ndarray:
    """Return the covariances (M, D, D) of loadings and variances (M, D, rank + 1)."""
    loadings, variances = covariances[..., :-1], covariances[..., -1]
    matrices = loadings @ _transposed(loadings)
    each = np.arange(variances.shape[-1])
    matrices[..., each, each] += variances
    return matrices


class FactorFit:
    """Expectation maximisation for one mixture of factor analysers.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Standardised rows.
    rank : int
        Factors of each component.
    ridge : float or ndarray of shape (n_features,)
        Added to variances, squared units of X.
    prior_rows : float
        Rows that the pooled variances count as in the variances of each component.
    row_weights : ndarray of shape (n_samples,) or None
        How often each row counts; None counts each row once.
    """

    def __init__(
        self,
        X: np.ndarray,
        rank: int,
        ridge: float | np.ndarray,
        prior_rows: float,
        row_weights: np.ndarray | None,
    ) -> None:
        self.X, self.rank, self.ridge, self.prior_rows = X, rank, ridge, prior_rows
        self.row_weights = np.ones(len(X)) if row_weights is None else row_weights
        self.weights = np.ones(1)
        self.means = np.empty((0, X.shape[1]))
        self.covariances = np.empty((0, X.shape[1], rank + 1))

    def run(self, labels: np.ndarray, n_components: int) -> None:
        """Fit from first components of every row, (n_samples,).

        Raises
        ------
        numpy.linalg.LinAlgError
            If a component is numerically singular.
        """
        responsibilities = np.eye(n_components)[labels]
        before, n_features = -np.inf, self.X.shape[1]
        least_gain = max(_MIN_GAIN_PER_ROW, _MIN_GAIN_PER_CELL * n_features)
        for _ in range(_MAX_ITERATIONS):
            self._maximise(responsibilities)
            joint = log_densities(self.X, self.means, self.covariances) + np.log(self.weights)
            largest = joint.max(1, keepdims=True)
            responsibilities = np.exp(joint - largest)
            total = responsibilities.sum(1, keepdims=True)
            responsibilities /= total
            log_density = (np.log(total) + largest)[:, 0]
            now = float(np.average(log_density, weights=self.row_weights))
            if not np.isfinite(now):
                raise np.linalg.LinAlgError("rows are too far apart for these components")
            if now - before < least_gain:
                break
            before = now

    def _maximise(self, responsibilities: np.ndarray) -> None:
        shares = responsibilities * self.row_weights[:, None]
        counts = shares.sum(0) + 10.0 * np.finfo(float).eps
        self.weights = counts / counts.sum()
        self.means = (shares.T @ self.X) / counts[:, None]
        # differences are squared, not expanded: values may be large
        variances = np.stack(
            [share @ (self.X - mean) ** 2 for share, mean in zip(shares.T, self.means, strict=True)]
        )
        variances /= counts[:, None]
        pooled = self.weights @ variances
        if len(self.covariances) == 0:
            self.covariances = self._start(responsibilities, pooled)
        for some in _groups(self.X, len(counts)):
            moments = (shares.T[some] / counts[some, None], variances[some], counts[some], pooled)
            self._update_factors(some, *moments)

    def _start(self, responsibilities: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        """Return the principal components of all residuals as the loadings of every component."""
        residuals = self.X - responsibilities @ self.means
        residuals *= np.sqrt(self.row_weights / self.row_weights.sum())[:, None]
        _, values, vectors = np.linalg.svd(residuals, full_matrices=False)
        n_kept = min(self.rank, len(values))
        noise = max(0.0, float(pooled.sum() - (values[:n_kept] ** 2).sum())) / len(pooled)
        loadings = np.zeros((len(pooled), self.rank))
        sizes = np.sqrt(np.maximum(values[:n_kept] ** 2 - noise, _LEAST_SHARE * noise))
        loadings[:, :n_kept] = vectors[:n_kept].T * sizes
        own = np.maximum(pooled - (loadings**2).sum(1), _LEAST_SHARE * pooled) + self.ridge
        parts = np.concatenate([loadings, own[:, None]], 1)
        return np.repeat(parts[None], responsibilities.shape[1], axis=0)

    def _update_factors(
        self,
        some: slice,
        shares: np.ndarray,
        variances: np.ndarray,
        counts: np.ndarray,
        pooled: np.ndarray,
    ) -> None:
        """Climb the likelihood of the loadings and variances of K components.

        Parameters
        ----------
        some : slice
            The components.
        shares : ndarray of shape (K, n_samples)
            Of each row in their moments, summing to one.
        variances : ndarray of shape (K, n_features)
            Of the columns in them.
        counts : ndarray of shape (K,)
            Rows in them.
        pooled : ndarray of shape (n_features,)
            Mean variances of all components.
        """
        centred, count = self.X - self.means[some, None], counts[:, None]
        for _ in range(_N_FACTOR_STEPS):
            loadings, own = self.covariances[some, :, :-1], self.covariances[some, :, -1]
            scaled = loadings / own[..., None]
            # posterior of the factors: covariance, and means of all rows
            covariance = np.linalg.inv(np.eye(self.rank) + _transposed(loadings) @ scaled)
            factors = centred @ (scaled @ covariance)
            weighted = factors * shares[..., None]
            cross = _transposed(weighted) @ centred  # (K, rank, D)
            second = covariance + _transposed(factors) @ weighted
            loadings = _transposed(np.linalg.inv(second) @ cross)
            left = np.maximum(variances - (loadings * _transposed(cross)).sum(-1), 0.0)
            own = (count * left + self.prior_rows * pooled) / (count + self.prior_rows)
            own += self.ridge
            self.covariances[some] = np.concatenate([loadings, own[..., None]], -1)
