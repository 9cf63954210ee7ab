"""`to_inference_data`: particles and posterior draws for ArviZ."""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklvebm.estimators._common.frames import features_of


def to_inference_data(
    model: Any, X: Any = None, *, n_draws: int = 100, random_state: Any = None
) -> Any:
    """Return the negative pool of a model, and posterior draws of rows, for ArviZ.

    Needs the package ArviZ (`pip install "sklvebm[arviz]"`).

    Parameters
    ----------
    model : ParticleLVEBM or WassersteinFlowEBM
        Fitted.
    X : array-like of shape (n_samples, n_features) or None, default=None
        Rows whose latents are drawn; None leaves the posterior out. `WassersteinFlowEBM` has no
        latents.
    n_draws : int, default=100
        Draws of the latents of each row.
    random_state : int, RandomState, Generator or None, default=None
        Source of the posterior draws; an integer repeats them.

    Returns
    -------
    data : arviz.InferenceData
        Groups:

        * `prior_predictive`, with `x` of shape (1, n_chains, n_features): the particles of the
          pool, where training ended, in the units of the data. They stand for draws of the trained
          energy, also where `fit` kept the reference (`improved_` is False).
        * `prior`, with `z` of shape (1, n_chains, n_components): their latents, where the model has
          some. They are those of the linear latent map.
        * `posterior`, with `z` of shape (1, n_draws, n_samples, n_components), and `observed_data`
          with the rows: only if X is given.

    Raises
    ------
    ImportError
        If ArviZ is not installed.
    TypeError
        If the model has no pool, or X is given and it has no latents.
    NotFittedError
        Before `fit`.

    See Also
    --------
    ParticleLVEBM : Its `diagnostics_` judge the pool.

    Notes
    -----
    Particles and draws are independent, and stand in one chain: R-hat of ArviZ, which compares
    halves of the chain, says nothing about how the pool mixes. `diagnostics_` does.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sklvebm import ParticleLVEBM, to_inference_data
    >>> X, _ = make_moons(100, noise=0.1, random_state=0)
    >>> model = ParticleLVEBM(n_components=1, max_iter=1, tol=None, random_state=0).fit(X)
    >>> data = to_inference_data(model, X[:5], random_state=0)  # doctest: +SKIP
    >>> data.posterior["z"].shape  # doctest: +SKIP
    (1, 100, 5, 1)
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError('to_inference_data needs ArviZ: pip install "sklvebm[arviz]".') from error
    if not hasattr(model, "n_chains"):
        raise TypeError(f"model must have a pool of particles, got a {type(model).__name__}.")
    check_is_fitted(model)
    if X is not None and not hasattr(model, "sample_posterior"):
        raise TypeError(f"X must be None for a {type(model).__name__}, which has no latents.")
    features = features_of(model)
    rows, latents = _pool(model)
    known: dict[str, Any] = {"coords": {"feature": features}, "dims": {"x": ["feature"]}}
    found = arviz.from_dict(prior_predictive={"x": rows[None]}, **known)
    if latents.shape[1]:
        names = list(model.get_feature_names_out())
        of_latents: dict[str, Any] = {"coords": {"latent": names}, "dims": {"z": ["latent"]}}
        found.extend(arviz.from_dict(prior={"z": latents[None]}, **of_latents))
    if X is not None:
        drawn = model.sample_posterior(X, n_draws, random_state=random_state)
        observed = np.asarray(X, dtype=np.float64)
        coords = {"row": np.arange(len(observed)), "latent": names, "feature": features}
        dims = {"z": ["row", "latent"], "x": ["row", "feature"]}
        posterior, data = {"z": drawn.swapaxes(0, 1)[None]}, {"x": observed}
        found.extend(
            arviz.from_dict(posterior=posterior, observed_data=data, coords=coords, dims=dims)
        )
    return found


def _pool(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return particles at the model's temperature: rows (M, D) in units of X, latents (M, L)."""
    training = model._training
    reference = training.optimisation.energy.reference
    x, z = reference.split(training.state.pool[-1].detach().to(reference.location))
    rows, latents = (part.detach().cpu().double().numpy() for part in (x, z))
    return model._model.standardisation.invert(rows), latents
