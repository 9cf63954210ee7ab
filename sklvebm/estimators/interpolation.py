"""`interpolate`: a path between two rows through the latents of a model."""

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.frames import container_of, features_of, in_container
from sklvebm.estimators._common.parameters import Number, OneOf
from sklvebm.runtime import without_numpy_errors
from sklvebm.validation import as_plain_array

_PATHS = ("auto", "linear", "spherical")


@without_numpy_errors
def interpolate(model: Any, start: Any, end: Any, n_steps: int = 8, *, path: str = "auto") -> Any:
    r"""Return a path between two rows through a model's latents.

    `model.transform` maps both rows to latents, and `model.inverse_transform` maps the path between
    these to rows.

    Parameters
    ----------
    model : estimator
        Fitted, with `transform` and `inverse_transform`: `ParticleLVEBM`, `PotentialFlowEBM`, or a
        pipeline that ends in one.
    start, end : array-like of shape (n_features,)
        Rows in the units of the data.
    n_steps : int, default=8
        Rows on the path, both ends included; at least 2.
    path : {"auto", "linear", "spherical"}, default="auto"
        Path between the latents: a straight line, or `slerp` [1]_, with constant angular velocity
        and a linear change of the length. Standard normal latents in many dimensions have nearly
        equal lengths, and points on a straight line between them are shorter. "auto" is "spherical"
        for as many latents as features, as in a flow, else "linear".

    Returns
    -------
    X : ndarray of shape (n_steps, n_features)
        Rows in the units of the data; a frame if the model's `set_output` is set to one. For a
        flow, the first and the last are `start` and `end`, up to `diagnostics_.round_trip_error`.
        With fewer latents than features, they are the reconstructions `E[x | z]`.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError, ValueError
        If the model has no latents, a row has another width, or a parameter is not legal.

    See Also
    --------
    PotentialFlowEBM : A flow, whose latents are as many as the features.
    ParticleLVEBM : Fewer latents than features.

    References
    ----------
    .. [1] K. Shoemake, "Animating Rotation with Quaternion Curves", SIGGRAPH 1985.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import PotentialFlowEBM, interpolate
    >>> X, _ = make_moons(200, noise=0.1, random_state=0)
    >>> model = PotentialFlowEBM(max_iter=0, random_state=0).fit(X)
    >>> interpolate(model, X[0], X[1], 5).shape
    (5, 2)
    """
    for method in ("transform", "inverse_transform"):
        if isinstance(model, type) or not hasattr(model, method):
            raise TypeError(
                f"model must be fitted and have transform and inverse_transform, got {model!r}."
            )
    check_is_fitted(model)
    Number(True, 2).check("n_steps", n_steps)
    OneOf(_PATHS).check("path", path)
    ends = [_row("start", start), _row("end", end)]
    if ends[0].shape != ends[1].shape:
        widths = [row.shape[1] for row in ends]
        raise ValueError(f"start and end must have the same number of features, got {widths}.")
    rows = np.concatenate(ends)
    # a model that was fitted to a data frame warns of rows without column names
    names = getattr(model, "feature_names_in_", None)
    latents = np.asarray(model.transform(_named(rows, names)))
    if path == "auto":
        path = "spherical" if latents.shape[1] == rows.shape[1] else "linear"
    share = np.linspace(0.0, 1.0, n_steps, dtype=latents.dtype)
    join = slerp if path == "spherical" else _straight
    X = np.asarray(model.inverse_transform(join(latents[0], latents[1], share)))
    # a pipeline passes the setting on to its steps
    kind = container_of(model[-1] if isinstance(model, Pipeline) else model)
    return X if kind == "default" else in_container(kind, X, features_of(model))


def _row(name: str, row: Any) -> np.ndarray:
    """Return a row as an array (1, n_features)."""
    row = check_array(as_plain_array(row), ensure_2d=False, dtype=[np.float64, np.float32])
    if row.ndim != 1:
        raise ValueError(f"{name} must be one row of shape (n_features,), got {row.shape}.")
    return row[None]


def _named(rows: Any, names: Any) -> Any:
    if names is None:
        return rows
    if rows.shape[1] != len(names):
        return rows
    for kind in ("pandas", "polars"):
        try:
            return in_container(kind, rows, names)
        except ImportError:
            continue
    return rows


def _straight(first: np.ndarray, last: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return points (n, L) on the line between two points (L,), at shares (n,) of its length."""
    return first + share[:, None] * (last - first)


def slerp(first: np.ndarray, last: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return points with constant angular velocity and a linear change of the length.

    Parameters
    ----------
    first, last : ndarray of shape (n_latents,)
        Ends.
    share : ndarray of shape (n,)
        Shares of the path, in [0, 1].

    Returns
    -------
    points : ndarray of shape (n, n_latents)
        On the straight line if the ends are parallel, opposite or zero, and span no plane.
    """
    lengths = np.linalg.norm(first), np.linalg.norm(last)
    if min(lengths) == 0.0:
        return _straight(first, last, share)
    units = first / lengths[0], last / lengths[1]
    # accurate also for small angles, unlike the arc cosine
    angle = 2.0 * np.arctan2(
        np.linalg.norm(units[0] - units[1]), np.linalg.norm(units[0] + units[1])
    )
    if np.sin(angle) < 1e-7:
        return _straight(first, last, share)
    share = share[:, None]
    direction = np.sin((1.0 - share) * angle) * units[0] + np.sin(share * angle) * units[1]
    length = (1.0 - share) * lengths[0] + share * lengths[1]
    return length * direction / np.sin(angle)
