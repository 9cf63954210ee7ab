"""Energies of the user's own: errors that name what is wrong, and answers that repeat."""

import numpy as np
import pytest
import torch
from torch import nn

import sklvebm.training
from sklvebm import LinearGaussianEnergy, ParticleLVEBM
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.models.energies import BridgedEnergy

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rows(n=60):
    return np.random.default_rng(0).normal(size=(n, 2))


class Bowl(nn.Module):
    """Half of the squared length, plus a network and what a test puts into `change`."""

    def __init__(self, change=lambda energy, x, z: energy, inner=()):
        super().__init__()
        self.change = change
        self.net = nn.Sequential(nn.Linear(4, 8), *inner, nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, z):
        bowl = 0.5 * (x.square().sum(1) + z.square().sum(1))
        return self.change(bowl + self.net(torch.cat([x, z], 1)).squeeze(1), x, z)


def model(energy, **parameters):
    settings = {"reference": "gaussian", "max_iter": 1, "random_state": 0, **parameters}
    return ParticleLVEBM(2, energy=energy, **settings)


def without_grad(energy, x, z):
    with torch.no_grad():
        return x.square().sum(1) + z.square().sum(1)


def through_numpy(energy, x, z):
    return torch.from_numpy((x.numpy() ** 2).sum(1))


WRONG_VALUES = {
    "NumPy array": (lambda e, x, z: e.detach().numpy(), TypeError, "got numpy.ndarray"),
    "through NumPy": (through_numpy, TypeError, "computed by torch.*NumPy"),
    "float": (lambda e, x, z: float(e.detach().sum()), TypeError, "got builtins.float"),
    "nothing": (lambda e, x, z: None, TypeError, "got builtins.NoneType"),
    "pair": (lambda e, x, z: (e, x), TypeError, "got builtins.tuple"),
    "integers": (lambda e, x, z: e.round().long(), TypeError, "got a tensor of torch.int64"),
    "booleans": (lambda e, x, z: e > 0.0, TypeError, "got a tensor of torch.bool"),
    "complex": (lambda e, x, z: e.to(torch.complex128), TypeError, "got a tensor of torch.complex"),
    "detached": (lambda e, x, z: e.detach(), ValueError, "got a detached tensor"),
    "no_grad": (without_grad, ValueError, "got a detached tensor"),
    "shape (1,)": (lambda e, x, z: e.sum()[None], ValueError, r"returned shape \(1,\)"),
    "scalar": (lambda e, x, z: e.mean(), ValueError, r"returned shape \(\)"),
    "column": (lambda e, x, z: e[:, None], ValueError, r"returned shape \(3, 1\)"),
    "table": (lambda e, x, z: e[:, None] + e, ValueError, r"returned shape \(3, 3\)"),
}


@pytest.mark.parametrize("kind", WRONG_VALUES)
def test_what_is_no_energy_of_each_row_is_named(kind):
    change, error, message = WRONG_VALUES[kind]
    with pytest.raises(error, match=f"energy must.*{message}"):
        model(Bowl(change)).fit(rows())


def tilted(energy, x, z):
    return 0.5 * x.square().sum(1) + 0.5 * (z[:, 0] + z[:, 1]).square() + 0.0 * energy


def positive_only(energy, x, z):
    return energy + torch.log(x[:, 0] + 2.0)


def bounded(energy, x, z):
    return torch.where(z[:, 1] > 1.0, torch.inf, energy)


BATCH = "depends on the batch"
UNSOUND = {
    "noise": (lambda e, x, z: e + 0.1 * torch.randn_like(e), "is random"),
    "NumPy's noise": (lambda e, x, z: e + float(np.random.default_rng().normal()), "is random"),
    "batch mean": (lambda e, x, z: e + x.mean(), BATCH),
    "centred": (lambda e, x, z: e - e.mean(), BATCH),
    "neighbour": (lambda e, x, z: e + e.roll(1), BATCH),
    "size of the batch": (lambda e, x, z: e / len(x), BATCH),
    "running sum": (lambda e, x, z: e.cumsum(0), BATCH),
    "two rows at least": (lambda e, x, z: e + 0.0 * x[1, 0], f"{BATCH}: a single row fails"),
    "no z": (lambda e, x, z: 0.5 * x.square().sum(1) + 0.0 * e, "improper in z"),
    "one z": (lambda e, x, z: e - 0.5 * z[:, 1].square(), "improper in z"),
    "a ridge of z": (tilted, "improper in z"),
    "saturating in z": (lambda e, x, z: x.square().sum(1) + torch.tanh(z[:, 0]), "improper in z"),
    "falling in z": (lambda e, x, z: e - z.square().sum(1), "improper in z"),
    "slow in z": (lambda e, x, z: x.square().sum(1) + z.square().sum(1).log1p(), "improper in z"),
    "no x": (lambda e, x, z: 0.5 * z.square().sum(1) + 0.0 * e, "improper in x"),
    "a difference": (lambda e, x, z: (x - z).square().sum(1) + 0.0 * e, "improper in x and z"),
    "NaN on a part": (positive_only, "it is NaN at"),
    "infinite on a part": (bounded, "it is infinite at"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_what_cannot_be_a_model_is_found_before_training(kind, monkeypatch):
    def trained(*arguments, **options):
        raise AssertionError("too late")

    monkeypatch.setattr(sklvebm.training, "_pass_over", trained)
    change, message = UNSOUND[kind]
    # wide rows reach where the logarithm has no value
    X = rows() * [1.0, 3.0]
    with pytest.raises(ValueError, match=message):
        model(Bowl(change)).fit(X)


def heavy_tails(energy, x, z):
    return 3.5 * torch.cat([x, z], 1).square().sum(1).log1p()


SOUND = {
    "bowl": lambda e, x, z: e,
    "linear growth": lambda e, x, z: x.abs().sum(1) + z.abs().sum(1) + 0.0 * e,
    "heavy tails": heavy_tails,
    "a very flat bowl": lambda e, x, z: e - 0.4999 * z.square().sum(1),
    "wells far apart": lambda e, x, z: e + 0.1 * (z.square().sum(1) - 4.0).square(),
    "infinite far out": lambda e, x, z: e + torch.exp(z.square().sum(1) / 50.0),
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_energies_of_any_tail_are_not_accused(kind):
    fitted = model(Bowl(SOUND[kind]), max_iter=0).fit(rows())
    assert np.isfinite(fitted.score_samples(rows(5))).all()


@pytest.mark.parametrize(
    "inner",
    [
        lambda: nn.Dropout(0.5),
        lambda: nn.BatchNorm1d(8),
        lambda: nn.Sequential(nn.BatchNorm1d(8), nn.AlphaDropout(0.2)),
    ],
    ids=["dropout", "batch normalisation", "both"],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_modules_that_know_training_answer_alike(inner, method):
    given, X = Bowl(inner=[inner()]).train(), rows(30)
    fitted = getattr(model(given, max_iter=2, n_chains=16, n_temperatures=3), method)(X)
    assert given.training  # a copy was trained
    before, few = torch.get_rng_state(), X[:6]

    def answers():
        fitted.energy_.train()  # does not reach what answers
        return fitted.score_samples(few), fitted.transform(few), fitted.sample(3, random_state=0)

    first = answers()
    for again, expected in zip(answers(), first, strict=True):
        np.testing.assert_array_equal(again, expected)
    alone = np.concatenate([fitted.score_samples(few[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, first[0][:3], rtol=1e-9)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in fitted.energy_.modules())


def test_batch_statistics_without_memory_are_found():
    forgetful = Bowl(inner=[nn.BatchNorm1d(8, track_running_stats=False)])
    with pytest.raises(ValueError, match="depends on the batch"):
        model(forgetful).fit(rows())


def test_a_probe_moves_no_generator():
    noisy = Bowl(UNSOUND["noise"][0])
    before, own = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(ValueError, match="is random"):
        model(noisy).fit(rows())
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], own)


def test_nobody_without_an_energy_is_asked_about_it(monkeypatch):
    monkeypatch.setattr(sklvebm.training._Run, "monitored", lambda run: float("nan"))
    for energy in (None, LinearGaussianEnergy(2, 2)):
        with pytest.raises(ParticleDivergenceError, match="no finite ELBO") as caught:
            model(energy).fit(rows())
        assert "integrable" not in str(caught.value)


def test_a_bridge_stays_in_evaluation_mode():
    bowl = Bowl(inner=[nn.Dropout(0.5)])
    reference = model(None, max_iter=0).fit(rows()).reference_
    bridge = BridgedEnergy(reference, bowl.double())
    assert not bridge.train().training
    assert not bowl.training
