"""Which rows and parameters `ParticleLVEBM` accepts, and what it says about the others."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from sklearn.mixture import BayesianGaussianMixture
from torch import nn

from sklvebm import LinearGaussianEnergy, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

METHODS_OF_ROWS = ["score_samples", "score", "transform", "sample_posterior"]
FEW = 4


def answers(model, X):
    """Return everything that depends on rows X, and the draws of the model."""
    Z = model.transform(X)
    return {
        "score_samples": model.score_samples(X),
        "transform": Z,
        # of two hundred latents it takes seconds
        "inverse_transform": model.inverse_transform(Z[:FEW]),
        "sample_posterior": model.sample_posterior(X, n_draws=2, random_state=0),
        "sample": model.sample(3, random_state=0),
    }


# Kinds of arrays ---------------------------------------------------------------------------------


def memory_mapped(X, folder):
    path = folder / "rows.dat"
    np.memmap(path, dtype=X.dtype, mode="w+", shape=X.shape)[:] = X
    return np.memmap(path, dtype=X.dtype, mode="r", shape=X.shape)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


CONTAINERS = {
    "list": lambda X, folder: X.tolist(),
    "Fortran order": lambda X, folder: np.asfortranarray(X),
    "strided": lambda X, folder: np.repeat(X, 2, axis=0)[::2],
    "read-only": lambda X, folder: read_only(X),
    "memmap": memory_mapped,
    "pandas": lambda X, folder: pd.DataFrame(X, columns=["a", "b"]),
    "polars": lambda X, folder: pl.DataFrame(X, schema=["a", "b"]),
    "tensor": lambda X, folder: torch.tensor(X),
    "tensor with gradient": lambda X, folder: torch.tensor(X, requires_grad=True),
    "object": lambda X, folder: X.astype(object),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_kind_of_array_gives_the_numbers_of_numpy(small, moons, kind, tmp_path):
    X = CONTAINERS[kind](moons, tmp_path)
    expected, results = answers(small().fit(moons), moons), answers(small().fit(X), X)
    for name in expected:
        np.testing.assert_array_equal(results[name], expected[name], err_msg=name)


@pytest.mark.parametrize("order", ["C", "F"])
def test_input_is_never_modified(small, moons, order):
    X = np.array(moons, order=order)
    model = small().fit(X)
    answers(model, X)
    model.partial_fit(X)
    np.testing.assert_array_equal(X, moons)


def test_a_tensor_keeps_its_gradient_flag_and_values(small, moons):
    X = torch.tensor(moons, requires_grad=True)
    small().fit(X).score_samples(X)
    assert X.requires_grad
    assert X.grad is None
    np.testing.assert_array_equal(X.detach().numpy(), moons)


def test_inverse_transform_accepts_tensors_and_frames(fitted, moons):
    Z = fitted.transform(moons[:FEW])
    expected = fitted.inverse_transform(Z)
    for kind in (torch.tensor(Z, requires_grad=True), pd.DataFrame(Z), Z.tolist()):
        np.testing.assert_array_equal(fitted.inverse_transform(kind), expected)


def test_read_only_latents_cause_no_warning(fitted, moons, recwarn):
    before = torch.is_warn_always_enabled()
    # else torch warns of arrays that cannot be written once in a process only
    torch.set_warn_always(True)
    try:
        fitted.inverse_transform(moons[:FEW, :1])
        fitted.inverse_transform(read_only(moons[:FEW, :1].copy()))
        fitted.transform(moons)
        fitted.score_samples(moons)
        fitted.sample_posterior(moons)
    finally:
        torch.set_warn_always(before)
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fit_dtype", [np.float32, np.float64])
def test_answers_have_the_precision_of_their_rows(small, moons, fit_dtype, dtype):
    model = small().fit(moons.astype(fit_dtype))
    results = answers(model, moons.astype(dtype))
    # draws have no rows to follow
    assert results.pop("sample").dtype == np.float64
    assert {name: result.dtype for name, result in results.items()} == dict.fromkeys(results, dtype)
    assert type(model.score(moons.astype(dtype))) is float


def test_single_precision_rows_give_nearly_the_same_answers(fitted, moons):
    # float32 rounds rows of size 2 by 1e-7; log densities of slope up to 1e2 by 1e-5
    single = moons.astype(np.float32)
    np.testing.assert_allclose(
        fitted.score_samples(single), fitted.score_samples(moons), rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(fitted.transform(single), fitted.transform(moons), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.float16])
def test_other_real_numbers_are_converted(small, dtype):
    X = np.random.RandomState(0).randint(0, 30, size=(60, 3)).astype(dtype)
    expected, results = (answers(small().fit(rows), rows) for rows in (X.astype(float), X))
    for name in ("score_samples", "transform"):
        # scikit-learn keeps half precision apart: it becomes the widest that is asked for
        np.testing.assert_array_equal(results[name], expected[name], err_msg=name)
        assert results[name].dtype == np.float64


def test_half_precision_tensors_are_accepted(small, moons):
    X = torch.tensor(moons).bfloat16()
    expected = small().fit(X.float().numpy()).score_samples(X.float().numpy())
    np.testing.assert_array_equal(small().fit(X).score_samples(X), expected)


# Bad rows ----------------------------------------------------------------------------------------


def with_entry(X, value):
    X = X.copy()
    X[3, 1] = value
    return X


BAD_ROWS = {
    "inf": (lambda X: with_entry(X, np.inf), ValueError, "infinity"),
    "empty": (lambda X: X[:0], ValueError, "0 sample"),
    "no column": (lambda X: X[:, :0], ValueError, "0 feature"),
    "1-D": (lambda X: X[:, 0], ValueError, "2D array"),
    "3-D": (lambda X: X[None], ValueError, "dim 3"),
    "strings": (lambda X: [["a", "b"], ["c", "d"]], ValueError, "could not convert|Unable"),
    "sparse": (lambda X: scipy.sparse.csr_matrix(X), TypeError, "[Ss]parse"),
    "complex": (lambda X: X + 1j, ValueError, "[Cc]omplex"),
    "scalar": (lambda X: 3.0, ValueError, "scalar"),
    "None": (lambda X: None, ValueError, "None|scalar"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_raise_in_fit_and_leave_no_attribute(small, moons, kind):
    make, error, message = BAD_ROWS[kind]
    for method in ("fit", "partial_fit", "fit_transform"):
        model = small()
        with pytest.raises(error, match=message):
            getattr(model, method)(make(moons))
        assert set(vars(model)) == set(model.get_params())


@pytest.mark.parametrize("method", METHODS_OF_ROWS)
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_raise_after_fit(fitted, moons, kind, method):
    make, error, message = BAD_ROWS[kind]
    before = set(vars(fitted))
    # scikit-learn may notice the width first
    with pytest.raises(error, match=f"{message}|features"):
        getattr(fitted, method)(make(moons))
    assert set(vars(fitted)) == before


@pytest.mark.parametrize("kind", [kind for kind in BAD_ROWS if kind != "no column"])
def test_bad_latents_raise(fitted, moons, kind):
    make, error, message = BAD_ROWS[kind]
    with pytest.raises(error, match=f"{message}|columns"):
        fitted.inverse_transform(make(moons))


@pytest.mark.parametrize("method", METHODS_OF_ROWS)
def test_rows_of_another_width_raise(fitted, moons, method):
    with pytest.raises(ValueError, match="expecting 2 features"):
        getattr(fitted, method)(moons[:, :1])


def test_one_row_cannot_be_fitted_but_answered(small, fitted, moons):
    model = small()
    with pytest.raises(ValueError, match="minimum of 2"):
        model.fit(moons[:1])
    assert not hasattr(model, "n_features_in_")
    assert fitted.score_samples(moons[:1]).shape == (1,)


def test_a_failing_refit_keeps_the_former_model_and_its_width(small, moons):
    model = small().fit(moons)
    scores = model.score_samples(moons)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((10, 3), np.nan))
    with pytest.raises(ValueError, match="n_chains"):
        model.set_params(n_chains=0).fit(np.ones((10, 3)))
    assert model.n_features_in_ == 2
    np.testing.assert_array_equal(model.score_samples(moons), scores)


# Bad parameters ----------------------------------------------------------------------------------

NOT_A_NUMBER = float("nan")
BAD_VALUES = {
    "n_components": [0, -1, 1.5, "2", None, True],
    "hidden_layer_sizes": [(), (0,), (8, -1), (8, 1.5), 8, "8", None],
    "image_shape": [(), (4,), (4, 0), (4, 4.5), (3, 9), 16, "8x8"],
    "embedding": ["linear", None, 1],
    "n_networks": [0, -1, 1.5, "four", None, True],
    "init": ["random", None, 1],
    "activation": ["relu", "", 3, None],
    "energy": ["mlp", 3, (8, 8)],
    "reference": ["uniform", 3, None],
    "margins": ["bins", 3, None],
    "effort": ["slow", 3, None],
    "dynamics": ["hmc", 3, None],
    "posterior": ["exact", 3, None],
    "negatives": ["fresh", 3, None],
    "step_size": [0.0, -1.0, NOT_A_NUMBER, float("inf"), "1", True],
    "n_particles": [0, 1.5, None],
    "n_chains": [1, 0, 2.5, None],
    "n_temperatures": [0, 1.5, None],
    "n_langevin_steps": [0, 1.5, None],
    "latent_map": ["pca", 3, None],
    "learning_rate_init": [0.0, -1.0, float("inf"), None],
    "alpha": [-0.1, NOT_A_NUMBER, None, np.array([0.1, 0.2])],
    "batch_size": [0, -1, 1.5, "all", None],
    "max_iter": [-1, 1.5, "10", None],
    "tol": [-1.0, NOT_A_NUMBER, "none"],
    "early_stopping": ["yes", 1, None],
    "validation_fraction": [0.0, 1.0, 1.5, -0.1, "0.1", None],
    "n_iter_no_change": [0, 1.5, None],
    "warm_start": ["yes", 1, None],
    "device": ["tpu", "gpu:x", "meta", 3.5, None],
    "dtype": ["float16", "double", np.float32, torch.float32, None],
    "memory": [3, 0.5, True],
    "verbose": [-1, 0.5, "yes", None],
    "random_state": ["seed", -1, 1.5],
}


def test_bad_values_are_listed_for_every_parameter():
    assert set(BAD_VALUES) == set(ParticleLVEBM().get_params())


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD_VALUES.items() for value in values],
)
def test_bad_parameters_raise_in_fit_with_their_name_and_value(small, moons, name, value, method):
    model = small().set_params(**{name: value})
    with pytest.raises((TypeError, ValueError), match=re.escape(repr(value))) as caught:
        getattr(model, method)(moons)
    assert name in str(caught.value)
    assert set(vars(model)) == set(model.get_params())


def test_the_message_about_a_reference_names_the_objects_that_are_allowed(small, moons):
    allowed = "'gaussian', a GaussianMixture, a MixtureStack or a MixtureReference"
    with pytest.raises(TypeError, match=allowed):
        small(reference=BayesianGaussianMixture()).fit(moons)


def test_contrastive_negatives_need_a_single_temperature(small, moons):
    with pytest.raises(ValueError, match="n_temperatures must be 1 or 'auto'.*got 3"):
        small(negatives="contrastive", n_temperatures=3).fit(moons)
    model = small(negatives="contrastive", n_temperatures="auto").fit(moons)
    assert {epoch["swap_rate"] for epoch in model.history_} == {1.0}
    assert np.isfinite(model.score(moons))


@pytest.mark.parametrize("value", ["relu", 3])
def test_the_message_lists_what_is_allowed(small, moons, value):
    with pytest.raises((TypeError, ValueError), match="'silu', 'softplus', 'tanh'"):
        small(activation=value).fit(moons)


def test_cuda_where_there_is_none_raises_at_fit_and_at_answers(small, moons, monkeypatch):
    # also where there is one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda' is not available"):
        small(device="cuda").fit(moons)
    model = small(max_iter=0).fit(moons).set_params(device="cuda:0")
    with pytest.raises(ValueError, match="device='cuda:0' is not available"):
        model.score_samples(moons)
    model.set_params(device="auto")
    assert np.isfinite(model.score(moons))


def test_numpy_scalars_are_accepted_as_parameters(small, moons):
    given = small(
        n_components=np.int64(1),
        hidden_layer_sizes=np.array([8]),
        alpha=np.float32(1e-4),
        early_stopping=np.bool_(False),
        dtype=np.str_("float32"),
    )
    assert np.isfinite(given.fit(moons).score(moons))


def test_a_user_energy_of_the_wrong_shape_is_named(small, moons):
    class Column(nn.Module):
        def forward(self, x, z):
            return x.square().sum(1, keepdim=True)

    with pytest.raises(ValueError, match=r"energy must map .*\(3, 1\)"):
        small(energy=Column()).fit(moons)


def test_a_user_energy_without_anything_to_train_is_named(small, moons):
    class Fixed(nn.Module):
        def forward(self, x, z):
            return 0.5 * (x.square().sum(1) + z.square().sum(1))

    for energy in (Fixed(), LinearGaussianEnergy(2, 1).requires_grad_(False)):
        with pytest.raises(ValueError, match="energy must have parameters"):
            small(energy=energy).fit(moons)


# Rows far out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [ParticleLVEBM, WassersteinFlowEBM, PotentialFlowEBM])
def test_rows_whose_squares_overflow_have_no_density_and_leave_others_alone(estimator, moons):
    model = estimator(max_iter=0, reference="gaussian", random_state=0).fit(moons)
    out = [[1e8, 1e8], [1e160, 1.0], [1e300, -1e300], [1e307, 1e307]]
    scores = model.score_samples(np.vstack([moons[:1], out, moons[1:2]]))
    assert np.isfinite(scores[1])
    np.testing.assert_array_equal(scores[2:5], -np.inf)
    np.testing.assert_allclose(scores[[0, 5]], model.score_samples(moons[:2]), rtol=1e-12)


# Degenerate rows ---------------------------------------------------------------------------------


@pytest.fixture
def assert_usable(small):
    """A function that fits models of both precisions to X and asserts finite answers.

    A mixture is chosen for one of them, and the other has a Gaussian. Without early stopping, the
    first is in single precision; with it, in double: every two of the options come together.
    """

    def check(X, **parameters):
        dtypes = ["float32", "float64"][:: -1 if parameters.get("early_stopping") else 1]
        for dtype, reference in zip(dtypes, ("mixture", "gaussian"), strict=True):
            model = small(**{"reference": reference, "dtype": dtype, **parameters}).fit(X)
            assert np.isfinite(model.score_samples(X)).all()
            assert np.isfinite(model.transform(X)).all()
            draws, Z = model.sample(50, random_state=0, return_latents=True)
            assert np.isfinite(draws).all()
            assert np.isfinite(model.inverse_transform(Z[:FEW])).all()
            assert np.isfinite(model.sample_posterior(X, random_state=0)).all()

    return check


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -1e-9])
def test_constant_columns_of_many_rows_are_recognised(small, value):
    # the rounding error of a mean grows with the number of rows
    X = np.column_stack([np.random.RandomState(0).normal(size=20_000), np.full(20_000, value)])
    with pytest.warns(UserWarning, match=r"Columns \[1\] of X are constant"):
        model = small(max_iter=0, reference="gaussian").fit(X)
    assert model.scale_[1] == 1.0


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -1e-9])
def test_constant_columns_warn_and_give_finite_scores(assert_usable, moons, value):
    X = np.column_stack([moons, np.full(200, value)])
    with pytest.warns(UserWarning, match=r"Columns \[2\] of X are constant"):
        assert_usable(X)


def test_rows_that_are_all_equal_warn_and_give_finite_scores(assert_usable):
    with pytest.warns(UserWarning, match=r"Columns \[0, 1\] of X are constant"):
        assert_usable(np.full((20, 2), 3.7))


def few_differ(X):
    equal = np.full((200, 2), 3.7)
    equal[:4] = X[:4]
    return equal


DEGENERATE = {
    "duplicated columns": lambda X: np.column_stack([X, X, X[:, 0]]),
    "rows equal apart from a few": few_differ,
    "duplicated rows": lambda X: np.repeat(X[:5], 40, axis=0),
    "fewer rows than a batch": lambda X: X[:10],
    "three rows": lambda X: X[:3],
    "two rows": lambda X: X[:2],
    "fewer rows than columns": lambda X: np.random.RandomState(0).normal(size=(5, 30)),
    "one column": lambda X: X[:, :1],
    "scales far apart": lambda X: X * [1e-9, 1e9],
    "small scales": lambda X: X * 1e-9,
    "far from zero": lambda X: X + [1e6, -1e6],
    "an outlier": lambda X: np.concatenate([X, [[1e4, -1e4]]]),
    "binary columns": lambda X: (X > 0.0).astype(float),
}


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_rows_give_finite_answers(assert_usable, moons, kind, early_stopping):
    assert_usable(DEGENERATE[kind](moons), early_stopping=early_stopping)


@pytest.mark.parametrize("reference", ["gaussian", "mixture"])
def test_more_latents_than_features_give_finite_answers(assert_usable, moons, reference):
    assert_usable(moons, n_components=5, reference=reference)


def test_scales_far_apart_shift_the_score_by_their_logarithms(small, moons):
    scales = np.array([1e-9, 1e9])
    plain, scaled = small().fit(moons), small().fit(moons * scales)
    difference = plain.score_samples(moons) - scaled.score_samples(moons * scales)
    # standardised rows differ by rounding, which three epochs in float32 can amplify
    np.testing.assert_allclose(difference, np.log(scales).sum(), rtol=0, atol=1e-3)
