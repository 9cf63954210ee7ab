"""`ParticleLVEBM` inside scikit-learn's pipelines, searches, frames and settings."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from sklvebm import LinearGaussianEnergy, ParticleLVEBM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_pipeline_with_a_scaler_scores_and_transforms_as_its_parts(small, moons):
    pipeline = make_pipeline(StandardScaler(), small()).fit(moons)
    scaled = StandardScaler().fit_transform(moons)
    alone = small().fit(scaled)
    np.testing.assert_array_equal(pipeline.score_samples(moons), alone.score_samples(scaled))
    np.testing.assert_array_equal(pipeline.transform(moons), alone.transform(scaled))
    assert pipeline.get_feature_names_out().tolist() == ["particlelvebm0"]


def test_pipeline_accepts_the_model_as_a_middle_step(small, moons):
    y = np.arange(len(moons)) % 2
    pipeline = make_pipeline(StandardScaler(), small(n_components=2), LogisticRegression())
    assert pipeline.fit(moons, y).predict(moons).shape == (200,)


def test_feature_union_joins_the_columns_and_their_names(small, moons):
    union = FeatureUnion([("pca", PCA(1)), ("latent", small(n_components=2))])
    Z = union.fit_transform(moons)
    assert Z.shape == (200, 3)
    np.testing.assert_array_equal(Z[:, 1:], small(n_components=2).fit(moons).transform(moons))
    assert union.get_feature_names_out().tolist() == [
        "pca__pca0",
        "latent__particlelvebm0",
        "latent__particlelvebm1",
    ]


def test_column_transformer_passes_its_columns_and_names(small, moons):
    frame = pd.DataFrame(moons, columns=["a", "b"]).assign(c=1.0)
    transformer = ColumnTransformer(
        [("latent", small(), ["b", "a"]), ("rest", "passthrough", ["c"])]
    )
    Z = transformer.fit_transform(frame)
    alone = small().fit(moons[:, ::-1])
    np.testing.assert_allclose(Z[:, :1], alone.transform(moons[:, ::-1]), rtol=0, atol=1e-9)
    assert transformer.get_feature_names_out().tolist() == ["latent__particlelvebm0", "rest__c"]
    assert transformer.named_transformers_["latent"].feature_names_in_.tolist() == ["b", "a"]


def test_grid_search_in_two_processes_ranks_by_held_out_score(small, moons):
    grid = {"n_components": [1, 2], "reference": ["gaussian", "mixture"]}
    search = GridSearchCV(small(max_iter=1), grid, n_jobs=2, cv=2).fit(moons)
    # one Gaussian cannot follow two moons
    assert search.best_params_["reference"] == "mixture"
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert search.score(moons) == search.best_estimator_.score(moons)


def test_halving_search_spends_epochs(small, moons):
    search = HalvingGridSearchCV(
        small(),
        {"n_components": [1, 2, 3]},
        resource="max_iter",
        min_resources=1,
        max_resources=4,
        factor=2,
        cv=2,
        random_state=0,
    ).fit(moons)
    assert search.n_resources_ == [1, 2]
    assert search.best_estimator_.n_iter_ == search.best_params_["max_iter"]


def test_cross_validation_scores_held_out_rows(small, moons):
    scores = cross_val_score(small(), moons, cv=[(np.arange(100), np.arange(100, 200))])
    assert scores == [small().fit(moons[:100]).score(moons[100:])]


def mean_log_density(model, X, y=None):
    return model.score_samples(X).mean()


def test_search_works_with_metadata_routing(small, moons):
    expected = GridSearchCV(small(), {"n_components": [1, 2]}, cv=2).fit(moons)
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(small(), {"n_components": [1, 2]}, cv=2).fit(moons)
        routing = small().get_metadata_routing()
    assert search.best_score_ == expected.best_score_
    assert routing.fit.requests == {"sample_weight": None}


def test_search_over_a_pipeline_works_with_metadata_routing(small, moons):
    pipeline = Pipeline([("scale", StandardScaler()), ("model", small())])
    # scikit-learn 1.9 routes a sample_weight to `score` even if none is given, and so rejects every
    # last step without one, its own PCA included: hence a scorer
    arguments = {"param_grid": {"model__n_components": [1, 2]}, "scoring": mean_log_density}
    expected = GridSearchCV(pipeline, cv=2, **arguments).fit(moons)
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(pipeline, cv=2, **arguments).fit(moons)
    assert np.isfinite(search.best_score_)
    assert search.best_score_ == expected.best_score_


def test_array_api_dispatch_changes_nothing_for_numpy_input(small, moons):
    expected = small().fit(moons)
    with sklearn.config_context(array_api_dispatch=True):
        model = small().fit(moons)
        scores, Z = model.score_samples(moons), model.transform(moons)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_array_equal(scores, expected.score_samples(moons))
    np.testing.assert_array_equal(Z, expected.transform(moons))


# Frames ------------------------------------------------------------------------------------------


def test_set_output_pandas_keeps_index_and_names_columns(small, moons):
    frame = pd.DataFrame(moons, columns=["a", "b"], index=np.arange(200)[::-1] * 3)
    model = small(n_components=2).set_output(transform="pandas").fit(frame)
    Z = model.transform(frame)
    assert isinstance(Z, pd.DataFrame)
    assert Z.index.equals(frame.index)
    assert Z.columns.tolist() == ["particlelvebm0", "particlelvebm1"]
    plain = model.set_output(transform="default").transform(frame)
    np.testing.assert_array_equal(Z.to_numpy(), plain)


def test_set_output_polars_names_columns(small, moons):
    frame = pl.DataFrame(moons, schema=["a", "b"])
    model = small().set_output(transform="polars").fit(frame)
    Z = model.transform(frame)
    assert isinstance(Z, pl.DataFrame)
    assert Z.columns == ["particlelvebm0"]
    assert model.feature_names_in_.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.rename(columns={"a": "z"}),
        lambda frame: frame[["b", "a"]],
        lambda frame: frame[["a"]],
    ],
    ids=["renamed", "reordered", "missing"],
)
@pytest.mark.parametrize("method", ["score_samples", "score", "transform", "sample_posterior"])
def test_frames_with_other_columns_raise(small, moons, change, method):
    frame = pd.DataFrame(moons, columns=["a", "b"])
    model = small(max_iter=0).fit(frame)
    with pytest.raises(ValueError, match="feature names should match|expecting 2 features"):
        getattr(model, method)(change(frame))


# Parameters --------------------------------------------------------------------------------------


def test_constructor_stores_its_arguments_untouched():
    arguments = {"hidden_layer_sizes": [3, 4], "energy": object(), "n_components": "wrong"}
    model = ParticleLVEBM(**arguments)
    assert all(getattr(model, name) is value for name, value in arguments.items())
    assert set(vars(model)) == set(model.get_params())


def test_fit_changes_no_parameter(small, moons):
    model = small(hidden_layer_sizes=[8], random_state=np.random.RandomState(0))
    before = model.get_params()
    model.fit(moons)
    assert all(value is before[name] for name, value in model.get_params().items())


def test_parameters_survive_a_round_trip(small):
    model = small()
    other = ParticleLVEBM().set_params(**model.get_params())
    assert other.get_params() == model.get_params()
    with pytest.raises(ValueError, match="n_latents"):
        model.set_params(n_latents=2)


def test_clone_has_equal_parameters_and_is_not_fitted(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert set(vars(copied)) == set(fitted.get_params())


def test_clone_of_a_model_with_a_user_energy_copies_the_energy():
    energy = LinearGaussianEnergy(2, 1)
    copied = clone(ParticleLVEBM(energy=energy))
    assert isinstance(copied.energy, LinearGaussianEnergy)
    assert copied.energy is not energy


def test_a_nested_reference_is_cloned_and_its_parameters_can_be_searched(small, moons):
    mixture = GaussianMixture(2, random_state=0)
    model = small(reference=mixture).set_params(reference__n_components=3).fit(moons)
    # three components and the wide ones
    assert len(model.reference_.log_weights) == 3 + 10
    assert not hasattr(mixture, "weights_")


def test_repr_shows_changed_parameters_only():
    assert repr(ParticleLVEBM()) == "ParticleLVEBM()"
    assert repr(ParticleLVEBM(3, alpha=0.7)) == "ParticleLVEBM(alpha=0.7, n_components=3)"


def test_html_representation_renders_before_and_after_fit(fitted):
    assert "n_components" in clone(fitted)._repr_html_()
    assert "n_components" in fitted._repr_html_()


def test_tags_say_density_estimator_and_transformer():
    tags = get_tags(ParticleLVEBM())
    assert tags.estimator_type == "density_estimator"
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    assert not tags.target_tags.required
    assert not tags.non_deterministic
