"""Scores that cannot be wrong without saying so: heavy tails, rare modes, rows of any size."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.mixture import GaussianMixture

from sklvebm import ParticleLVEBM, TransformedDensity, WassersteinFlowEBM
from sklvebm.estimators._ebm import normalization
from sklvebm.estimators._ebm import training as ebm_training
from sklvebm.inference import posterior


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def adversarial(script):
    """The benchmark with densities made to break scores."""
    return script("adversarial")


# every kind of density once; the benchmark has all of them, with two seeds
QUICK = [
    "t with 1, 2 columns",
    "t with 2, 2 columns, one Gaussian",
    "2.0% in a far mode of 0.05, one Gaussian",
    "three far clusters",
    "sizes 1 and 1e5, few large",
    "funnel, one Gaussian",
    "banana, one Gaussian",
    "small alpha, one Gaussian",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_no_fit_is_wrong_and_called_sound(adversarial, name):
    row = adversarial.fitted_row(name, "ParticleLVEBM", seed=5, max_iter=25)
    assert not (adversarial.is_wrong(row) and row["verdict"] == "sound"), row


def test_the_benchmark_recognises_a_score_that_is_too_high(adversarial):
    density = adversarial.Mixture(adversarial.normal([0, 0], 1.0))

    class TooHigh:
        improved_ = True
        diagnostics_ = type("D", (), {"verdict": "sound"})

        def score_samples(self, X):
            return density.log_density(X) + 0.2

    row = adversarial.measured(TooHigh(), density, 0, []) | {"gain": 0.0}
    assert adversarial.is_wrong(row)
    # the mass is e^0.2, which the estimate meets within its own error
    assert abs(row["mass"] - np.exp(0.2)) < 4.0 * row["mass_error"]
    TooHigh.score_samples = lambda self, X: density.log_density(X)
    assert not adversarial.is_wrong(adversarial.measured(TooHigh(), density, 0, []) | {"gain": 0.0})


def test_every_density_of_the_benchmark_is_normalised_and_drawn_from(adversarial):
    for name, (density, _, _) in adversarial.CASES.items():
        X, log_proposal = adversarial.proposal(density, 0)
        ratio = np.exp(density.log_density(X) - log_proposal)
        # bounded weights: a third of the proposal is the density itself
        error = ratio.std() / np.sqrt(len(ratio))
        assert abs(ratio.mean() - 1.0) < 5.0 * error, name


@pytest.mark.parametrize("make", [ParticleLVEBM, WassersteinFlowEBM])
@pytest.mark.parametrize("far", [1e8, 1e10, 1e12])
def test_one_far_row_under_a_given_mixture_changes_no_other_rows_score(make, far):
    X = np.random.default_rng(0).normal(size=(200, 2))
    X[:, 1] += X[:, 0]
    X[0] = far
    own = GaussianMixture(2, random_state=0).fit(X).score(X[1:])
    model = make(
        reference=GaussianMixture(2, random_state=0),
        max_iter=3,
        n_chains=32,
        hidden_layer_sizes=(8,),
        random_state=0,
    ).fit(X)
    # the defensive components have a twentieth of the density: 0.05 nats
    assert abs(model.score(X[1:]) - own) < 0.06
    # the far row has a component of its own, no narrower than the floor of 1e-6 allows
    floor = 1e-3 * model.scale_
    assert model.score_samples(X)[0] < -np.log(2.0 * np.pi) - np.log(floor).sum()
    assert len(np.unique(model.sample(50, random_state=0), axis=0)) >= 49


@pytest.mark.parametrize(("n", "code"), [(1, 1e9), (1, 1e15), (10, 1e20), (3, -9.99e8), (1, 1e29)])
def test_far_rows_leave_the_density_of_the_others_as_it_is(n, code):
    X = np.random.default_rng(0).normal(size=(200, 2))
    X[:, 1] += X[:, 0]
    clean = ParticleLVEBM(max_iter=0, random_state=0).fit(X[n:]).score(X[n:])
    X[:n] = code
    model = ParticleLVEBM(max_iter=0, random_state=0).fit(X)
    # what the far rows have of the density is theirs
    assert model.score(X[n:]) > clean + np.log1p(-n / 200) - 0.1
    assert model.score_samples(X)[:n].max() < model.score_samples(X)[n:].min() + 5.0


@pytest.mark.parametrize(
    "make",
    [ParticleLVEBM, WassersteinFlowEBM, lambda **o: TransformedDensity(ParticleLVEBM(**o))],
)
@pytest.mark.parametrize("code", [1.797e308, -1e200, 1e40])
def test_rows_beyond_all_numbers_are_named(make, code):
    X = np.random.default_rng(0).normal(size=(100, 3))
    X[7, 1] = X[3, 2] = code
    with pytest.raises(ValueError, match=r"Rows \[3, 7\] of X .*columns \[1, 2\].*missing"):
        make(max_iter=1, random_state=0).fit(X)


def test_an_energy_whose_diagnostics_object_is_given_up(monkeypatch, fitted, moons):
    assert fitted.improved_

    def doubted(*arguments, **options):
        model, diagnostics = normalise(*arguments, **options)
        if diagnostics.n_walkers:
            diagnostics = diagnostics._replace(rhat=1.5)
        return model, diagnostics

    normalise = ebm_training.normalise
    monkeypatch.setattr(ebm_training, "normalise", doubted)
    given_up = clone(fitted).fit(moons)
    assert not given_up.improved_
    assert given_up.diagnostics_.verdict == "sound"
    assert given_up.log_partition_.value == 0.0


def test_a_gain_allows_for_a_bracket_of_a_tenth_of_it(fitted):
    wide = fitted.diagnostics_._replace(bracket_width=0.3, tolerance=0.05)
    assert ebm_training.accepted_gain(4.0, wide)[0] == 4.0
    assert ebm_training.accepted_gain(4.0, wide)[1].verdict == "sound"
    assert ebm_training.accepted_gain(2.0, wide)[0] == 0.0
    assert ebm_training.accepted_gain(-0.5, wide)[0] == -0.5


def test_a_gain_allows_for_a_bracket_of_twice_itself_up_to_a_fifth_of_a_nat(fitted):
    wide = fitted.diagnostics_._replace(bracket_width=0.08, tolerance=0.05)
    assert ebm_training.accepted_gain(0.041, wide)[0] == 0.041
    assert ebm_training.accepted_gain(0.039, wide)[0] == 0.0
    wider = wide._replace(bracket_width=0.21)
    assert ebm_training.accepted_gain(0.3, wider)[0] == 0.0


def test_a_far_test_row_costs_the_logarithm_of_its_distance():
    X = stats.t(1).rvs((500, 2), random_state=np.random.RandomState(0))
    model = ParticleLVEBM(1, max_iter=0, random_state=0).fit(X)
    far = np.array([[10.0**k, 0.0] for k in range(4, 9)])
    scores = model.score_samples(far)
    assert np.all(np.diff(scores) < 0.0)
    # Student's t with three degrees of freedom in the plane loses five times log 10 a decade
    assert np.all(np.diff(scores) > -5.0 * np.log(10.0) - 2.0)
    assert scores[-1] > -120.0


def test_a_model_that_is_its_reference_is_exact_and_anneals_nothing(monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("nothing is annealed where the correction is zero")

    monkeypatch.setattr(normalization, "estimate_log_partition", forbidden)
    monkeypatch.setattr(normalization, "compare_diagnostic_chains", forbidden)
    monkeypatch.setattr(posterior, "anneal", forbidden)
    X = np.random.default_rng(0).normal(size=(60, 5))
    model = ParticleLVEBM(2, max_iter=0, random_state=0).fit(X)
    assert tuple(model.log_partition_)[:4] == (0.0, 0.0, 0.0, 0.0)
    for answer in (
        model.score_samples(X),
        model.score_samples(X, bound="upper"),
        model.transform(X),
        model.inverse_transform(model.transform(X)),
        model.sample(20, random_state=0),
    ):
        assert np.isfinite(answer).all()
    exact = model.reference_.log_marginal(torch.from_numpy((X - model.mean_) / model.scale_))
    np.testing.assert_allclose(
        model.score_samples(X), exact.numpy() - np.log(model.scale_).sum(), rtol=1e-12
    )


def test_the_reference_is_found_out_where_its_numbers_cannot_be():
    X = np.random.default_rng(0).normal(size=(100, 2))
    model = ParticleLVEBM(1, max_iter=0, random_state=0).fit(X)
    diagnostics = model.diagnostics_
    assert diagnostics.excess_density == 0.0
    assert diagnostics.distinct_draws == 1.0
    for change in ({"excess_density": 1.0}, {"distinct_draws": 0.5}):
        verdict = diagnostics._replace(**change).verdict
        assert verdict.startswith("check: the reference is numerically inaccurate")
