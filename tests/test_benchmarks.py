"""The benchmark scripts run from end to end with tiny settings, and resume."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
TINY = {
    "seeds": 1,
    "toys": ("two moons",),
    "latents": (1,),
    "families": ("two moons",),
    "n_grid": 100,
    "n_train": 200,
    "n_evaluate": 20,
    "n_refits": 2,
    "gaussian_seeds": 1,
    "n_scored": 200,
    "n_family_rows": 10,
    "n_gaussian_steps": 5,
    "n_encoder_steps": 5,
    "n_replicates": 2,
    "max_iter": 1,
}


@pytest.fixture
def benchmark(script):
    return script("bound_quality")


@pytest.mark.parametrize("part", ["toys", "gaussian", "families"])
def test_bound_quality_prints_a_table_and_resumes(benchmark, part, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.bound_parts, "N_FEATURES", 4)
    monkeypatch.setattr(benchmark.bound_parts, "N_LATENTS", 1)
    sizes = benchmark.Sizes(**TINY)
    benchmark.run(sizes, [part], tmp_path)
    first = capsys.readouterr().out
    assert "Fails if" in first
    assert " ...\n" in first
    benchmark.run(sizes, [part], tmp_path)
    again = capsys.readouterr().out
    assert " ...\n" not in again
    assert again.split("Fails if")[0].splitlines()[-1] in first


def test_digits_and_throughput_print_kept_rows(benchmark, tmp_path, capsys):
    """The two slow parts are run by hand; here their tables are printed from small rows."""
    store = benchmark.Store(tmp_path)
    log_z = {
        "value": 0.0,
        "lower": -0.1,
        "upper": 0.1,
        "standard_error": 0.01,
        "effective_sample_size": 9.0,
    }
    fit = {"score": -1.0, "n_scored": 3, "score_seconds": 0.1, "fit_seconds": 1.0}
    store.row("digits fit", lambda: {**fit, "log_z": log_z})
    for seed, value in enumerate([0.0, 3.0]):
        shifted = {**log_z, "value": value}
        store.row(f"digits refit{seed}", lambda shifted=shifted: {"log_z": shifted})
    row = {"n_rows": 3, "threads": 1, "seconds": 1.0, "rows_per_second": 3.0, "memory_mb": 1.0}
    store.row("throughput", lambda: {**row, "difference": 1e-9})
    benchmark.run(benchmark.Sizes(**TINY), ["digits", "throughput"], tmp_path)
    printed = capsys.readouterr().out
    assert "FAILED fit: the mean of all values is outside" in printed
    assert "FAILED rows scored alone differ by 1.0e-09" in printed


def test_toys_have_the_same_rows_whatever_is_asked_of_the_others(benchmark):
    from toy_data import TOYS, toy_rows

    for name in TOYS:
        train, evaluate = toy_rows(name, 50, 20)
        assert train.shape == (50, 2)
        assert (toy_rows(name, 10, 20)[1] == evaluate).all()


@pytest.fixture
def density(script):
    return script("density")


def test_density_prints_a_table_of_rivals_and_resumes(density, tmp_path, capsys):
    methods = ("probabilistic PCA", "mixture by BIC", "kernel density")
    density.run(("iris",), methods, 1, tmp_path)
    first = capsys.readouterr().out
    assert "iris: held-out log-likelihood" in first
    assert " ...\n" in first
    density.run(("iris",), methods, 1, tmp_path)
    assert " ...\n" not in capsys.readouterr().out


def test_density_scores_in_the_units_of_the_data(density):
    # scikit-learn's own factor analysis of the raw rows has the same likelihood as ours of
    # standardised ones, because it estimates a variance per column
    row = density.row("factor analysis", "iris", 0)
    train, test = density.split("iris", 0)
    import sklearn.decomposition

    n_components = int(row["settings"].split()[0])
    model = sklearn.decomposition.FactorAnalysis(n_components, tol=1e-6, max_iter=10_000)
    # scikit-learn stops at an improvement of 0.01 nats of the sum over rows, and held-out rows
    # can differ by more: 0.005 here, where a forgotten Jacobian of the units would be 0.3
    assert row["score"] == pytest.approx(model.fit(train).score(test), abs=0.02)


def test_density_counts_what_misses_its_bar(density):
    rows = {
        "particles": [{"score": -1.0, "reference": -0.9, "diverged": False}],
        "mixture by BIC": [{"score": -0.5, "diverged": False}],
        "kernel density": [{"score": -2.0, "diverged": False}],
    }
    first, second = density.failures_of("iris", rows)
    assert "0.100 nats below its own reference" in first
    assert "0.500 nats below the better" in second


def test_density_keeps_a_row_that_fails(density, monkeypatch):
    def fail(X, seed):
        raise RuntimeError("nothing works")

    monkeypatch.setitem(density.RIVALS, "kernel density", fail)
    row = density.row("kernel density", "iris", 0)
    assert row["score"] == -float("inf")
    assert "nothing works" in row["error"]


def test_density_sets_hold_out_fixed_rows(density):
    from density_sets import SETS, split

    for name in SETS:
        train, test = split(name, 0)
        assert train.shape[1] == test.shape[1]
        assert (split(name, 0).test == test).all()
        assert split(name, 1).test.shape == test.shape
        assert not (split(name, 1).test == test).all()


def test_ablation_changes_one_setting_after_the_other(script):
    ablation = script("ablation")
    rows = list(ablation.variants().values())[: len(ablation.CHANGES)]
    for before, after, (_, change) in zip(rows, rows[1:], ablation.CHANGES[1:], strict=False):
        changed = {name for name in after if after[name] is not before[name]}
        assert changed == set(change) != set()


def test_ablation_prints_medians_and_resumes(script, tmp_path, capsys, monkeypatch):
    ablation = script("ablation")
    few = {
        "gaussian": {"reference": "gaussian", "max_iter": 1, "n_chains": 16},
        "untrained": {"max_iter": 0},
    }
    monkeypatch.setattr(ablation, "variants", lambda: few)
    arguments = ["--sets", "wine", "--seeds", "2", "--output", str(tmp_path)]
    ablation.main(arguments)
    first = capsys.readouterr().out
    assert "untrained" in first
    assert len(list(tmp_path.glob("ablation-wine-*.json"))) == 4
    ablation.main(arguments)
    again = capsys.readouterr().out
    assert "untrained seed" not in again  # nothing is computed twice
    assert first.splitlines()[-5:] == again.splitlines()[-5:]


@pytest.fixture
def potential(script, monkeypatch):
    benchmark = script("potential_flow")
    monkeypatch.setattr(benchmark, "N_SCORED", 100)
    monkeypatch.setattr(benchmark, "N_DRAWS", 50)
    return benchmark


def test_potential_flow_prints_a_table_and_resumes(potential, tmp_path, capsys):
    arguments = ["--sets", "digits", "--seeds", "1", "--output", str(tmp_path)]
    kept = {"score": -1.0, "seconds": 0.1}
    store = potential.Store(tmp_path)
    store.row("potential digits kernel density seed0", lambda: kept)
    flow = {**kept, "score": -2.0, "diverged": False, "n_features": 64, "mmd": 0.1, "floor": 0.2}
    flow |= {"reference": -2.0, "disagreement": 0.2, "spread": 0.1, "improved": True}
    store.row("potential digits mixture seed0", lambda: flow)
    capsys.readouterr()
    potential.main(arguments)
    printed = capsys.readouterr().out
    assert "Fails if" in printed
    assert "1.000 nats below kernel density" in printed
    assert " ...\n" not in printed


def test_potential_flow_row_has_both_likelihoods(potential, script, monkeypatch):
    Split = script("density_sets").Split

    def split(name, seed):
        rng = potential.np.random.default_rng(seed)
        return Split(rng.normal(size=(60, 2)), rng.normal(size=(200, 2)))

    monkeypatch.setattr(potential, "split", split)
    row = potential.flow_row("two moons", 0, "gaussian")
    assert not row["diverged"]
    assert row["score"] == pytest.approx(row["reference"] + 0.0, abs=0.5)
    assert abs(row["disagreement"]) < 0.05
    assert row["mmd"] < potential.MOST_FLOORS * max(row["floor"], 0.2)


def test_potential_flow_counts_what_misses_its_bar(potential):
    good = {"score": -1.0, "diverged": False, "n_features": 2, "mmd": 0.1, "floor": 0.1}
    good["disagreement"] = 0.01
    kernel = [{"score": -1.1}]
    assert potential.failures_of("helix", [good], kernel) == []
    assert "kernel" in potential.failures_of("helix", [{**good, "score": -1.2}], kernel)[0]
    assert "MMD" in potential.failures_of("helix", [{**good, "mmd": 0.3}], kernel)[0]
    assert "differ" in potential.failures_of("helix", [{**good, "disagreement": -0.1}], kernel)[0]
    assert "diverged" in potential.failures_of("helix", [{"score": -float("inf")}], kernel)[0]


@pytest.fixture
def wasserstein(script, monkeypatch):
    benchmark = script("wasserstein_flow")
    for name, value in {"N_UPDATES": 20, "N_LOOKS": 2, "BETWEEN": 5, "N_CHAINS": 8}.items():
        monkeypatch.setattr(benchmark, name, value)
    return benchmark


def test_wasserstein_flow_prints_a_table_and_resumes(wasserstein, tmp_path, capsys):
    methods = [method for method in wasserstein.METHODS if method != "default"]
    arguments = ["--methods", *methods, "--seeds", "1", "--output", str(tmp_path)]
    wasserstein.main(arguments)
    first = capsys.readouterr().out
    assert "Fails if" in first
    assert all(f"\n{method}" in first for method in methods)
    wasserstein.main(arguments)
    assert " ...\n" not in capsys.readouterr().out


def test_wasserstein_flow_divergence_is_the_closed_form(wasserstein):
    """Of N(6, 0.1^2) from N(0, 1), and from itself."""
    x = wasserstein.GRID[:, 0]
    wanted = 0.5 * (0.01 + 36.0 - 1.0) - wasserstein.math.log(0.1)
    assert wasserstein.divergence(3.0 - 0.5 * x.square()) == pytest.approx(wanted, abs=1e-6)
    same = -0.5 * ((x - 6.0) / 0.1).square()
    assert wasserstein.divergence(same) == pytest.approx(0.0, abs=1e-9)
    energy = wasserstein.published_energy(wasserstein.torch.Generator().manual_seed(0))
    assert wasserstein.divergence_of(energy) == pytest.approx(wanted, abs=1e-4)


def test_wasserstein_flow_compares_with_the_plain_method(wasserstein):
    def rows(*kls):
        return [{"kl": kl} for kl in kls]

    bad, good = rows(*[7.0] * 20), rows(*[0.1] * 20)
    assert wasserstein.failures_of({"plain": bad, "jko": good, "default": good}) == []
    some = rows(*[float("inf")] * 3, *[0.1] * 17)
    assert "3 diverged, plain 20" in wasserstein.failures_of({"plain": bad, "jko": some})[0]
    assert "median" in wasserstein.failures_of({"plain": good, "jko": rows(0.2)})[0]


def test_no_method_costs_more_than_the_plain_one(wasserstein):
    plain = wasserstein.gradients_per_update("plain")
    for method in wasserstein.PUBLISHED:
        cost = wasserstein.gradients_per_update(method)
        assert all(a <= b for a, b in zip(cost, plain, strict=True))


def test_density_has_rows_of_both_flows(density):
    assert {"potential flow", "wasserstein flow"} <= set(density.METHODS)
