"""The steps of `fit_in_epochs` for potential flows."""

from typing import Any

from sklearn.base import BaseEstimator

from sklvebm.estimators._common.fit import Family
from sklvebm.estimators._common.parameters import Rule
from sklvebm.estimators._common.session import FitSession, Outcome
from sklvebm.estimators._flow.config import flow_config
from sklvebm.estimators._flow.serialization import derived_attributes
from sklvebm.estimators._flow.training import FlowTraining, anchored_on, start, train_flow
from sklvebm.inference.drift import warn_of_drift
from sklvebm.models.networks import shape_of


def flow_family(rules: dict[str, Rule], resolved: tuple[str, ...]) -> Family:
    """Return the family of `PotentialFlowEBM`."""
    return Family(
        rules=rules,
        configure=flow_config,
        start=start,
        resume=resume,
        train=train_flow,
        shape=shape,
        attributes=attributes,
        monitored="log-likelihood",
        value="log_likelihood",
        resolved=resolved,
        doubtful="Some numbers",
    )


def resume(estimator: BaseEstimator, session: FitSession) -> FlowTraining:
    """Return a copy of the training of the earlier fit, on its reference.

    Warns
    -----
    UserWarning
        If rows lie outside of the reference.
    """
    warn_of_drift(session.data.completed, estimator.reference_, ", which stays")
    return anchored_on(estimator._training, estimator.reference_)


def shape(training: FlowTraining) -> dict[str, Any]:
    """Return the parameters that shape the network, with their values at its creation."""
    network = training.optimisation.energy.network
    dtype = str(network.output.dtype).removeprefix("torch.")
    return {**shape_of(network), "dtype": dtype}


def attributes(outcome: Outcome) -> dict[str, Any]:
    """Return the fitted attributes of this family."""
    return {
        **derived_attributes(outcome.model),
        "n_steps_": outcome.model.n_steps,
        "diagnostics_": outcome.diagnostics,
        "improved_": outcome.improved,
    }
