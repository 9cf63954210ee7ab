"""Errors of the package that are not plain `ValueError` or `TypeError`."""


class ParticleDivergenceError(ArithmeticError):
    """Raised when particles, energies or parameters stop being finite during training.

    The estimator is left as it was before the call: a first `fit` leaves it unfitted.
    The message names the quantity that diverged and the parameter to change.

    See Also
    --------
    ParticleLVEBM.fit : Raises it.
    sklearn.exceptions.ConvergenceWarning : The warning of finite, but unreliable results.

    Examples
    --------
    >>> from sklvebm import ParticleDivergenceError
    >>> try:
    ...     raise ParticleDivergenceError("particles are not finite")
    ... except ArithmeticError as error:
    ...     print(error)
    particles are not finite
    """


class DamagedStateError(ValueError):
    """Raised if the checksum of a stored model does not match its numbers."""


class RankError(RuntimeError):
    """Raised if another process of a distributed computation failed or did not answer."""
