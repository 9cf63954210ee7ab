"""Weights of rows in fits and scores: repeated rows, importance weights, and every estimator."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklvebm import (
    DensityOutlierDetector,
    GaussianMargins,
    MixtureStack,
    ParticleImputer,
    ParticleLVEBM,
    PotentialFlowEBM,
    TransformedDensity,
    WassersteinFlowEBM,
)
from sklvebm.baselines import VAE, HardEM
from sklvebm.baselines._fitting import WeightedRows, principal_latents
from sklvebm.baselines.hard_em import RowLatents
from sklvebm.mixtures.reference_selection import fit_reference

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RANDOM = np.random.RandomState(0)
X = np.concatenate([RANDOM.normal(-2.0, 0.6, (100, 2)), RANDOM.normal(2.0, 0.6, (100, 2))])
IS_LEFT = np.arange(200) < 100
COUNTS = np.where(IS_LEFT, 3, 1)
SHORT = {"max_iter": 3, "random_state": 0}
MODELS = [
    MixtureStack(random_state=0),
    ParticleLVEBM(**SHORT),
    ParticleLVEBM(reference="gaussian", posterior="gaussian", **SHORT),
    ParticleLVEBM(reference="gaussian", init="ratio", **SHORT),
    WassersteinFlowEBM(reference="gaussian", **SHORT),
    PotentialFlowEBM(reference="gaussian", **SHORT),
]


def share_on_the_left(model, n_draws=4000):
    return float((np.asarray(model.sample(n_draws, random_state=1))[:, 0] < 0.0).mean())


@pytest.fixture(params=MODELS, ids=lambda model: f"{type(model).__name__}")
def model(request):
    return sklearn.clone(request.param)


def test_equal_weights_are_no_weights_and_zero_is_absence(model):
    plain = sklearn.clone(model).fit(X).score_samples(X)
    np.testing.assert_array_equal(
        model.fit(X, sample_weight=np.full(200, 0.3)).score_samples(X), plain
    )
    far = np.concatenate([X, np.full((5, 2), 50.0)])
    weights = np.r_[np.ones(200), np.zeros(5)]
    np.testing.assert_array_equal(model.fit(far, sample_weight=weights).score_samples(X), plain)


def test_a_weight_is_a_number_of_copies_in_any_order(model):
    order = RANDOM.permutation(200)
    with pytest.warns(UserWarning, match="repeat other rows"):
        repeated = sklearn.clone(model).fit(np.repeat(X, COUNTS, axis=0))
    weighted = model.fit(X[order], sample_weight=2.5 * COUNTS[order])
    np.testing.assert_allclose(weighted.score_samples(X), repeated.score_samples(X), rtol=1e-9)
    np.testing.assert_allclose(weighted.mean_, np.average(X, axis=0, weights=COUNTS), atol=1e-6)


def test_draws_follow_the_weights(model):
    """150 rows of weight in either mode: a standard error of the share is 0.03 and less."""
    model.set_params(**({"max_iter": 60} if "max_iter" in model.get_params() else {}))
    model.fit(X, sample_weight=COUNTS)
    assert abs(share_on_the_left(model) - 0.75) < 0.06


@pytest.mark.parametrize("options", [{"init": "ratio", "max_iter": 60}, {"init": "reference"}])
def test_an_energy_learns_importance_weights(options):
    """Rows of N(0, 1) with weights N(0.7, 0.7²) / N(0, 1) are rows of the former density.

    The reference is fitted without weights here: what the energy learns it learns by itself.
    """
    random = np.random.RandomState(3)
    rows = random.normal(size=(3000, 1))
    log_weight = -0.5 * ((rows[:, 0] - 0.7) / 0.7) ** 2 + 0.5 * rows[:, 0] ** 2
    wide = fit_reference((rows - 0.7) / 0.7, 1, "gaussian", random)  # in weighted units
    model = ParticleLVEBM(1, reference=wide, random_state=0, **options)
    model.fit(rows, sample_weight=np.exp(log_weight))
    assert model.improved_
    drawn = np.asarray(model.sample(4000, random_state=0))[:, 0]
    size = np.exp(log_weight).sum() ** 2 / np.exp(2.0 * log_weight).sum()
    assert abs(drawn.mean() - 0.7) < 4.0 * 0.7 * np.sqrt(1.0 / size + 1.0 / 4000) + 0.03
    assert abs(drawn.std() - 0.7) < 0.05
    assert model.score(random.normal(0.7, 0.7, (2000, 1))) > -1.062 - 0.06  # minus the entropy


def test_missing_cells_and_weights_together():
    holes = np.where(np.random.RandomState(5).uniform(size=X.shape) < 0.2, np.nan, X)
    stack = MixtureStack(random_state=0).fit(holes, sample_weight=COUNTS)
    assert abs(share_on_the_left(stack) - 0.75) < 0.06
    short = {**SHORT, "max_iter": 20}
    energy = ParticleLVEBM(1, reference="gaussian", **short).fit(holes, sample_weight=COUNTS)
    assert abs(share_on_the_left(energy) - 0.75) < 0.08
    with pytest.raises(ValueError, match=r"Columns \[0\] of X have no observed value in rows of"):
        MixtureStack().fit([[np.nan, 1.0], [np.nan, 2.0], [3.0, 3.0]], sample_weight=[1, 1, 0])


def test_histograms_count_weights():
    x = np.random.RandomState(0).uniform(size=(800, 1))
    weights = np.where(x[:, 0] < 0.5, 3.0, 1.0)
    for found in (
        MixtureStack(margins="histogram", random_state=0).fit(x, sample_weight=weights),
        TransformedDensity(MixtureStack(random_state=0)).fit(x, sample_weight=weights),
    ):
        share = (np.asarray(found.sample(4000, random_state=0))[:, 0] < 0.5).mean()
        assert abs(share - np.average(x[:, 0] < 0.5, weights=weights)) < 0.04
    x = np.random.RandomState(0).uniform(size=(4000, 1))
    weights = np.where(x[:, 0] < 0.5, 9.0, 1.0)
    margins = GaussianMargins().fit(x, sample_weight=weights)
    assert margins.n_bins_[0] > 1
    normal = np.asarray(margins.transform(x))[:, 0]
    assert abs(np.average(normal, weights=weights)) < 0.03


def test_later_chunks_have_weights():
    model = ParticleLVEBM(reference="gaussian", random_state=0)
    for _ in range(5):
        model.partial_fit(X, sample_weight=COUNTS)
    assert share_on_the_left(model) > 0.65
    np.testing.assert_allclose(model.mean_, np.average(X, axis=0, weights=COUNTS), atol=1e-6)
    with pytest.raises(ValueError, match="inconsistent|sample_weight.shape"):
        model.partial_fit(X, sample_weight=COUNTS[:-1])


def test_a_score_is_a_weighted_mean():
    stack = MixtureStack(random_state=0).fit(X)
    values = stack.score_samples(X)
    expected = np.average(values, weights=COUNTS)
    assert stack.score(X, sample_weight=COUNTS) == pytest.approx(expected, abs=1e-12)
    only = np.r_[np.zeros(199), 7.0]
    assert stack.score(X, sample_weight=only) == pytest.approx(values[-1], abs=1e-12)
    with pytest.raises(ValueError, match="above zero for at least one row"):
        stack.score(X, sample_weight=np.zeros(200))


def test_weights_are_routed_through_a_search_and_a_pipeline():
    with sklearn.config_context(enable_metadata_routing=True):
        stack = MixtureStack(random_state=0).set_fit_request(sample_weight=True)
        stack.set_score_request(sample_weight=True)
        search = GridSearchCV(stack, {"max_components": [1, 5]}, cv=2)
        search.fit(X, sample_weight=COUNTS)
        assert abs(share_on_the_left(search.best_estimator_) - 0.75) < 0.06
    latents = ParticleLVEBM(1, reference="gaussian", **SHORT)
    pipeline = make_pipeline(latents, LogisticRegression())
    pipeline.fit(X, IS_LEFT, particlelvebm__sample_weight=COUNTS)
    assert pipeline[0].mean_ == pytest.approx(np.average(X, axis=0, weights=COUNTS), abs=1e-6)


def test_an_outlier_threshold_is_a_weighted_quantile():
    density = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
    detector = DensityOutlierDetector(density, contamination=0.1, n_folds=2, random_state=0)
    detector.fit(X, sample_weight=COUNTS)
    is_flagged = detector.fit_predict(X, sample_weight=COUNTS) < 0
    share = np.average(is_flagged, weights=COUNTS)
    # the least score up to which a tenth of the weight lies; the largest weight is 3 of 400
    assert 0.1 - 3.0 / 400 <= share <= 0.1
    assert len(detector.training_scores_) == 200
    zero = np.r_[np.ones(199), 0.0]
    assert len(detector.fit(X, sample_weight=zero).training_scores_) == 200


def test_an_imputer_counts_rows():
    """Without observed cells a filled cell is the weighted mean of its column."""
    density = MixtureStack(covariance_types=["full"], max_components=1, random_state=0)
    holes = X.copy()
    holes[:3, 1] = np.nan
    imputer = ParticleImputer(density).fit(holes, sample_weight=COUNTS)
    filled = imputer.transform([[np.nan, np.nan]])
    plain = ParticleImputer(density).fit(holes).transform([[np.nan, np.nan]])
    assert filled[0, 0] == pytest.approx(-1.0, abs=0.15)
    assert abs(filled[0, 0] - plain[0, 0]) > 0.7


@pytest.mark.parametrize(
    "make",
    [
        lambda: TransformedDensity(GaussianMixture()),
        lambda: DensityOutlierDetector(GaussianMixture()),
    ],
)
def test_a_density_without_weights_is_named(make):
    with pytest.raises(TypeError, match=r"GaussianMixture.fit takes no sample_weight; pass"):
        make().fit(X, sample_weight=COUNTS)
    make().fit(X, sample_weight=np.ones(200))


def test_a_mixture_of_scikit_learn_as_the_reference_is_refused():
    model = ParticleLVEBM(reference=GaussianMixture(2), max_iter=0)
    with pytest.raises(ValueError, match="GaussianMixture takes no weights of rows"):
        model.fit(X, sample_weight=COUNTS)


def test_messages_name_rows_by_their_place_in_the_table():
    table = np.concatenate([X, X[:50], [[1e40, 0.0]]])
    weights = np.r_[np.zeros(10), np.ones(241)]
    for fit in (
        lambda: MixtureStack().fit(table, sample_weight=weights),
        lambda: ParticleLVEBM(max_iter=0).fit(table),
        lambda: GaussianMargins().fit(table, sample_weight=weights),
    ):
        with pytest.raises(ValueError, match=r"Rows \[250\] of X are 1e\+30"):
            fit()
    table[-1, 0] = 1e8
    with pytest.warns(UserWarning, match="Row 250 of column 0"):
        MixtureStack(random_state=0).fit(table)


@pytest.mark.parametrize("kind", [VAE, HardEM])
def test_a_decoder_learns_weights(kind):
    """Ten to one and one to ten differ by 4.6 nats between the modes; decoders find half of it."""

    def preference_for_the_left(weights):
        model = kind(1, max_iter=150, random_state=0).fit(X, sample_weight=weights)
        scores = model.score_samples(X)
        return scores[IS_LEFT].mean() - scores[~IS_LEFT].mean()

    heavy_left, heavy_right = np.where(IS_LEFT, 10, 1), np.where(IS_LEFT, 1, 10)
    assert preference_for_the_left(heavy_left) > preference_for_the_left(heavy_right) + 1.0


def test_latents_are_standardised_under_the_weights_of_rows():
    copies = np.repeat(np.arange(len(X)), COUNTS)
    x, weights = torch.from_numpy(X), torch.from_numpy(COUNTS / COUNTS.mean())
    weighted = principal_latents(WeightedRows(x, weights), 2, torch.Generator())
    repeated = principal_latents(WeightedRows(x[copies]), 2, torch.Generator())
    torch.testing.assert_close(weighted[copies].abs(), repeated.abs(), rtol=0.0, atol=1e-9)
    moved = RowLatents(weighted, weights).replaced(torch.tensor([3, 150]), x.new_full((2, 2), 5.0))
    again = moved.position[copies]
    torch.testing.assert_close(again.mean(0), x.new_zeros(2), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(again.var(0, unbiased=False), x.new_ones(2))
