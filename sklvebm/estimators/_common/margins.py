"""Densities of the columns of a fit: whether its rows are mapped by them."""

from sklvebm.estimators._common.config import AnchoredConfig
from sklvebm.estimators._common.session import FitSession
from sklvebm.mixtures.column_densities import margins_of_option
from sklvebm.mixtures.margins import ChosenMargins, choose_margins
from sklvebm.preprocessing.margins import Bins


def with_margins(session: FitSession) -> FitSession:
    """Return the session of a first fit with mapped columns, where held-out rows prefer them."""
    config = session.config
    if not isinstance(config, AnchoredConfig) or config.margins == "none":
        return session
    data, policy = session.data, config.stack_policy
    observed = None if data.observed is None else data.observed[data.split.fitted]
    if config.margins != "auto":
        rows, weights = data.fitted if observed is None else observed, data.fitted_weights
        margins = margins_of_option(config.margins, rows, weights)
        return session if margins is None else session.mapped_by(margins)
    if policy is None or not config.maps_columns:
        return session
    how = {"observed": observed, "row_weights": data.fitted_weights}
    found = session.cached(choose_margins)(data.fitted, session.draw_seed(), policy, **how)
    session = session._replace(choice=found.choice)
    if found.choice is not None:
        session.report.stage(summary(found))
    return session if found.margins is None else session.mapped_by(found.margins)


def summary(found: ChosenMargins) -> str:
    """Return a line on the decision, for the progress of a fit."""
    if found.margins is None:
        return f"no column is mapped: gain {found.gain:.3f} nats"
    mapped = [margin for margin in found.margins if margin is not None]
    n_bins = sum(isinstance(margin, Bins) for margin in mapped)
    return (
        f"{len(mapped)} of {len(found.margins)} columns become normal, {n_bins} of them by "
        f"histograms: gain {found.gain:.3f} nats"
    )
