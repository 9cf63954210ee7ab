"""Split R-hat and chain sample sizes on draws whose law is known."""

import math

import pytest
import torch

from sklvebm.mcmc.diagnostics import chain_sample_size, nested_rhat, split_rhat

SIGMAS = 5.0
# the mean of equal numbers need not equal them once it is rounded, as with 0.1
CONSTANTS = [2.0, 0.1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def independent_draws(n_chains, n_draws, seed=0):
    return torch.randn(n_chains, n_draws, generator=generator(seed), dtype=torch.float64)


def autoregression(rho, n_chains, n_draws, seed=0):
    """Return stationary chains of unit variance whose autocorrelation at lag t is rho^t."""
    noise = independent_draws(n_chains, n_draws, seed)
    chains = noise.clone()
    for t in range(1, n_draws):
        chains[:, t] = rho * chains[:, t - 1] + math.sqrt(1.0 - rho**2) * noise[:, t]
    return chains


def test_rhat_agrees_with_a_computation_by_hand():
    # halves (0, 2), (4, 6), (1, 3), (1, 1): variances 2, 2, 2, 0 and means 1, 5, 2, 1
    traces = torch.tensor([[0.0, 2.0, 4.0, 6.0], [1.0, 3.0, 1.0, 1.0]])
    within = 6.0 / 4.0
    between = (1.25**2 + 2.75**2 + 0.25**2 + 1.25**2) / 3.0
    expected = math.sqrt((0.5 * within + between) / within)
    assert split_rhat(traces) == pytest.approx(expected, rel=1e-14)


def test_rhat_leaves_out_the_middle_draw_of_an_odd_number():
    odd = torch.tensor([[0.0, 2.0, 1e6, 4.0, 6.0], [1.0, 3.0, -1e6, 1.0, 1.0]])
    even = odd[:, [0, 1, 3, 4]]
    assert split_rhat(odd) == split_rhat(even)
    assert chain_sample_size(odd) == chain_sample_size(even)


def test_rhat_of_independent_draws_is_that_of_the_sampling_error_of_means():
    n_chains, n_draws, n_repeats = 8, 1000, 100
    squares = torch.tensor(
        [split_rhat(independent_draws(n_chains, n_draws, seed)) ** 2 for seed in range(n_repeats)],
        dtype=torch.float64,
    )
    # (n - 1) / n + var(means) / W, of which the second term is 1 / n on average
    error = float(squares.std()) / math.sqrt(n_repeats)
    assert error < 1e-4
    assert abs(float(squares.mean()) - 1.0) < SIGMAS * error
    assert float(squares.max().sqrt()) < 1.01


def test_rhat_of_shifted_chains_is_the_spread_of_their_means():
    shift = 3.0
    traces = independent_draws(4, 2000)
    traces[::2] += shift
    # eight halves, four at 0 and four at the shift: their means vary by 8/7 (shift / 2)^2
    expected = math.sqrt(1.0 + 8.0 / 7.0 * (shift / 2.0) ** 2)
    assert split_rhat(traces) == pytest.approx(expected, rel=0.05)


def test_rhat_sees_a_drift_that_all_chains_share():
    drift = torch.linspace(-1.5, 1.5, 2000, dtype=torch.float64)
    traces = independent_draws(8, 2000) + drift
    means = traces.mean(1)
    # without the split nothing is seen: the chains agree with one another
    unsplit = math.sqrt(1.0 + float(means.var() / traces.var(1).mean()))
    assert unsplit < 1.01
    # halves drift over 1.5, which adds 1.5^2 / 12 to their variance; their means are 1.5 apart
    expected = math.sqrt(1.0 + 16.0 / 15.0 * 0.75**2 / (1.0 + 1.5**2 / 12.0))
    assert split_rhat(traces) == pytest.approx(expected, rel=0.05)


def test_rhat_sees_a_drift_of_a_single_chain():
    traces = independent_draws(1, 2000) + torch.linspace(-1.5, 1.5, 2000, dtype=torch.float64)
    assert split_rhat(traces) > 1.2


@pytest.mark.parametrize("value", CONSTANTS)
def test_rhat_is_one_if_nothing_varies_at_all(value):
    assert split_rhat(torch.full((3, 10), value, dtype=torch.float64)) == 1.0


def test_rhat_is_infinite_if_no_half_varies_while_their_means_differ():
    stuck_chains = torch.tensor([0.0, 1.0])[:, None].expand(2, 10)
    one_jump = torch.tensor([[0.0] * 5 + [1.0] * 5])
    assert split_rhat(stuck_chains) == math.inf
    assert split_rhat(one_jump) == math.inf


@pytest.mark.parametrize("function", [split_rhat, chain_sample_size])
def test_units_and_the_order_of_chains_do_not_matter(function):
    traces = autoregression(0.5, 4, 200)
    shuffled = -3.0 * traces[[2, 0, 3, 1]] + 7.0
    assert function(shuffled) == pytest.approx(function(traces), rel=1e-10)


@pytest.mark.parametrize("function", [split_rhat, chain_sample_size])
def test_four_draws_suffice(function):
    assert math.isfinite(function(independent_draws(3, 4)))


@pytest.mark.parametrize("function", [split_rhat, chain_sample_size])
def test_single_precision_is_evaluated_in_double(function):
    # a large mean leaves no digits for the variance if sums are taken in single precision
    traces = (independent_draws(4, 500) + 4096.0).float()
    assert function(traces) == function(traces.double())


def test_sample_size_agrees_with_a_computation_by_explicit_sums():
    traces = autoregression(0.8, 3, 40)
    halves = [half for chain in traces.tolist() for half in (chain[:20], chain[20:])]
    n = 20
    means = [sum(half) / n for half in halves]
    centre = sum(means) / 6
    between = sum((mean - centre) ** 2 for mean in means) / 5

    def covariance(lag):
        """Average the lagged products of all halves."""
        return sum(
            (half[t] - mean) * (half[t + lag] - mean)
            for half, mean in zip(halves, means, strict=True)
            for t in range(n - lag)
        ) / (6 * n)

    within = covariance(0) * n / (n - 1)
    total = (n - 1) / n * within + between
    time, smallest = -1.0, math.inf
    for lag in range(0, n, 2):
        first, second = (
            1.0 - (within - covariance(k) * n / (n - 1)) / total for k in (lag, lag + 1)
        )
        if first + second <= 0.0:
            break
        smallest = min(smallest, first + second)
        time += 2.0 * smallest
    assert time > 2.0
    assert chain_sample_size(traces) == pytest.approx(6 * n / time, rel=1e-12)


# one estimate has a relative standard deviation of 0.09 at rho = 0.9 and less below, so the
# mean of ten is judged with 3.5 standard errors
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_sample_size_of_autoregressions_agrees_with_theory(rho):
    n_chains, n_draws = 4, 5000
    total = n_chains * n_draws
    expected = total * (1.0 - rho) / (1.0 + rho)
    sizes = [chain_sample_size(autoregression(rho, n_chains, n_draws, s)) for s in range(10)]
    assert sum(sizes) / len(sizes) == pytest.approx(expected, rel=0.1)
    assert all(size == pytest.approx(expected, rel=0.3) for size in sizes)
    assert max(sizes) <= total


@pytest.mark.parametrize("rho", [-0.9, -0.5, 0.0])
def test_sample_size_is_never_above_the_number_of_draws(rho):
    # alternating chains know their mean better than independent draws do; this is not credited
    for seed in range(10):
        assert chain_sample_size(autoregression(rho, 2, 400, seed)) <= 800.0


def test_sample_size_of_chains_at_different_places_is_about_their_number():
    traces = 0.01 * independent_draws(6, 500)
    traces += 10.0 * torch.arange(6, dtype=torch.float64)[:, None]
    assert 3.0 < chain_sample_size(traces) < 12.0


@pytest.mark.parametrize("value", CONSTANTS)
def test_sample_size_of_a_constant_is_the_number_of_draws(value):
    assert chain_sample_size(torch.full((3, 10), value, dtype=torch.float64)) == 30.0


def test_nested_rhat_of_agreeing_groups_of_short_chains_is_near_one():
    # slow chains: every one stays near its own value, which split R-hat does not forgive
    level = torch.randn(2, 500, 1, generator=generator(), dtype=torch.float64)
    traces = level + 0.1 * torch.randn(2, 500, 10, generator=generator(1), dtype=torch.float64)
    assert split_rhat(traces.flatten(0, 1)) > 2.0
    # B / W is chi-squared with one degree of freedom over the number of chains: 25 is five sigmas
    assert 1.0 <= nested_rhat(traces) < (1.0 + 25.0 / 500) ** 0.5


def test_nested_rhat_sees_groups_that_differ():
    traces = torch.randn(2, 200, 10, generator=generator(), dtype=torch.float64)
    traces[1] += 1.0
    # B = 1 / 2, W = 1 + 1 / 10
    assert nested_rhat(traces) == pytest.approx((1.0 + 0.5 / 1.1) ** 0.5, rel=0.03)


def test_nested_rhat_of_constants():
    constant = torch.full((2, 3, 4), 0.1, dtype=torch.float64)
    assert nested_rhat(constant) == 1.0
    assert nested_rhat(constant + torch.tensor([0.0, 1.0])[:, None, None]) == float("inf")
