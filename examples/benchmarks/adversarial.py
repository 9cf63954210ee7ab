"""Can a score be wrong and its verdict "sound"? A hundred fits to densities made to break them.

    python examples/benchmarks/adversarial.py               # everything: half an hour on one core
    python examples/benchmarks/adversarial.py --quick       # one seed of some densities
    python examples/benchmarks/adversarial.py --output DIR  # where finished rows go

Heavy tails, rare and narrow modes, ridges, funnels, far clusters, rows of two sizes, many latents,
chunks that drift: all have a known density. Three measurements for each fit:

* `mass`: the integral of exp(score), estimated with draws of which a third follow the truth, a
  third Student's t around it and a third are uniform in a box around it. A lower bound of a
  log-density has a mass of at most one.
* `beside`: score minus truth, mean over new rows of the truth, each between -5 and 5 nats.
* `gain`: score minus that of the untrained model, the same.

A fit is wrong where the mass is above one by more than three standard errors, or the gain below
-0.02 nats. It fails the benchmark if its verdict is "sound" and nobody was warned.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from report import RESULTS, Store, print_header, print_table
from scipy import stats

from sklvebm import ParticleLVEBM, WassersteinFlowEBM

N_TEST, N_PROPOSED, SIGMAS, LEAST_GAIN, CLIP = 1500, 6000, 3.0, -0.02, 5.0


class Mixture:
    """Independent components: (weight, function of a seed and n, log density) each."""

    def __init__(self, *parts):
        self.weights = np.array([weight for weight, *_ in parts]) / sum(p[0] for p in parts)
        self.draws, self.densities = zip(*(part[1:] for part in parts), strict=True)

    def sample(self, n, seed):
        """Return n rows in random order."""
        random = np.random.RandomState(seed)
        counts = random.multinomial(n, self.weights)
        parts = [draw(random, k) for draw, k in zip(self.draws, counts, strict=True)]
        return np.concatenate(parts)[random.permutation(n)]

    def log_density(self, X):
        """Return the log density of rows, nats."""
        each = [w + d(X) for w, d in zip(np.log(self.weights), self.densities, strict=True)]
        return np.logaddexp.reduce(each, axis=0)


def normal(at, sd, weight=1.0):
    """Return a normal component with independent coordinates."""
    at, sd = np.atleast_1d(at).astype(float), np.broadcast_to(sd, np.shape(at)).astype(float)
    return (
        weight,
        lambda random, n: at + sd * random.standard_normal((n, len(at))),
        lambda X: stats.norm.logpdf(X, at, sd).sum(1),
    )


def columns(distribution, n_features, weight=1.0):
    """Return independent columns of one distribution of SciPy."""
    return (
        weight,
        lambda random, n: distribution.rvs((n, n_features), random_state=random),
        lambda X: distribution.logpdf(X).sum(1),
    )


def funnel():
    """Return Neal's funnel: the second column's scale is exp(half the first)."""
    return (
        1.0,
        lambda random, n: (lambda a: np.c_[a, np.exp(0.5 * a) * random.standard_normal(n)])(
            2.0 * random.standard_normal(n)
        ),
        lambda X: (
            stats.norm.logpdf(X[:, 0], 0.0, 2.0)
            + stats.norm.logpdf(X[:, 1], 0.0, np.exp(0.5 * X[:, 0]))
        ),
    )


def banana(bend, sd):
    """Return a ridge along a parabola."""
    return (
        1.0,
        lambda random, n: (lambda a: np.c_[a, bend * a**2 + sd * random.standard_normal(n)])(
            random.standard_normal(n)
        ),
        lambda X: stats.norm.logpdf(X[:, 0]) + stats.norm.logpdf(X[:, 1], bend * X[:, 0] ** 2, sd),
    )


def ridge(n_features, sd):
    """Return rows on a line, with little noise around it."""
    covariance = np.ones((n_features, n_features)) + sd**2 * np.eye(n_features)
    law = stats.multivariate_normal(np.zeros(n_features), covariance)
    return (
        1.0,
        lambda random, n: law.rvs(n, random_state=random).reshape(n, -1),
        lambda X: law.logpdf(X).reshape(-1),
    )


def rings(*radii, sd=0.05):
    """Return rings of equal weight."""

    def draw(random, n):
        angle = random.uniform(0.0, 2.0 * np.pi, n)
        radius = random.choice(radii, n) + sd * random.standard_normal(n)
        return radius[:, None] * np.c_[np.cos(angle), np.sin(angle)]

    def log_density(X):
        radius = np.linalg.norm(X, axis=1)
        each = [stats.norm.logpdf(radius, r, sd) for r in radii]
        return np.logaddexp.reduce(each, axis=0) - np.log(len(radii) * 2.0 * np.pi * radius)

    return 1.0, draw, log_density


GAUSSIAN = {"reference": "gaussian"}
T = stats.t
# name: (density, number of rows, parameters of the estimator)
CASES = {
    **{f"t with {nu}, 2 columns": (Mixture(columns(T(nu), 2)), 600, {}) for nu in (1, 2, 3)},
    **{
        f"t with {nu}, 2 columns, one Gaussian": (Mixture(columns(T(nu), 2)), 800, GAUSSIAN)
        for nu in (1, 2, 3)
    },
    "t with 2, 5 columns": (Mixture(columns(T(2), 5)), 600, {}),
    "t with 2, 5 columns, one Gaussian": (Mixture(columns(T(2), 5)), 600, GAUSSIAN),
    "Laplace, 3 columns": (Mixture(columns(stats.laplace(), 3)), 600, {}),
    "lognormal, 2 columns": (Mixture(columns(stats.lognorm(1.5), 2)), 600, {}),
    "lognormal, one Gaussian": (Mixture(columns(stats.lognorm(1.0), 2)), 600, GAUSSIAN),
    "uniform square": (Mixture(columns(stats.uniform(), 2)), 800, {}),
    "uniform square, one Gaussian": (Mixture(columns(stats.uniform(), 2)), 800, GAUSSIAN),
    **{
        f"{share:.1%} in a far mode of {sd:g}, one Gaussian": (
            Mixture(normal([0, 0], 0.3, 1.0 - share), normal([6, 6], sd, share)),
            1200,
            GAUSSIAN,
        )
        for share, sd in ((0.02, 0.05), (0.05, 0.3), (0.01, 0.1))
    },
    "2 % in a far mode": (
        Mixture(normal([0, 0], 0.3, 0.98), normal([6, 6], 0.05, 0.02)),
        800,
        {},
    ),
    "three far clusters": (
        Mixture(normal([0, 0], 1.0), normal([300, 0], 1.0), normal([0, 5000], 3.0)),
        600,
        {},
    ),
    "three clusters, one Gaussian": (
        Mixture(normal([0, 0], 0.2), normal([3, 0], 0.2), normal([0, 3], 0.2)),
        600,
        GAUSSIAN,
    ),
    "sizes 1 and 1000": (Mixture(normal([0, 0], 1.0), normal([0, 0], 1000.0)), 500, {}),
    "sizes 1 and 1e5, few large": (
        Mixture(normal([0, 0], 1.0, 0.8), normal([0, 0], 1e5, 0.2)),
        500,
        {},
    ),
    "ridge, 3 columns": (Mixture(ridge(3, 0.01)), 500, {}),
    "banana": (Mixture(banana(1.0, 0.1)), 800, {}),
    "banana, one Gaussian": (Mixture(banana(1.0, 0.2)), 800, GAUSSIAN),
    "funnel": (Mixture(funnel()), 800, {}),
    "funnel, one Gaussian": (Mixture(funnel()), 800, GAUSSIAN),
    "rings": (Mixture(rings(1.0, 3.0)), 800, {}),
    "rings, one Gaussian": (Mixture(rings(1.0, 3.0, sd=0.15)), 800, GAUSSIAN),
    "ten latents of 3 columns": (
        Mixture(normal([0, 0, 0], 1.0), normal([3, 0, 0], 0.3)),
        500,
        {**GAUSSIAN, "n_components": 10},
    ),
    "t with 3, 8 columns, one Gaussian": (
        Mixture(columns(T(3), 8)),
        800,
        {**GAUSSIAN, "n_components": 2},
    ),
    "small alpha, one Gaussian": (
        Mixture(normal([0, 0], 0.3, 0.9), normal([2, 2], 0.1, 0.1)),
        800,
        {**GAUSSIAN, "alpha": 1e-4, "learning_rate_init": 0.03},
    ),
}
KINDS = {"ParticleLVEBM": ParticleLVEBM, "WassersteinFlowEBM": WassersteinFlowEBM}
DRIFTS = {f"drift to {share:.0%} elsewhere": share for share in (0.02, 0.1)}


def made(kind, options, seed, max_iter):
    """Return an unfitted estimator."""
    options = dict(options)
    n_components = options.pop("n_components", 1)
    if kind == "ParticleLVEBM":
        options["n_components"] = n_components
    return KINDS[kind](max_iter=max_iter, random_state=seed, **options)


def proposal(density, seed):
    """Return rows around the truth with their log density, for the integral."""
    random = np.random.RandomState(seed)
    truth = density.sample(N_PROPOSED // 3, seed + 1)
    low, high = np.quantile(truth, [0.01, 0.99], axis=0)
    centre, reach = 0.5 * (low + high), 0.5 * (high - low)
    far = centre + reach * stats.t(2).rvs((N_PROPOSED // 3, len(low)), random_state=random)
    box = centre + 3.0 * reach * random.uniform(-1.0, 1.0, (N_PROPOSED // 3, len(low)))
    X = np.concatenate([truth, far, box])
    white = (X - centre) / reach
    logs = [
        density.log_density(X),
        stats.t(2).logpdf(white).sum(1) - np.log(reach).sum(),
        np.where(np.abs(white).max(1) <= 3.0, -np.log(6.0 * reach).sum(), -np.inf),
    ]
    return X, np.logaddexp.reduce(logs, axis=0) - np.log(3.0)


def fitted_row(name, kind, seed, max_iter):
    """Fit one case and measure it."""
    density, n, options = CASES[name]
    X = density.sample(n, seed)
    begin = time.process_time()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = made(kind, options, seed, max_iter).fit(X)
        untrained = made(kind, options, seed, 0).fit(X)
    row = measured(model, density, seed, [str(w.message) for w in seen])
    T = density.sample(N_TEST, 1000 + seed)
    gains = (model.score_samples(T) - untrained.score_samples(T)).clip(-CLIP, CLIP)
    return row | {"gain": gains.mean(), "seconds": time.process_time() - begin}


def drifting_row(share, kind, seed):
    """Go on with `partial_fit` on rows that move away from the first chunk."""
    random = np.random.RandomState(seed)
    first = Mixture(normal([0, 0], 0.3))
    later = Mixture(normal([0, 0], 0.3, 1.0 - share), normal([2.5, 2.5], 0.1, share))
    begin = time.process_time()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = made(kind, {}, seed, 200).partial_fit(first.sample(600, seed))
        for _ in range(6):
            model.partial_fit(later.sample(600, random.randint(2**30)))
    row = measured(model, later, seed, [str(w.message) for w in seen])
    return row | {"gain": 0.0, "seconds": time.process_time() - begin}


def measured(model, density, seed, messages):
    """Return what a fitted model says of rows of the truth, and its mass."""
    T = density.sample(N_TEST, 1000 + seed)
    beside = (model.score_samples(T) - density.log_density(T)).clip(-CLIP, CLIP)
    X, log_proposal = proposal(density, 2000 + seed)
    ratio = np.exp(np.minimum(model.score_samples(X) - log_proposal, 50.0))
    warned = any("not be trusted" in message for message in messages)
    return {
        "mass": ratio.mean(),
        "mass_error": ratio.std() / np.sqrt(len(ratio)),
        "beside": beside.mean(),
        "kept": bool(model.improved_),
        "verdict": model.diagnostics_.verdict,
        "warned": warned,
    }


def is_wrong(row):
    """Tell whether a score cannot be a lower bound, or training made it worse."""
    return row["mass"] > 1.0 + SIGMAS * row["mass_error"] or row["gain"] < LEAST_GAIN


def plan(seeds, quick):
    """Return {key: function that computes the row}."""
    names = list(CASES)[:: 5 if quick else 1]
    rows = {}
    for name in names:
        for kind in KINDS:
            if kind == "WassersteinFlowEBM" and "latents" in name:
                continue
            for seed in seeds:
                key = f"{name}, {kind}, seed {seed}"
                rows[key] = partial(fitted_row, name, kind, seed, 20 if quick else 60)
    for name, share in DRIFTS.items():
        for kind in KINDS:
            for seed in seeds[:1]:
                rows[f"{name}, {kind}, seed {seed}"] = partial(drifting_row, share, kind, seed)
    return rows


def main(arguments=None):
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "adversarial")
    options = parser.parse_args(arguments)
    store = Store(options.output)
    print_header(store)
    rows = plan((0,) if options.quick else (0, 1), options.quick)
    lines, failures, n_kept = [], [], 0
    for key, compute in rows.items():
        row = store.row(key, compute)
        wrong, sound = is_wrong(row), row["verdict"] == "sound" and not row["warned"]
        n_kept += row["kept"]
        if wrong and sound:
            failures.append(key)
        lines.append(
            [
                key,
                f"{row['mass']:.3f} +- {row['mass_error']:.3f}",
                f"{row['beside']:+.3f}",
                f"{row['gain']:+.3f}",
                "kept" if row["kept"] else "reference",
                "sound" if row["verdict"] == "sound" else "check",
                "wrong" if wrong else "",
                f"{row['seconds']:.0f}",
            ]
        )
    print_table(
        f"{len(lines)} fits, {n_kept} energies kept",
        ["density", "mass", "beside", "gain", "model", "verdict", "", "s"],
        lines,
        'a fit is wrong and its verdict "sound"',
        failures,
    )
    return not failures


if __name__ == "__main__":
    raise SystemExit(not main())
