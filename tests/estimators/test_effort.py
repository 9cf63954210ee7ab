"""`effort`: fewer or more candidates, epochs and chains, and a proof before particles are moved."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine

from sklvebm import MixtureStack, ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM
from sklvebm.confidence import lower_confidence_limit
from sklvebm.estimators._common.config import scaled
from sklvebm.mixtures import search
from sklvebm.mixtures.policy import DEFAULT_POLICY, EFFORTS, policy_of
from sklvebm.objectives.density_ratio import RatioStart

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = load_wine().data[::2]


def number_of_fits(monkeypatch, estimator):
    """Return how many mixtures the search for an estimator's reference fits."""
    count, own = [], search.fit_mixtures
    monkeypatch.setattr(
        search, "fit_mixtures", lambda starts, *how: count.append(len(starts)) or own(starts, *how)
    )
    estimator.fit(X)
    monkeypatch.setattr(search, "fit_mixtures", own)
    return sum(count)


@pytest.mark.parametrize(
    "model",
    [
        MixtureStack(random_state=0),
        ParticleLVEBM(max_iter=0, random_state=0),
        ParticleLVEBM(max_iter=0, reference=MixtureStack(), random_state=0),
    ],
)
def test_more_effort_tries_more_mixtures(monkeypatch, model):
    counts = []
    for effort in EFFORTS:
        own = clone(model)
        template = getattr(own, "reference", None)
        (template if isinstance(template, MixtureStack) else own).set_params(effort=effort)
        counts.append(number_of_fits(monkeypatch, own))
    fast, default, thorough = counts
    assert fast < 0.6 * default
    assert thorough > 1.5 * default


def test_every_effort_fits_a_density_near_that_of_the_default():
    """Rows of one normal density: its entropy, whatever was tried."""
    random = np.random.RandomState(0)
    rows, new = random.normal(size=(400, 3)), random.normal(size=(4000, 3))
    entropy = 1.5 * (1.0 + np.log(2.0 * np.pi))
    for effort in EFFORTS:
        score = MixtureStack(effort=effort, random_state=0).fit(rows).score(new)
        # nine parameters cost about 9 / (2 n) nats; the sampling error of the mean is 0.02
        assert abs(score + entropy) < 9.0 / 800.0 + 4.0 * np.sqrt(1.5 / 4000) + 0.02


def test_epochs_and_chains_follow():
    given = {"max_iter": 200, "n_iter_no_change": 10, "n_chains": 128}
    assert scaled({**given, "effort": "default"}) == {**given, "effort": "default"}
    fast = {"max_iter": 50, "n_iter_no_change": 5, "n_chains": 128, "effort": "fast"}
    assert scaled({**given, "effort": "fast"}) == fast
    thorough = {"max_iter": 400, "n_iter_no_change": 20, "n_chains": 256, "effort": "thorough"}
    assert scaled({**given, "effort": "thorough"}) == thorough
    assert scaled({"max_iter": 0, "n_iter_no_change": 1, "effort": "fast"})["max_iter"] == 0


@pytest.mark.parametrize("kind", [ParticleLVEBM, WassersteinFlowEBM, PotentialFlowEBM])
def test_a_fit_takes_a_quarter_or_twice_the_epochs(kind):
    model = kind(reference="gaussian", max_iter=4, tol=None, random_state=0)
    numbers = [clone(model).set_params(effort=effort).fit(X[:, :2]).n_iter_ for effort in EFFORTS]
    assert numbers == [1, 4, 8]


def test_little_effort_needs_a_proof_of_the_gain():
    gains = torch.from_numpy(np.random.RandomState(0).normal(0.05, 1.0, 100))
    start = RatioStart(None, gains, 0.0, 0.01, [])
    expected = torch.zeros(100, dtype=torch.float64)
    assert start.lower_limit(expected) == pytest.approx(lower_confidence_limit(gains) - 0.02)
    assert start.lower_limit(expected) < 0.0 < start.upper_limit(expected)


def test_a_continued_fit_keeps_its_chains():
    model = ParticleLVEBM(
        reference="gaussian", max_iter=1, effort="thorough", warm_start=True, random_state=0
    ).fit(X)
    assert model.fit(X).n_iter_ == 4
    with pytest.raises(ValueError, match="n_chains"):
        model.set_params(effort="default").fit(X)


def test_the_default_policy_is_the_middle():
    assert policy_of("default") is DEFAULT_POLICY
    assert EFFORTS == ("fast", "default", "thorough")
