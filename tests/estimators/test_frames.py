"""Rows come back as the frames that are asked for, with the names that the model was fitted to."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import (
    GaussianMargins,
    MixtureStack,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
    compose,
    interpolate,
)
from sklvebm.baselines import VAE

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

BRIEF = {"max_iter": 1, "random_state": 0, "reference": "gaussian"}
LATENT = ParticleLVEBM(1, **BRIEF)
TRANSFORMERS = {
    "latents": LATENT,
    "flow": PotentialFlowEBM(**BRIEF),
    "margins": GaussianMargins(),
    "transformed latents": TransformedDensity(LATENT),
    "transformed flow": TransformedDensity(PotentialFlowEBM(**BRIEF), transformer="passthrough"),
    "baseline": VAE(1, max_iter=1, random_state=0, hidden_layer_sizes=(8,)),
}
KINDS = {"pandas": pd.DataFrame, "polars": pl.DataFrame}


@pytest.fixture(scope="module")
def frame():
    rows = np.random.default_rng(0).uniform(size=(90, 3))
    return pd.DataFrame(rows, columns=list("abc"), index=np.arange(1000, 1090))


def of_kind(frame, kind):
    return frame if kind == "pandas" else pl.DataFrame(frame.to_numpy(), schema=list(frame))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["own", "global"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_method_that_returns_rows_returns_the_frames_that_are_set(frame, name, where, kind):
    X, model = of_kind(frame, kind), clone(TRANSFORMERS[name])
    if where == "own":
        model.set_output(transform=kind)
    with sklearn.config_context(transform_output=kind if where == "global" else None):
        Z = model.fit_transform(X)
        assert type(Z) is type(model.transform(X)) is KINDS[kind]
        assert list(Z.columns) == list(model.get_feature_names_out())
        rows = model.inverse_transform(Z)
        found = [rows]
        if hasattr(model, "sample"):
            found.append(model.sample(4, **({} if "margins" in name else {"random_state": 0})))
            found.append(interpolate(model, frame.iloc[0], frame.iloc[1], 5))
        if name in ("latents", "baseline"):
            draws, latents = model.sample(4, random_state=0, return_latents=True)
            assert list(latents.columns) == list(Z.columns)
            found.append(draws)
        if name in ("latents", "flow"):
            found.append(compose([(model, 2.0)]).sample(3, random_state=0))
        for part in found:
            assert type(part) is KINDS[kind]
            assert list(part.columns) == list("abc")
        if kind == "pandas":
            assert Z.index.equals(frame.index)
            assert rows.index.equals(frame.index)
    # the numbers are those of arrays
    plain = clone(TRANSFORMERS[name]).set_output(transform="default").fit(X)
    np.testing.assert_array_equal(plain.transform(X), np.asarray(Z))
    np.testing.assert_array_equal(plain.inverse_transform(np.asarray(Z)), np.asarray(rows))


def test_draws_of_a_density_without_latents_follow_the_global_setting(frame):
    for model in (WassersteinFlowEBM(**BRIEF), TransformedDensity(GaussianMixture())):
        with sklearn.config_context(transform_output="pandas"):
            assert list(model.fit(frame).sample(3).columns) == list("abc")
        assert isinstance(model.sample(3), np.ndarray)
        assert not hasattr(model, "set_output")


def test_columns_without_names_are_numbered(frame):
    for name in ("latents", "margins", "transformed latents"):
        model = clone(TRANSFORMERS[name]).set_output(transform="pandas").fit(frame.to_numpy())
        assert list(model.inverse_transform(model.transform(frame.to_numpy()))) == [
            "x0",
            "x1",
            "x2",
        ]


def test_a_composition_and_a_path_of_arrays_are_arrays(frame):
    model = clone(TRANSFORMERS["flow"]).fit(frame)
    assert isinstance(compose([(model, 1.0)]).sample(3, random_state=0), np.ndarray)
    assert isinstance(interpolate(model, frame.iloc[0], frame.iloc[1]), np.ndarray)


def test_a_path_through_a_pipeline_has_the_names_of_its_rows(frame):
    model = make_pipeline(StandardScaler(), clone(LATENT)).set_output(transform="pandas").fit(frame)
    path = interpolate(model, frame.iloc[0], frame.iloc[1], 5)
    assert list(path.columns) == list("abc")


def test_a_transformed_density_is_a_step_like_any_other(frame):
    made = TRANSFORMERS["transformed latents"]
    with sklearn.config_context(transform_output="pandas"):
        for step in (PCA(1), LATENT, made):
            both = ColumnTransformer([("z", step, ["a", "b"]), ("c", StandardScaler(), ["c"])])
            together = both.fit_transform(frame)
            assert together.shape == (90, 2)
            assert together.index.equals(frame.index)
        fitted = clone(made).fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.score(frame)
    pipeline = make_pipeline(StandardScaler(), clone(made)).set_output(transform="pandas")
    Z = pipeline.fit_transform(frame)
    assert Z.index.equals(frame.index)
    assert list(Z.columns) == list(pipeline.get_feature_names_out())
    np.testing.assert_array_equal(
        clone(made).fit(frame).get_feature_names_out(), ["particlelvebm0"]
    )


def test_inner_steps_are_fitted_to_arrays(frame):
    with sklearn.config_context(transform_output="pandas"):
        fitted = clone(TRANSFORMERS["transformed latents"]).fit(frame)
    for part in (fitted.transformer_, fitted.estimator_):
        assert not hasattr(part, "feature_names_in_")
    assert list(fitted.feature_names_in_) == list("abc")


def test_a_container_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="transform must be one of 'default', 'pandas', 'polars'"):
        TransformedDensity(LATENT).set_output(transform="numpy")
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["a", "b"])
    model = clone(TRANSFORMERS["transformed latents"]).fit(X)
    with pytest.raises(ValueError, match="input_features is not equal to feature_names_in_"):
        model.get_feature_names_out(["b", "a"])


def test_the_setting_is_cloned_and_stored():
    model = TransformedDensity(LATENT).set_output(transform="polars").set_output()
    assert clone(model)._sklearn_output_config == {"transform": "polars"}


def test_a_search_over_the_wrapper_is_quiet(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        clone(TRANSFORMERS["transformed latents"]).fit(frame).score_samples(frame)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_a_mixture_stack_are_the_frames_that_are_set(frame, kind):
    model = MixtureStack(covariance_types=["diag"], max_components=1, random_state=0)
    assert model.set_output(transform=kind) is model
    copied = clone(model).fit(of_kind(frame, kind))
    drawn = copied.sample(4, random_state=0)
    assert type(drawn) is KINDS[kind]
    assert list(drawn.columns) == list("abc")
    drawn = copied.set_output(transform="default").sample(4, random_state=0)
    assert type(drawn) is np.ndarray
    with pytest.raises(ValueError, match="transform must be one of .*got 'arrow'"):
        model.set_output(transform="arrow")


def test_conditional_draws_are_arrays_of_three_dimensions_whatever_is_set(frame):
    model = MixtureStack(covariance_types=["diag"], max_components=1, random_state=0)
    X = frame.copy()
    X.iloc[0, 0] = np.nan
    model.set_output(transform="pandas").fit(X)
    drawn = model.sample_conditional(X[:2], 5, random_state=0)
    assert type(drawn) is np.ndarray
    assert drawn.shape == (2, 5, 3)
