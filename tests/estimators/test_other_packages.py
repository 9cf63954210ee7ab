"""Distributions of torch and zuko as factors, and draws for ArviZ, against closed forms."""

import copy

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
)

from sklvebm import (
    MixtureStack,
    ParticleLVEBM,
    PotentialFlowEBM,
    WassersteinFlowEBM,
    compose,
    to_inference_data,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ONE = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)
X = np.random.RandomState(0).normal(size=(60, 2))
LEFT = MultivariateNormal(ZERO - 1.0, 0.5 * ONE)
RIGHT = Independent(Normal(ZERO + 1.0, torch.full((2,), 0.5, dtype=torch.float64)), 1)
MIXTURE = MixtureSameFamily(
    Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)),
    Independent(Normal(torch.stack([ZERO - 2.0, ZERO + 2.0]), torch.ones_like(ONE)), 1),
)
STUDENT = Independent(StudentT(torch.full((2,), 5.0, dtype=torch.float64)), 1)


def log_prob(distribution):
    return distribution.log_prob(torch.from_numpy(X)).detach().numpy()


@pytest.fixture(scope="module")
def flow():
    zuko = pytest.importorskip("zuko")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return zuko.flows.NSF(2, transforms=1, hidden_features=(8,)).double()


@pytest.mark.parametrize("distribution", [LEFT, RIGHT, MIXTURE, STUDENT], ids=repr)
def test_the_energy_is_the_exact_negative_log_density(distribution):
    np.testing.assert_allclose(
        compose([(distribution, 1.0)]).energy(X), -log_prob(distribution), atol=1e-12
    )


def test_the_energy_of_a_flow_is_its_exact_negative_log_density(flow):
    np.testing.assert_allclose(compose([(flow(), 1.0)]).energy(X), -log_prob(flow()), atol=1e-12)


def test_a_product_of_gaussians_has_the_closed_form():
    product = compose([(LEFT, 1.0), (RIGHT, 1.0)])
    estimate = product.log_partition(random_state=0)
    # the integral of N(x; a, s) N(x; b, t) is N(a - b; 0, s + t)
    exact = float(MultivariateNormal(ZERO, 0.75 * ONE).log_prob(ZERO + 2.0))
    assert estimate.value == pytest.approx(exact, abs=1e-6)
    drawn = product.sample(4000, random_state=0)
    # precisions 2 and 4 about -1 and 1
    np.testing.assert_allclose(drawn.mean(0), 1.0 / 3.0, atol=5.0 * (1 / 6 / 4000) ** 0.5)
    np.testing.assert_allclose(drawn.var(0), 1.0 / 6.0, rtol=5.0 * (2.0 / 4000) ** 0.5)


def test_gaussian_factors_take_any_weight_for_which_the_product_is_integrable():
    quotient = compose([(RIGHT, 1.0), (MultivariateNormal(ZERO, 4.0 * ONE), -1.0)])
    drawn = quotient.sample(4000, random_state=0)
    # precision 4 - 0.25 about 4 / 3.75
    np.testing.assert_allclose(drawn.mean(0), 4.0 / 3.75, atol=5.0 * (1 / 3.75 / 4000) ** 0.5)
    with pytest.raises(ValueError, match="integrable|decay"):
        compose([(MultivariateNormal(ZERO, 4.0 * ONE), 1.0), (RIGHT, -1.0)])


@pytest.mark.parametrize("weight", [0.5, -1.0])
def test_other_factors_need_a_weight_of_one(weight):
    with pytest.raises(ValueError, match="its weight must be at least 1"):
        compose([(LEFT, 5.0), (STUDENT, weight)])


@pytest.mark.parametrize("kind", ["student", "flow"])
def test_other_factors_are_normalised_and_drawn(kind, flow):
    distribution = STUDENT if kind == "student" else flow()
    composed = compose([(distribution, 1.0)])
    estimate = composed.log_partition(random_state=0)
    assert abs(estimate.value) < 5.0 * max(estimate.standard_error, 0.002)
    drawn = composed.sample(2000, random_state=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        exact = distribution.sample((20000,)).numpy()
    error = 6.0 * exact.std(0) * (1 / 2000 + 1 / 20000) ** 0.5
    assert (np.abs(drawn.mean(0) - exact.mean(0)) < error).all()


def test_a_fitted_density_and_a_distribution_multiply():
    stack = MixtureStack(max_components=1, margins="none", random_state=0).fit(X)
    product = compose([(stack, 1.0), (LEFT, 1.0)])
    np.testing.assert_allclose(
        product.energy(X), -stack.score_samples(X) - log_prob(LEFT), atol=1e-10
    )


def test_compositions_are_copied_and_leave_the_global_generator_alone(flow):
    state = torch.get_rng_state()
    composed = compose([(flow(), 1.0)])
    twin = copy.deepcopy(compose([(composed, 1.0)]))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(twin.energy(X), composed.energy(X))


class NoDensity(torch.distributions.Distribution):
    arg_constraints = {}

    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, shape):
        return torch.randn((*shape, 2), dtype=torch.float64)


class WithoutSize(NoDensity):
    def log_prob(self, value):
        return value.sum() * 0.0


class NoDraws(NoDensity):
    def sample(self, shape):
        raise NotImplementedError


class Improper(NoDensity):
    def log_prob(self, value):
        return value.sum(1) * torch.nan


class FarDraws(NoDensity):
    def sample(self, shape):
        return torch.full((*shape, 2), torch.inf, dtype=torch.float64)


@pytest.mark.parametrize(
    ("distribution", "error", "message"),
    [
        (Normal(ZERO, 1.0), ValueError, r"event_shape .*got \(\) and \(2,\).*Independent"),
        (torch.nn.Linear(2, 2), TypeError, r"got Linear\. A lazy flow of zuko is called"),
        (Independent(StudentT(torch.ones(2) * 5.0), 1), ValueError, r"float64.*flow\.double\(\)"),
        (Independent(Uniform(ZERO, ZERO + 1.0), 1), ValueError, "positive .*everywhere"),
        (
            Independent(Uniform(ZERO, ZERO + 1.0, validate_args=False), 1, validate_args=False),
            ValueError,
            "positive and finite everywhere.*is -inf",
        ),
        (NoDensity(), ValueError, "must have `log_prob`, which NoDensity has not"),
        (NoDraws(), ValueError, "must have `sample`, which NoDraws has not"),
        (WithoutSize(), ValueError, r"must have shape \(128,\), got \(\)"),
        (Improper(), ValueError, "is nan"),
        (FarDraws(), ValueError, "draws of distribution must be finite"),
        (
            MultivariateNormal(ZERO * torch.nan, ONE, validate_args=False),
            ValueError,
            "parameters of distribution must be finite",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_cannot_be_composed_is_refused_with_a_reason(distribution, error, message):
    with pytest.raises(error, match=message):
        compose([(distribution, 1.0)])


# ArviZ -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arviz():
    return pytest.importorskip("arviz")


SHORT = {"max_iter": 1, "tol": None, "random_state": 0}


@pytest.fixture(scope="module")
def latent():
    return ParticleLVEBM(n_components=1, n_chains=32, reference="gaussian", **SHORT).fit(X)


def test_pool_and_posterior_draws_have_their_groups_and_names(latent, arviz):
    data = to_inference_data(latent, X[:3], n_draws=7, random_state=0)
    assert set(data.groups()) == {"prior", "prior_predictive", "posterior", "observed_data"}
    assert data.prior_predictive["x"].shape == (1, 32, 2)
    assert data.prior["z"].shape == (1, 32, 1)
    drawn = latent.sample_posterior(X[:3], 7, random_state=0)
    np.testing.assert_array_equal(data.posterior["z"].values[0], drawn.swapaxes(0, 1))
    np.testing.assert_array_equal(data.observed_data["x"].values, X[:3])
    assert list(data.posterior["latent"].values) == ["particlelvebm0"]
    assert len(arviz.summary(data, var_names=["z"], kind="stats")) == 3


def test_the_pool_is_in_the_units_of_the_rows(arviz):
    rows = 100.0 + 10.0 * X
    model = WassersteinFlowEBM(n_chains=256, reference="gaussian", max_iter=0, random_state=0)
    data = to_inference_data(model.fit(rows))
    assert data.groups() == ["prior_predictive"]
    pool = data.prior_predictive["x"].values[0]
    # before any update, the pool is drawn from the reference: a Gaussian of the rows
    fitted = model._training.reference
    mean = model.mean_ + model.scale_ * fitted.location.numpy()
    assert (np.abs(pool.mean(0) - mean) < 6.0 * rows.std(0) / 16.0).all()
    np.testing.assert_allclose(pool.std(0), rows.std(0), rtol=0.4)


def test_what_has_no_pool_or_no_latents_is_named(latent, arviz):
    with pytest.raises(TypeError, match="pool of particles, got a PotentialFlowEBM"):
        to_inference_data(PotentialFlowEBM())
    with pytest.raises(NotFittedError):
        to_inference_data(ParticleLVEBM())
    model = WassersteinFlowEBM(n_chains=32, reference="gaussian", max_iter=0, random_state=0)
    with pytest.raises(TypeError, match="a WassersteinFlowEBM, which has no latents"):
        to_inference_data(model.fit(X), X)


def test_without_arviz_the_extra_is_named(latent, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install \"sklvebm\[arviz\]\""):
        to_inference_data(latent)
