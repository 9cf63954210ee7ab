"""Fitting `ParticleLVEBM` and asking it: attributes, scores, latents, draws, continued fits."""

import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from sklvebm import (
    AnchoredEnergy,
    LinearGaussianEnergy,
    LogPartition,
    MappedEnergy,
    MixtureReference,
    ParticleLVEBM,
    runtime,
)
from sklvebm.estimators._ebm import fitted_model
from sklvebm.preprocessing import prepared
from sklvebm.preprocessing.splitting import split_rows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

METHODS_OF_ROWS = ["score_samples", "transform", "inverse_transform"]


def rows_for(method, X):
    """Return rows that a method accepts: X, or the first column of some as latents."""
    # rows are annealed to latents: of two hundred, it takes seconds
    return X[::10, :1] if method == "inverse_transform" else X


# Fit ---------------------------------------------------------------------------------------------


def test_fit_returns_itself_and_ignores_y(small, moons):
    model = small()
    assert model.fit(moons, y=["ignored"] * 200) is model
    np.testing.assert_array_equal(model.transform(moons), small().fit(moons).transform(moons))


def test_fit_has_the_signature_of_scikit_learn():
    names = ["self", "X", "y", "sample_weight"]
    assert list(inspect.signature(ParticleLVEBM.fit).parameters) == names


def test_fitted_attributes_have_the_documented_types(fitted):
    assert isinstance(fitted.energy_, AnchoredEnergy | MappedEnergy)
    assert {p.dtype for p in fitted.energy_.parameters()} == {torch.float64}
    assert isinstance(fitted.reference_, MixtureReference)
    assert fitted.mean_.shape == fitted.scale_.shape == (2,)
    assert isinstance(fitted.log_partition_, LogPartition)
    assert isinstance(fitted.lower_bound_, float)
    assert isinstance(fitted.lower_bounds_, list)
    assert isinstance(fitted.n_iter_, int)
    assert isinstance(fitted.converged_, bool)
    assert fitted.n_features_in_ == 2
    assert fitted.device_ in {"cpu", "cuda", "cuda:0"}
    check_is_fitted(fitted)


def test_the_history_has_one_entry_for_each_epoch(fitted):
    assert fitted.n_iter_ == len(fitted.lower_bounds_) == len(fitted.history_) == 30
    assert [entry["epoch"] for entry in fitted.history_] == list(range(1, 31))
    assert [entry["lower_bound"] for entry in fitted.history_] == fitted.lower_bounds_
    for entry in fitted.history_:
        assert entry["problem"] == ""
        assert all(np.isfinite(value) for name, value in entry.items() if name != "problem")


def test_the_best_monitored_bound_is_kept(fitted):
    # means over five epochs decide, because one epoch's bound is noisy
    bounds = np.array(fitted.lower_bounds_)
    means = [bounds[max(0, k - 4) : k + 1].mean() for k in range(len(bounds))]
    assert fitted.lower_bound_ == pytest.approx(max(means), abs=1e-9)


def test_training_improves_on_the_reference_on_new_rows(fitted, moons):
    new, _ = make_moons(2000, noise=0.1, random_state=1)
    reference = clone(fitted).set_params(max_iter=0).fit(moons)
    gain = fitted.score_samples(new) - reference.score_samples(new)
    # five standard errors of the mean over rows, and more than the bracket of log Z gives away
    assert gain.mean() > 5.0 * gain.std() / np.sqrt(len(new))
    assert gain.mean() > fitted.log_partition_.upper - fitted.log_partition_.value


def test_log_partition_lies_in_its_bracket(fitted):
    estimate = fitted.log_partition_
    assert estimate.lower <= estimate.value <= estimate.upper
    assert estimate.standard_error > 0.0
    assert 1.0 <= estimate.effective_sample_size <= 512.0 * (1.0 + 1e-9)


def test_standardisation_is_that_of_the_rows(fitted, moons):
    np.testing.assert_allclose(fitted.mean_, moons.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fitted.scale_, moons.std(axis=0), rtol=1e-12)


def test_no_epoch_keeps_the_reference(small, moons):
    model = small(max_iter=0).fit(moons)
    standardised = torch.from_numpy((moons - model.mean_) / model.scale_)
    log_reference = model.reference_.log_marginal(standardised).numpy() - np.log(model.scale_).sum()
    # the density of an untrained model is its reference, up to the rounding of float64
    np.testing.assert_allclose(model.score_samples(moons), log_reference, rtol=0, atol=1e-10)
    assert model.n_iter_ == 0
    assert model.lower_bounds_ == []
    assert model.log_partition_.value == 0.0


def test_scores_of_a_kept_reference_need_no_latents(moons, monkeypatch):
    model = ParticleLVEBM(1, reference="gaussian", max_iter=0, random_state=0).fit(moons)
    bounds = {bound: model.score_samples(moons, bound=bound) for bound in ("lower", "upper")}
    monkeypatch.setattr(fitted_model, "is_reference", lambda energy: False)
    for bound, scores in bounds.items():
        np.testing.assert_allclose(model.score_samples(moons, bound=bound), scores, rtol=1e-12)
    monkeypatch.undo()

    def integrate(*arguments, **options):
        raise AssertionError("latents of a reference were integrated")

    monkeypatch.setattr(fitted_model, "posterior_particles", integrate)
    monkeypatch.setattr(fitted_model, "evidence_from_above", integrate)
    for bound, scores in bounds.items():
        np.testing.assert_array_equal(model.score_samples(moons, bound=bound), scores)


def test_stopping_at_max_iter_warns(moons):
    # as the shared model, whose training is kept
    options = {"reference": "gaussian", "init": "reference", "random_state": 0}
    with pytest.warns(ConvergenceWarning, match="max_iter=30") as caught:
        model = ParticleLVEBM(1, max_iter=30, **options).fit(moons)
    assert model.improved_
    assert not model.converged_
    # the warning points at the caller's line
    assert [w.filename for w in caught if w.category is ConvergenceWarning] == [__file__]


def test_a_plateau_ends_training_without_a_warning(small, moons):
    model = small(max_iter=50, tol=1000.0, n_iter_no_change=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model.fit(moons)
    assert model.converged_
    # three plateaus of two epochs each, after the first epoch
    assert model.n_iter_ == 7
    np.testing.assert_allclose(
        [entry["learning_rate"] for entry in model.history_],
        [0.01, 0.01, 0.01, 0.003, 0.003, 0.0009, 0.0009],
    )


def test_no_epoch_gives_no_convergence_warning(small, moons):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(max_iter=0).fit(moons)


def test_held_out_rows_take_no_part_in_training(small, moons):
    model = small(early_stopping=True, validation_fraction=0.25, max_iter=1).fit(moons)
    assert len(model._training.state.latents) == 150
    model = small(early_stopping=False, max_iter=1).fit(moons)
    assert len(model._training.state.latents) == 200


def test_verbose_prints_prefixed_lines_every_so_many_epochs(small, moons, capsys):
    small(max_iter=4, verbose=2).fit(moons)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if "] epoch" in line] == [
        "[ParticleLVEBM] epoch 2",
        "[ParticleLVEBM] epoch 4",
    ]


def test_nothing_is_printed_by_default(small, moons, capfd):
    model = small().fit(moons)
    model.score(moons)
    model.sample(2)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# Seeds -------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(small, moons):
    """A function from a seed to a model whose mixture is drawn as well, and a few rows of it."""

    def make(random_state):
        return small(reference="mixture", random_state=random_state)

    return make, moons[::4]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(drawn):
    make, X = drawn
    models = [make(seed).fit(X) for seed in (3, 3, 4)]
    assert models[0].lower_bounds_ == models[1].lower_bounds_
    assert models[0].lower_bounds_ != models[2].lower_bounds_
    scores = [model.score_samples(X) for model in models]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-6


def test_a_random_state_instance_advances(drawn):
    make, X = drawn
    model = make(np.random.RandomState(0))
    first = model.fit(X).score_samples(X)
    second = model.fit(X).score_samples(X)
    assert not np.array_equal(first, second)
    again = make(np.random.RandomState(0)).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), first)


def test_no_seed_gives_another_model_at_each_fit(drawn):
    make, X = drawn
    first, second = (make(None).fit(X).score_samples(X) for _ in range(2))
    assert not np.array_equal(first, second)


# Answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("score_samples", ([[0.0, 0.0]],)),
        ("score", ([[0.0, 0.0]],)),
        ("transform", ([[0.0, 0.0]],)),
        ("inverse_transform", ([[0.0]],)),
        ("sample", ()),
        ("sample_posterior", ([[0.0, 0.0]],)),
        ("get_feature_names_out", ()),
    ],
)
def test_asking_before_fit_raises(method, arguments):
    with pytest.raises(NotFittedError):
        getattr(ParticleLVEBM(), method)(*arguments)


def test_score_is_the_mean_of_score_samples_as_a_float(fitted, moons):
    score = fitted.score(moons, y=[0] * 200)
    assert type(score) is float
    assert score == pytest.approx(fitted.score_samples(moons).mean(), rel=1e-12)


def test_density_integrates_to_one(fitted):
    grid = np.linspace(-4.0, 5.0, 46)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    integral = np.exp(fitted.score_samples(points)).sum() * 0.2**2
    # four standard errors of log Z, and the bound may be loose by a few hundredths of a nat
    slack = 4.0 * fitted.log_partition_.standard_error
    assert np.exp(-0.1 - slack) < integral < np.exp(slack)


def test_results_have_the_documented_shapes(small, moons):
    model = small(n_components=3).fit(moons)
    assert model.score_samples(moons).shape == (200,)
    assert model.transform(moons).shape == (200, 3)
    assert model.inverse_transform(np.zeros((7, 3))).shape == (7, 2)
    assert model.sample().shape == (1, 2)
    assert model.sample_posterior(moons).shape == (200, 1, 3)
    assert model.sample_posterior(moons[:4], n_draws=100).shape == (4, 100, 3)
    assert model.get_feature_names_out().tolist() == [f"particlelvebm{i}" for i in range(3)]


@pytest.mark.parametrize("method", METHODS_OF_ROWS)
def test_answers_are_deterministic(fitted, moons, method):
    rows = rows_for(method, moons)
    np.testing.assert_array_equal(getattr(fitted, method)(rows), getattr(fitted, method)(rows))


def test_transform_after_fit_is_fit_transform(small, moons):
    np.testing.assert_array_equal(small().fit(moons).transform(moons), small().fit_transform(moons))


@pytest.mark.parametrize("method", METHODS_OF_ROWS)
def test_rows_are_answered_independently_of_their_batch(fitted, moons, method, monkeypatch):
    is_annealed = method == "inverse_transform"
    # far rows need annealing and near ones do not
    rows = np.concatenate([moons[:60] if is_annealed else moons, 5.0 * moons[:10]])
    rows = rows[:, :1] if is_annealed else rows
    answer = getattr(fitted, method)
    together = answer(rows)
    order = np.random.RandomState(0).permutation(len(rows))
    step = len(rows) // 20
    one_by_one = np.concatenate([answer(rows[i : i + 1]) for i in range(0, len(rows), step)])
    compare = few_differ if is_annealed else all_agree
    compare(one_by_one, together[::step])
    compare(answer(rows[order]), together[order])
    monkeypatch.setattr(runtime, "_CHUNK_PARTICLES", 64 * 7)
    compare(answer(rows), together)


def all_agree(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-7, atol=1e-7)


def few_differ(actual, desired):
    """Compare rows that were annealed at length, which amplifies rounding.

    On some processors the sums of one row depend on how many rows there are. Latents changed by one
    part in 1e15 change single rows by 1e-6 and, where a particle is accepted or not, by up to 0.02.
    Noise that depended on the batch would change all rows by their Monte Carlo error.
    """
    difference = np.abs(actual - desired).max(1)
    assert np.median(difference) < 1e-7
    # 6e-6 is the most of the other rows on such a processor; the noise of particles is 0.1
    assert np.quantile(difference, 0.9) < 1e-4
    assert difference.max() < 0.5  # five standard errors of 64 particles with the rows' spread


def test_latents_tell_the_position_along_the_features(fitted, moons):
    rows = moons[::5]
    back = fitted.inverse_transform(fitted.transform(rows))
    # one latent of two features explains part of them
    assert np.square(rows - back).sum() < np.square(rows - moons.mean(axis=0)).sum()


@pytest.mark.parametrize("width", [2, 3])
def test_inverse_transform_of_another_width_raises(fitted, width):
    with pytest.raises(ValueError, match=f"1 columns .n_components., got {width}"):
        fitted.inverse_transform(np.zeros((4, width)))


def test_posterior_draws_average_to_the_posterior_mean(fitted, moons):
    draws = fitted.sample_posterior(moons[:5], n_draws=2000, random_state=0)
    mean, error = draws.mean(axis=1), draws.std(axis=1) / np.sqrt(2000)
    # resampling copies particles, which about doubles the error; 64 nodes carry one of their own
    difference = np.abs(mean - fitted.transform(moons[:5]))
    assert (difference < 5.0 * (2.0 * error + draws.std(axis=1) / 64)).all()


def test_posterior_draws_repeat_with_a_seed_only(fitted, moons):
    draw = fitted.sample_posterior
    np.testing.assert_array_equal(draw(moons, random_state=1), draw(moons, random_state=1))
    assert not np.array_equal(draw(moons, random_state=1), draw(moons, random_state=2))
    assert not np.array_equal(draw(moons), draw(moons))


def test_draws_repeat_with_a_seed_only(fitted):
    np.testing.assert_array_equal(
        fitted.sample(5, random_state=1), fitted.sample(5, random_state=1)
    )
    assert not np.array_equal(fitted.sample(5, random_state=1), fitted.sample(5, random_state=2))
    assert not np.array_equal(fitted.sample(5), fitted.sample(5))
    random_state = np.random.RandomState(0)
    first = fitted.sample(5, random_state=random_state)
    assert not np.array_equal(first, fitted.sample(5, random_state=random_state))


def test_draws_with_latents_are_the_same_draws(fitted):
    X = fitted.sample(5, random_state=0)
    X_again, Z = fitted.sample(5, random_state=0, return_latents=True)
    np.testing.assert_array_equal(X, X_again)
    assert Z.shape == (5, 1)


def test_draws_have_the_moments_of_the_rows(fitted, moons):
    X = fitted.sample(5000, random_state=0)
    assert X.shape == (5000, 2)
    # the model is fitted to 200 rows: four of their standard errors
    error = moons.std(axis=0) / np.sqrt(200)
    assert (np.abs(X.mean(axis=0) - moons.mean(axis=0)) < 4.0 * error).all()


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_an_impossible_number_of_draws_raises(fitted, moons, number):
    with pytest.raises((TypeError, ValueError), match=f"n_samples must be .*{number!r}"):
        fitted.sample(number)
    with pytest.raises((TypeError, ValueError), match=f"n_draws must be .*{number!r}"):
        fitted.sample_posterior(moons, n_draws=number)


# Continued fits ----------------------------------------------------------------------------------


def test_fit_starts_anew_and_forgets_the_former_state(small, moons):
    model = small(max_iter=4).fit(pd.DataFrame(moons, columns=["a", "b"]))
    model.set_params(max_iter=2).fit(moons)
    assert not hasattr(model, "feature_names_in_")
    assert model.n_iter_ == len(model.lower_bounds_) == 2
    fresh = small(max_iter=2).fit(moons)
    np.testing.assert_array_equal(model.score_samples(moons), fresh.score_samples(moons))


def test_fit_works_again_on_another_width(small, moons):
    model = small().fit(moons)
    model.fit(np.column_stack([moons, moons[:, 0] ** 2]))
    assert model.n_features_in_ == 3
    assert model.sample(2).shape == (2, 3)


def test_warm_start_continues_training(small, moons):
    model = small(warm_start=True, max_iter=3).fit(moons)
    first, reference = list(model.lower_bounds_), model.reference_.state_dict()
    model.fit(moons)
    assert model.n_iter_ == 6
    assert model.lower_bounds_[:3] == first
    assert [entry["epoch"] for entry in model.history_] == list(range(1, 7))
    for name, value in model.reference_.state_dict().items():
        torch.testing.assert_close(value, reference[name], rtol=0, atol=0)


def test_warm_start_of_a_fitted_model_keeps_the_units_for_other_rows(small, moons):
    model = small(warm_start=True).fit(moons)
    mean = model.mean_
    model.fit(moons[:150] + 1.0)
    np.testing.assert_array_equal(model.mean_, mean)
    assert np.isfinite(model.score(moons))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_chains", 17),
        ("n_temperatures", 4),
        ("n_components", 2),
        ("hidden_layer_sizes", (9,)),
        ("activation", "silu"),
        ("dtype", "float64"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_continued_fit_refuses_another_shape_of_model(small, moons, name, value, method):
    model = small(warm_start=True, max_iter=1).fit(moons)
    with pytest.raises(ValueError, match=name):
        getattr(model.set_params(**{name: value}), method)(moons)


def test_partial_fit_starts_a_model_and_then_continues_it(small, moons):
    model = small(max_iter=100)
    assert model.partial_fit(moons[:100]) is model
    mean = model.mean_
    assert model.n_iter_ == 1
    scores = model.score_samples(moons)
    model.partial_fit(moons[100:])
    assert model.n_iter_ == len(model.lower_bounds_) == 2
    np.testing.assert_array_equal(model.mean_, mean)
    assert not np.array_equal(model.score_samples(moons), scores)


def test_partial_fit_accepts_a_single_row_once_started(small, moons):
    model = small().partial_fit(moons)
    assert model.partial_fit(moons[:1]).n_iter_ == 2


def test_partial_fit_checks_the_width_after_the_first_call(small, moons):
    model = small().partial_fit(moons)
    with pytest.raises(ValueError, match="expecting 2 features"):
        model.partial_fit(moons[:, :1])
    assert model.n_iter_ == 1


def test_partial_fit_continues_a_fit(small, moons):
    model = small(max_iter=2).fit(moons).partial_fit(moons)
    assert model.n_iter_ == 3


@pytest.mark.parametrize("random_state", [0, None])
def test_a_continued_fit_holds_out_the_same_rows(small, moons, random_state, monkeypatch):
    splits = []

    def recorded(*arguments):
        splits.append(split_rows(*arguments))
        return splits[-1]

    monkeypatch.setattr(prepared, "split_rows", recorded)
    model = small(early_stopping=True, warm_start=True, random_state=random_state, max_iter=1)
    model.fit(moons).fit(moons)
    # rows that chose the parameters must not train them later, and particles belong to their rows
    np.testing.assert_array_equal(splits[1].monitor, splits[0].monitor)
    np.testing.assert_array_equal(splits[1].fitted, splits[0].fitted)


def test_an_energy_cannot_be_given_to_a_fit_that_goes_on_without(small, moons):
    model = small(warm_start=True).fit(moons)
    before = model.score(moons)
    with pytest.raises(ValueError, match="energy must stay None"):
        model.set_params(energy=LinearGaussianEnergy(2, 1)).fit(moons)
    assert model.score(moons) == before
