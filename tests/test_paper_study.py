"""The paper study: what it quotes, computes and keeps; the whole of it is run by hand."""

import json

import numpy as np
import pytest
import torch

from sklvebm import ParticleLVEBM
from sklvebm.baselines._decoder import Architecture, LatentModel


@pytest.fixture
def study(script):
    """A function that imports a module of the study."""
    return lambda name: script(f"study.{name}")


# What the paper prints ---------------------------------------------------------------------------


def test_collapsed_baselines_of_the_paper_have_the_error_of_the_mean_of_our_sets(study):
    """So the values stand under the right set, and our generators are the paper's."""
    sets = study("sets")
    for name, chosen in sets.SETS.items():
        constant = sets.constant_rmse(chosen.draw(40_000, random_state=0))
        printed = study("published").printed(name)
        for column in ("NAVI", "Hard EM"):
            assert printed[column]["RMSE"] == pytest.approx(constant, rel=0.012)


def test_printed_values_are_the_ones_that_the_text_of_the_study_speaks_of(study):
    for name in study("sets").SETS:
        printed = study("published").printed(name)
        assert len(printed) == 7
        # the reference with a decoder is nearer to the data on all three sets
        assert printed["Marks-style"]["W2²"] < printed["ours"]["W2²"]
        assert printed["joint CD"]["RMSE"] > printed["ours"]["RMSE"]
        # no density has an expected log-likelihood above minus the entropy, and all entropies are
        # positive (tests/datasets)
        for column in ("ours", "VAE", "NAVI", "Hard EM"):
            assert printed[column]["ELBO"] > 0.0
        assert {column for column in printed if printed[column]["ELBO"] is None} == {
            "Marks-style",
            "Kuntz-style",
            "joint CD",
        }


# Cells -------------------------------------------------------------------------------------------


def test_a_cell_is_computed_once(study, tmp_path):
    calls = []
    cells = study("cells").Cells(tmp_path)
    for _ in range(2):
        assert cells.cell("a cell", lambda: calls.append(1) or {"score": 2.0})["score"] == 2.0
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-cell.json"]
    assert study("cells").Cells(tmp_path, compute=False).cell("missing", None) is None


def test_a_cell_that_takes_too_long_is_tried_again_under_a_longer_limit_only(study, tmp_path):
    def endless():
        while True:
            sum(range(1000))

    cells = study("cells")
    first = cells.Cells(tmp_path, limit=0.05).cell("slow", endless)
    assert first["timed_out"] == 0.05
    assert cells.Cells(tmp_path, limit=0.05).cell("slow", lambda: {"score": 1.0}) == first
    assert cells.Cells(tmp_path, limit=9.0, compute=False).cell("slow", None) == first
    assert cells.Cells(tmp_path, limit=9.0).cell("slow", lambda: {"score": 1.0})["score"] == 1.0


def test_a_cell_that_fails_is_kept(study, tmp_path, capsys):
    def fail():
        raise RuntimeError("nothing works")

    cells = study("cells").Cells(tmp_path)
    assert "nothing works" in cells.cell("bad", fail)["error"]
    assert "nothing works" in json.loads((tmp_path / "bad.json").read_text())["error"]
    assert "RuntimeError" in capsys.readouterr().err


def test_medians_skip_cells_without_the_number(study):
    middle = study("cells").median_and_worst
    cells = [{"score": 1.0}, {"score": 4.0}, {"timed_out": 9}, None, {"score": 2.0}, {"score": 3.0}]
    assert middle(cells, lambda cell: cell["score"]) == (2.5, 1.0, 4)
    assert middle(cells, lambda cell: cell["score"], min) == (2.5, 4.0, 4)
    assert middle([None], lambda cell: cell["score"]) == (None, None, 0)


# Tables ------------------------------------------------------------------------------------------


def cell(score):
    distances = {"rmse": 0.1, "mmd": 0.2, "w2": 0.3}
    return {
        "score": score,
        "n_train": 40_000,
        "n_scored": 10_000,
        "gap": 0.02,
        "constant_rmse": 0.76,
        "fit_seconds": 7.0,
        "draws": {"mmd": 0.5, "w2": 0.6},
        "reconstruction": {"mean code": distances, "probe decoder": distances | {"rmse": 0.4}},
    }


def test_a_table_has_a_line_for_the_paper_and_for_every_method(study):
    cells = {
        "defaults": [cell(-1.35), cell(-1.37), cell(-1.36)],
        "VAE": [{"timed_out": 600.0}],
        "hard EM": [{"error": "no"}],
        "joint CD": [cell(-1.4), {"error": "ParticleDivergenceError"}, None],
    }
    floor = {"n_compared": 2000, "mmd": [0.001, 0.0, 0.002], "w2": [0.03, 0.02, 0.04]}
    text = study("tables").set_table("LCR-2D", cells, floor)
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()}
    assert lines["defaults"][1:4] == ["40000", "3", "-1.360 (-1.370)"]
    assert lines["defaults"][4:6] == ["0.020 (0.020)", "0.1000 (0.1000)"]
    assert lines["defaults"][8] == "0.4000 (0.4000)"
    assert lines["VAE"][1] == "not in 600 s"
    assert lines["joint CD"][2] == "1 of 2"
    assert lines["hard EM"][1] == "failed"
    assert lines["paper: ours"][3] == "[2.5048]"
    assert lines["paper: ours"][8:11] == ["0.1612", "0.1549", "0.2161"]
    assert lines["entropy bound"][3] == "-1.335"
    assert len({len(line) for name, line in lines.items() if name and name[0] != "#"}) == 1


def test_bars_are_compared_with_medians_and_rivals_on_common_seeds(study):
    missed = study("tables").missed

    def row(*scores):  # of rows that are lucky or not, all at the same distance to the truth
        return [score and cell(score) for score in scores]

    ours = row(-1.2, -1.35, -1.9)
    assert missed("LCR-2D", {"defaults": ours, "VAE": row(-1.0, None, None)}) == []
    (below,) = missed("LCR-2D", {"defaults": row(-1.4), "VAE": row(-1.4)})
    assert "below the bar -1.36" in below
    better = [cell(-1.39) | {"gap": 0.005}, None, None]
    (beaten,) = missed("LCR-2D", {"defaults": ours, "VAE": better})
    assert "VAE is 0.015 nats ahead" in beaten
    (impossible,) = missed("LCR-2D", {"defaults": row(-1.2)})
    assert "above the entropy bound" in impossible
    assert "not run" in missed("LCR-2D", {"VAE": row(-1.2)})[0]


def test_the_truth_is_the_exact_log_density_of_the_rows_that_are_scored(study):
    measures, sets = study("measures"), study("sets")
    sizes = sets.Sizes(n_test=3000)
    found = measures.truth("LCR-2D", 0, sizes)["truth"]
    assert set(found) == {"500", "2000", "3000"}
    exact = sets.SETS["LCR-2D"].log_density(sets.rows_of("LCR-2D", 0, sizes).test[:500])
    assert found["500"] == pytest.approx(exact.mean())
    assert found["3000"] == pytest.approx(sets.entropy_bound("LCR-2D"), abs=0.08)


# Probe -------------------------------------------------------------------------------------------


def test_the_probe_finds_what_codes_hold_and_nothing_else(study):
    rng = np.random.default_rng(0)
    X = 3.0 + rng.normal(size=(2000, 2)) * [1.0, 5.0]
    turned = X @ [[0.6, 0.8], [-0.8, 0.6]]
    noise = rng.normal(size=(2000, 2))
    probe, train, test = study("probe").probe_decoder, slice(1500), slice(1500, None)
    spread = X[test].std(0)

    def relative_error(codes):
        decoder = probe(codes[train], X[train], 0)
        return np.sqrt((((decoder.predict(codes[test]) - X[test]) / spread) ** 2).mean())

    assert relative_error(turned) < 0.1
    assert 0.95 < relative_error(noise) < 1.2


def test_codes_of_an_untrained_model_approach_its_posterior_means(study, moons):
    model = ParticleLVEBM(2, reference="gaussian", max_iter=0, random_state=0).fit(moons)
    codes = study("probe").short_run_codes
    few, many = (
        np.sqrt(((codes(model, moons, 0, n_candidates=n) - model.transform(moons)) ** 2).mean())
        for n in (1, 64)
    )
    # the least of n squared distances in the plane is 1 / n of one: here of a variance of 0.01
    assert few == pytest.approx(0.1, rel=0.15)
    assert many == pytest.approx(0.1 / 8.0, rel=0.2)
    assert (codes(model, moons, 3) == codes(model, moons, 3)).all()


def test_the_energy_of_latents_differs_from_the_energy_by_a_function_of_the_row(study, fitted):
    energy = fitted.energy_
    x = torch.zeros(5, 2, dtype=torch.float64) + 0.3
    z = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)[:, None]
    with torch.no_grad():
        difference = energy(x, z) - study("probe").latent_energy(energy, x, z)
    assert float(difference.std()) < 1e-10


# Columns -----------------------------------------------------------------------------------------


def test_the_published_algorithm_makes_the_papers_number_of_updates(study):
    sets, methods = study("sets"), study("methods")
    for name, chosen in sets.SETS.items():
        model = methods.published(name, 0, sets.Sizes())
        per_epoch = -(-40_000 // model.batch_size)
        n_updates = model.max_iter * per_epoch
        assert chosen.n_updates <= n_updates < chosen.n_updates + per_epoch
        assert model.n_iter_no_change > model.max_iter
        full = methods.published_full(name, 0, sets.Sizes())
        assert (full.n_particles, full.n_chains, full.n_langevin_steps) == (16, 4096, 30)
        contrastive = methods.joint_contrastive_divergence(name, 0, sets.Sizes())
        changed = {k for k, v in contrastive.get_params().items() if v != model.get_params()[k]}
        assert changed - {"reference"} == {"negatives"}


def test_charts_are_the_simulators_coordinates(study):
    energies, sets = study("energies"), study("sets")
    for name, chart in energies.CHARTS.items():
        z = torch.randn(4, sets.SETS[name].n_chart, generator=torch.Generator().manual_seed(0))
        turned = z.clone()
        turned[:, 2 if name == "LCS-3D" else 1] += 2.0  # a whole turn of the azimuth
        torch.testing.assert_close(chart(z), chart(turned), rtol=0.0, atol=1e-5)
        energy = energies.charted(name)(3 if name == "LCS-3D" else 2, z.shape[1])
        assert energy(torch.zeros(4, 3 if name == "LCS-3D" else 2), z).shape == (4,)


def test_plain_reference_is_a_standard_normal(study):
    reference = study("energies").plain_reference(2, 3)
    u = torch.randn(6, 5, dtype=torch.float64)
    expected = 0.5 * u.square().sum(1) + 2.5 * np.log(2.0 * np.pi)
    torch.testing.assert_close(reference.energy(u[:, :2], u[:, 2:]), expected)


# Bounds ------------------------------------------------------------------------------------------


@pytest.fixture
def bent_decoder():
    """A model with one latent whose decoder folds the line, so that posteriors are no Gaussians."""
    architecture = Architecture(2, 1, (8,), "tanh", 0.05, 1e-4, has_encoder=True)
    model = LatentModel(architecture, torch.Generator().manual_seed(3)).double()
    return model.requires_grad_(False)


def test_bounds_on_one_decoder_are_ordered_and_below_quadrature(study, bent_decoder):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    x = bent_decoder.decoder.mean(z) + torch.sqrt(bent_decoder.decoder.variance()) * noise
    found = study("bounds").bounds_of(bent_decoder, x, 0)
    grid = torch.linspace(-9.0, 9.0, 36_001, dtype=torch.float64)[:, None]
    log_joint = bent_decoder.log_joint(x[:, None], grid)
    exact = (torch.logsumexp(log_joint, 1) + np.log(18.0 / 36_000)).numpy()
    missed = [(exact - found[name]).mean() for name in study("bounds").BOUNDS]
    assert missed[0] > missed[1] + 0.01
    assert missed[1] > missed[2] + 0.01  # Gaussians leave something to be gained here
    # 64 particles whose effective share is 0.7 or more make an error of at most 0.08 a row, and
    # the logarithm of their mean a bias of half its square: five standard errors of 60 rows
    assert abs(missed[2]) < 0.5 * 0.08**2 + 5.0 * 0.08 / np.sqrt(60)
    # half of 4,096 draws or more are effective: three times the error of 0.016 that independent
    # ones would have
    np.testing.assert_allclose(found["importance-weighted"], exact, atol=0.048)


# From end to end ---------------------------------------------------------------------------------


def test_a_quick_run_writes_tables_and_resumes(script, tmp_path, capsys):
    paper_study = script("paper_study")
    arguments = ["--quick", "--sets", "LCR-2D", "--only", "VAE", "mixture by BIC"]
    arguments += ["--parts", "tables", "figures", "--output", str(tmp_path)]
    paper_study.main(arguments)
    first = capsys.readouterr().out
    assert first.count(" ...\n") == 4  # two methods, the noise floor and the exact densities
    assert "| VAE | 400, 150 scored | 1 |" in first
    assert (tmp_path / "tables.md").read_text() in first
    assert (tmp_path / "paper_study_scores.png").exists()
    paper_study.main([*arguments, "--report"])
    again = capsys.readouterr().out
    assert " ...\n" not in again
    assert (tmp_path / "tables.md").read_text() in first


def test_factors_of_rows_on_rings_are_there_and_not_separated(study):
    factors, sets = study("factors"), study("sets")
    found = factors.recovered("rings", "PCA", 0, sets.QUICK)
    assert min(found["nearest_neighbours"]) > 0.7
    assert found["linear"][0] < 0.1
    assert found["disentanglement"] < 0.1
    for chosen in factors.FACTOR_SETS.values():
        assert chosen.draw(2, return_factors=True)[1].shape[1] == len(chosen.names)


def test_every_ablation_is_an_estimator_that_differs_from_the_first_of_its_kind(study):
    ablations, sets = study("ablations"), study("sets")
    made = {name: make(0) for name, make in ablations.lines_of(sets.Sizes()).items()}
    for base, names in (
        ("anchored on one Gaussian", ablations.SETTINGS),
        ("published", ablations.PUBLISHED_CHANGES),
    ):
        first = made[base].get_params()
        for name in names:
            other = made[name].get_params()
            differs = {k for k in other if other[k] != first[k] and k != "energy"}
            assert (differs - {"reference"} != set()) == (
                name not in (base, "anchored on the default ensemble")
            )


def test_only_the_lines_named_are_computed(study, tmp_path):
    ablations, sets, cells = study("ablations"), study("sets"), study("cells").Cells(tmp_path)
    text = ablations.table(cells, 1, sets.QUICK, ["1 latent"])
    assert [path.name for path in tmp_path.iterdir()] == ["ablation-1-latent-seed0.json"]
    assert "| 1 latent | 1 | " in text
    assert "| MALA: not run | 0 | – |" in text
    assert text.count("not run") == len(ablations.lines_of(sets.QUICK)) - 1


def test_an_ablation_reports_score_and_cost(study, monkeypatch):
    ablations, sets = study("ablations"), study("sets")
    make = ablations.lines_of(sets.QUICK)["10 Langevin steps"]
    row = ablations.ablated(make, 0, sets.QUICK)
    assert row["n_train"] == 400
    assert -3.0 < row["score"] < -2.0
    assert row["fit_seconds"] > 0.0
