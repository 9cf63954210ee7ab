"""The training loop on objectives whose outcome is known in advance."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.optimisation import restored, snapshot, start_optimisation
from sklvebm.row_weights import pass_over
from sklvebm.training import batches, train, train_epoch
from sklvebm.training_course import Course, Plateau


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Point(nn.Module):
    """A model that is one vector."""

    def __init__(self, start=(0.0, 0.0)):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))


class Quadratic:
    """Descend the squared distance to a goal; keep a record of everything the loop does."""

    def __init__(self, goal=(1.0, -2.0), bounds=None):
        self.goal = torch.tensor(goal, dtype=torch.float64)
        self.bounds = None if bounds is None else list(bounds)
        self.seen, self.rows, self.iterates, self.monitored = [], [], [], []

    loss_name, has_total_bound = "contrast", False

    def step(self, energy, batch, state, generator):
        self.seen.append(batch.index)
        self.rows.append(batch.x)
        self.iterates.append(energy.theta.detach().clone())
        loss = (energy.theta - self.goal).square().sum()
        return loss, state + 1, {"distance": loss.detach().sqrt()}

    def measures(self, energy, state):
        return {}

    def problem(self, state, metrics):
        return None

    def lower_bound(self, energy, state, target, x, generator, *, row_weights=None):
        self.monitored.append(target.theta.detach().clone())
        if self.bounds is not None:
            return self.bounds.pop(0)
        return -float((target.theta.detach() - self.goal).square().sum())


X = torch.arange(20, dtype=torch.float64).reshape(10, 2)


def run(objective, model=None, **options):
    model = Point() if model is None else model
    settings = {
        "learning_rate": 0.1,
        "batch_size": 4,
        "max_iter": 200,
        "tol": 1e-6,
        "n_iter_no_change": 5,
        "generator": generator(),
        "callback": lambda progress: None,
    }
    settings.update(options)
    optimisation = start_optimisation(
        model, learning_rate=settings["learning_rate"], alpha=settings.pop("alpha", 0.0)
    )
    state = settings.pop("state", 0)
    return train(optimisation, objective, X, X[:3], state, **settings)


def epoch(objective, model=None, *, n_epochs=1, learning_rate=0.1, batch_size=10):
    optimisation = start_optimisation(
        Point() if model is None else model, learning_rate=learning_rate, alpha=0.0
    )
    state, g = 0, generator()
    for _ in range(n_epochs):
        optimisation, state, metrics = train_epoch(
            optimisation,
            objective,
            X,
            state,
            batch_size=batch_size,
            learning_rate=learning_rate,
            generator=g,
        )
    return optimisation, state, metrics


@pytest.mark.parametrize(
    ("n_rows", "batch_size"), [(10, 3), (10, 10), (10, 100), (7, 1), (1, 5), (256, 100)]
)
def test_batches_partition_the_rows_into_nearly_equal_parts(n_rows, batch_size):
    parts = list(batches(pass_over(n_rows, generator(), torch.device("cpu")), batch_size))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n_rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == math.ceil(n_rows / batch_size)


def test_batches_are_shuffled_by_the_generator():
    def order(seed):
        return torch.cat(list(batches(pass_over(50, generator(seed), torch.device("cpu")), 8)))

    assert torch.equal(order(0), order(0))
    assert not torch.equal(order(0), order(1))
    assert not torch.equal(order(0), torch.arange(50))


def test_an_epoch_shows_every_row_once_with_its_index():
    objective = Quadratic()
    before = X.clone()
    _, state, _ = epoch(objective, batch_size=4)
    assert torch.equal(torch.cat(objective.seen).sort().values, torch.arange(10))
    assert torch.equal(torch.cat(objective.rows), X[torch.cat(objective.seen)])
    assert state == 3  # what `step` returns is passed on
    assert torch.equal(X, before)


def test_metrics_are_means_over_the_batches():
    objective = Quadratic()
    _, _, metrics = epoch(objective, batch_size=4)
    distances = [float((theta - objective.goal).norm()) for theta in objective.iterates]
    assert metrics["distance"] == pytest.approx(sum(distances) / 3)
    assert metrics["contrast"] == pytest.approx(sum(d * d for d in distances) / 3)


def test_the_model_given_is_not_modified():
    model = Point((0.5, 0.5))
    optimisation = start_optimisation(model, learning_rate=0.1, alpha=0.0)
    train_epoch(
        optimisation, Quadratic(), X, 0, batch_size=4, learning_rate=0.1, generator=generator()
    )
    assert model.theta.tolist() == [0.5, 0.5]
    assert optimisation.energy.theta.tolist() != [0.5, 0.5]


def test_the_learning_rate_warms_up_over_twenty_updates():
    objective = Quadratic(goal=(1e6, 1e6))
    epoch(objective, n_epochs=26)
    # far from the goal each of Adam's steps is as long as the learning rate
    steps = torch.stack(objective.iterates).diff(dim=0)[:, 0]
    expected = 0.1 * torch.clamp((torch.arange(25) + 1.0) / 20.0, max=1.0).double()
    torch.testing.assert_close(steps, expected, rtol=1e-3, atol=0.0)


def test_the_running_average_remembers_fifty_updates():
    objective = Quadratic()
    optimisation, _, _ = epoch(objective, n_epochs=150)
    iterates = [*objective.iterates, optimisation.energy.theta.detach()]
    average = iterates[0].clone()
    for k, theta in enumerate(iterates[1:], start=1):
        average = average + (theta - average) / min(1.0 + 0.5 * k, 50.0)
    torch.testing.assert_close(optimisation.average.theta.detach(), average)
    assert optimisation.n_updates == 150


def test_large_gradients_are_clipped_to_norm_ten():
    class Steep(Quadratic):
        loss_name, has_total_bound = "contrast", False

        def step(self, energy, batch, state, generator):
            loss, state, metrics = super().step(energy, batch, state, generator)
            return 1e8 * loss, state, metrics

    optimisation, _, _ = epoch(Steep())
    assert float(optimisation.energy.theta.grad.norm()) == pytest.approx(10.0, rel=1e-5)


def test_weight_decay_is_decoupled_from_the_gradient():
    class Indifferent(Quadratic):
        loss_name, has_total_bound = "contrast", False

        def step(self, energy, batch, state, generator):
            return 0.0 * energy.theta.sum(), state, {}

    optimisation = start_optimisation(Point((1.0, -3.0)), learning_rate=0.1, alpha=0.5)
    for _ in range(3):
        optimisation, _, _ = train_epoch(
            optimisation,
            Indifferent(),
            X,
            0,
            batch_size=10,
            learning_rate=0.1,
            generator=generator(),
        )
    factor = math.prod(1.0 - 0.5 * 0.1 * k / 20.0 for k in (1, 2, 3))
    assert optimisation.energy.theta.tolist() == pytest.approx([factor, -3.0 * factor])


@pytest.mark.parametrize(
    ("refines", "bounds", "n_epochs"),
    [
        (True, [-1.1] * 9, 3),  # nothing is better than the start
        (True, [-1.1, -1.0, -0.9, -0.9, -0.9], 3),  # nothing is, in the mean over epochs
        (True, [-0.97] + [-1.1] * 9, 3),  # a lucky epoch is no progress
        (True, [0.0] * 20, 8),  # five epochs until the mean is, and a plateau
        (False, [-1.1] * 12, 10),  # the first epoch, and three plateaus
    ],
)
def test_a_trained_start_ends_at_the_first_plateau(refines, bounds, n_epochs):
    course = Course([], -1.0, 0.1, Plateau(tol=0.01, patience=3), refines=refines)
    n_noted = 0
    while not course.is_over:
        course.note(bounds[n_noted], torch.nn.Linear(1, 1), False)
        n_noted += 1
    assert course.converged
    assert n_noted == n_epochs


def test_plateaus_count_epochs_without_enough_improvement():
    plateau = Plateau(tol=0.1, patience=2)
    outcomes = []
    for bound in (0.0, 0.05, 0.2, 0.25, 0.29, 0.27, 0.28, 1.0, 1.05):
        plateau.update(bound)
        outcomes.append(plateau.reached())
    # 0.2 counts as improvement on 0.0; what follows does not, up to 1.0
    assert outcomes == [False, False, False, False, True, False, True, False, False]
    assert plateau.n_reductions == 2


def test_plateaus_ignore_small_steps_only_until_they_add_up():
    plateau = Plateau(tol=0.1, patience=3)
    for k in range(30):
        plateau.update(0.06 * k)
        assert not plateau.reached()


def test_training_finds_the_optimum_of_a_quadratic():
    objective = Quadratic()
    result = run(objective, max_iter=2000)
    assert result.converged
    torch.testing.assert_close(result.best.theta.detach(), objective.goal, rtol=0.0, atol=1e-2)
    bounds = [p.lower_bound for p in result.history]
    assert result.best_lower_bound == pytest.approx(max(smoothed(bounds)), abs=1e-12)
    assert result.state == 3 * len(result.history)


def smoothed(bounds):
    """Return means over five epochs, or over as many as there are."""
    return [
        sum(bounds[max(0, k - 4) : k + 1]) / len(bounds[max(0, k - 4) : k + 1])
        for k in range(len(bounds))
    ]


def test_the_best_model_is_returned_not_the_last():
    # the first is the start; the ninth epoch ends the best five
    bounds = [0.0, 1.0, 6.0, 0.0, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 4.5, 0.0]
    means = smoothed(bounds[1:])
    best = max(range(len(means)), key=means.__getitem__)
    assert best not in {1, len(means) - 1}  # neither the highest nor the last epoch
    objective = Quadratic(bounds=bounds)
    result = run(objective, max_iter=11, n_iter_no_change=100)
    assert result.best_lower_bound == pytest.approx(means[best])
    assert torch.equal(result.best.theta.detach(), objective.monitored[1 + best])
    assert not torch.equal(result.optimisation.average.theta.detach(), result.best.theta.detach())
    assert not result.converged


def test_the_initial_model_is_returned_where_training_only_hurts():
    objective = Quadratic(bounds=[0.0, -1.0, -2.0, -3.0])
    result = run(objective, Point((0.3, 0.4)), max_iter=3)
    assert result.best_lower_bound == 0.0
    assert result.best.theta.tolist() == [0.3, 0.4]


def test_not_finite_bounds_are_never_best():
    result = run(Quadratic(bounds=[0.0, math.nan, 1.0, math.nan]), max_iter=3)
    assert result.best_lower_bound == 1.0


def test_a_fall_of_the_bound_is_no_problem_where_it_means_overfitting():
    bounds = [0.0, 1.0, *[-100.0] * 40]
    with pytest.raises(ParticleDivergenceError, match="the ELBO fell to -100"):
        run(Quadratic(bounds=bounds), max_iter=30)
    result = run(Quadratic(bounds=bounds), max_iter=30, undo_falls=False)
    assert result.converged
    assert result.best_lower_bound == 1.0
    assert not any(progress.problem for progress in result.history)


def test_learning_rate_falls_twice_and_the_third_plateau_ends_training():
    objective = Quadratic(bounds=[0.0] * 100)
    result = run(objective, n_iter_no_change=4, max_iter=90)
    rates = [progress.learning_rate for progress in result.history]
    # the first epoch is what the others are compared with
    assert rates == pytest.approx([0.1] * 5 + [0.03] * 4 + [0.009] * 4)
    assert result.converged


def test_callbacks_see_every_epoch_in_order():
    seen = []
    result = run(Quadratic(), max_iter=4, callback=seen.append)
    assert [progress.epoch for progress in seen] == [1, 2, 3, 4]
    assert seen == result.history
    assert set(seen[0].metrics) == {"contrast", "distance"}


def test_the_average_is_monitored_not_the_last_iterate():
    objective = Quadratic()
    result = run(objective, max_iter=3)
    average = result.optimisation.average.theta.detach()
    assert torch.equal(objective.monitored[-1], average)
    assert not torch.equal(average, result.optimisation.energy.theta.detach())


def test_same_seed_gives_the_same_training():
    first, second = (run(Quadratic(), max_iter=5) for _ in range(2))
    assert torch.equal(first.best.theta, second.best.theta)
    assert first.history == second.history


class Troubled(Quadratic):
    """Go wrong in one of the ways that are looked for, whenever `when(update)` says so."""

    def __init__(self, trouble, when, **options):
        super().__init__(**options)
        self.trouble, self.when, self.n_steps = trouble, when, 0

    loss_name, has_total_bound = "contrast", False

    def step(self, energy, batch, state, generator):
        loss, state, metrics = super().step(energy, batch, state, generator)
        self.n_steps += 1
        self.wrong = self.when(self.n_steps)
        if self.wrong and self.trouble == "loss":
            loss = loss * torch.nan
        if self.wrong and self.trouble == "metric":
            metrics["distance"] = torch.tensor(torch.inf)
        if self.wrong and self.trouble == "parameter":
            loss = loss + torch.sqrt(energy.theta.sum() * 0.0) * 0.0
        return loss, state, metrics

    def problem(self, state, metrics):
        return "swaps stopped" if self.wrong and self.trouble == "particles" else None

    def lower_bound(self, energy, state, target, x, generator, *, row_weights=None):
        if getattr(self, "wrong", False) and self.trouble in {"nan bound", "fall"}:
            return math.nan if self.trouble == "nan bound" else -1000.0
        return super().lower_bound(energy, state, target, x, generator)


TROUBLES = ["loss", "metric", "parameter", "particles", "nan bound", "fall"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_bad_epoch_is_undone_and_tried_again_more_slowly(trouble):
    # three updates an epoch: the second epoch goes wrong once
    objective = Troubled(trouble, lambda update: update == 6)
    result = run(objective, max_iter=300)
    clean = run(Quadratic(), max_iter=1)
    assert [p.problem != "" for p in result.history].count(True) == 1
    bad, again = result.history[1:3]
    assert bad.problem
    assert math.isnan(bad.lower_bound)
    assert (bad.learning_rate, again.learning_rate) == (0.1, pytest.approx(0.03))
    # the third epoch starts where the first one ended, particles included
    assert torch.equal(objective.iterates[6], clean.optimisation.energy.theta.detach())
    assert result.state == 3 * (len(result.history) - 1)
    assert float((result.best.theta.detach() - objective.goal).norm()) < 0.2
    assert math.isfinite(result.best_lower_bound)


def test_what_is_undone_includes_buffers_the_average_and_the_moments_of_the_optimiser():
    def numbers(optimisation):
        modules = [optimisation.energy.state_dict(), optimisation.average.state_dict()]
        numbers = [value.clone() for module in modules for value in module.values()]
        moments = optimisation.optimizer.state()
        return [*numbers, *moments["first"], *moments["second"]]

    def trained_for(optimisation, n_updates):
        energy, average, optimizer, n_before = optimisation
        for _ in range(n_updates):
            optimizer.zero_grad()
            energy(X).square().sum().backward()
            optimizer.step()
            average(X)  # moves its buffers
            with torch.no_grad():
                torch._foreach_add_(list(average.parameters()), 0.1)
        return optimisation._replace(n_updates=n_before + n_updates)

    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(X.shape[1]), nn.Linear(X.shape[1], 1)).double()
    early = trained_for(start_optimisation(module, learning_rate=0.1, alpha=0.0), 3)
    before, saved = numbers(early), snapshot(early)
    late = trained_for(early, 2)
    assert not any(torch.equal(a, b) for a, b in zip(numbers(late), before, strict=True))
    again = restored(late, saved)
    assert again.n_updates == 3
    assert all(torch.equal(a, b) for a, b in zip(numbers(again), before, strict=True))


class InPlace(Troubled):
    """Keep a state that every step writes into."""

    loss_name, has_total_bound = "contrast", False

    def step(self, energy, batch, state, generator):
        loss, _, metrics = super().step(energy, batch, 0, generator)
        return loss, state.add_(1), metrics


def test_an_undone_epoch_leaves_nothing_in_a_state_that_is_written_in_place():
    objective = InPlace("particles", lambda update: update == 6)
    result = run(objective, max_iter=5, state=torch.zeros(1))
    assert [p.problem != "" for p in result.history] == [False, True, False, False, False]
    assert float(result.state) == 3 * 4


class Shelf:
    """Keep a copy of the state after every epoch; give one of them back."""

    def __init__(self, numbers=None):
        self.numbers, self.states, self.at_once = numbers, [], []

    def kept(self):
        return copy.deepcopy(self.numbers)

    def keep(self, numbers, *, at_once):
        self.states.append(copy.deepcopy(numbers()))
        self.at_once.append(at_once)


class Wandering(InPlace):
    """Draw random numbers, and go wrong now and then."""

    def __init__(self):
        super().__init__("particles", lambda update: update in (6, 27))

    def step(self, energy, batch, state, generator):
        loss, state, metrics = super().step(energy, batch, state, generator)
        noise = torch.randn((), generator=generator, dtype=torch.float64)
        return loss + noise * energy.theta.sum(), state, metrics

    def lower_bound(self, *arguments, **options):
        # a plateau at the end
        return min(super().lower_bound(*arguments, **options), -0.5)


def test_a_run_is_continued_from_every_epoch():
    shelf, options = Shelf(), {"tol": 0.05, "n_iter_no_change": 3, "max_iter": 90}
    whole = run(Wandering(), keeper=shelf, state=torch.zeros(1), **options)
    assert sum(p.problem != "" for p in whole.history) == 2
    assert whole.converged
    assert len(shelf.states) == len(whole.history)
    assert shelf.at_once == [False] * (len(whole.history) - 1) + [True]
    for number, numbers in enumerate(shelf.states):
        objective, g = Wandering(), generator(99)
        later = Shelf(numbers)
        objective.n_steps = 3 * (number + 1)  # where its troubles are
        again = run(objective, keeper=later, state=torch.zeros(1), generator=g, **options)
        assert len(later.states) == len(whole.history) - 1 - number
        np.testing.assert_equal(again.history, whole.history)
        assert torch.equal(again.best.theta, whole.best.theta)
        assert again.best_lower_bound == whole.best_lower_bound
        assert torch.equal(again.state, whole.state)
        assert again.converged == whole.converged
        both = snapshot(again.optimisation), snapshot(whole.optimisation)
        assert [str(part) for part in both[0]] == [str(part) for part in both[1]]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_divergence_is_an_error_only_after_five_roll_backs(trouble):
    objective = Troubled(trouble, lambda update: True)
    seen = []
    with pytest.raises(ParticleDivergenceError, match="rolled back 5 times.*learning_rate_init"):
        run(objective, callback=seen.append)
    assert [round(p.learning_rate, 6) for p in seen] == [round(0.1 * 0.3**k, 6) for k in range(6)]
    assert all(p.problem for p in seen)


def test_a_model_without_a_finite_bound_at_the_start_is_an_error():
    with pytest.raises(ParticleDivergenceError, match="before the first update"):
        run(Quadratic(bounds=[math.nan]))


def test_divergence_leaves_the_model_given_as_it_was():
    model = Point((0.5, 0.5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ParticleDivergenceError):
        run(Troubled("loss", lambda update: True), model)
    assert torch.equal(model.theta, before["theta"])
