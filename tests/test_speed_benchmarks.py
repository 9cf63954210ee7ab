"""The speed benchmarks run from end to end with tiny settings; nothing here asserts a time."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
TINY_SHAPE = (20, 3, 8)


@pytest.fixture
def step(script):
    why = "the rivals are in the extra `bench`, which tests do not need"
    pytest.importorskip("torchebm", reason=why)
    pytest.importorskip("ebm", reason=why)
    return script("langevin_step")


@pytest.mark.parametrize("kernel", ["ULA", "MALA"])
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_all_contestants_run_on_one_density(step, kernel, activation):
    row = step.step_row(kernel, TINY_SHAPE, activation, 1, "cpu", 0.0)
    assert set(row["seconds"]) >= {"sklvebm", "ebmkit", "plain loop"}
    assert row["disagreement"] < 1e-5
    assert all(seconds > 0.0 for seconds in row["seconds"].values())


def test_contestants_move_alike_without_noise(step, monkeypatch):
    import torch

    rivals = sys.modules["langevin_rivals"]
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    monkeypatch.setattr(torch, "randn_like", lambda like, **_: torch.zeros(like.shape))
    energy = rivals.our_energy(3, 8, "tanh", "cpu")
    u = torch.linspace(-1.0, 1.0, 15).reshape(5, 3)
    generator = torch.Generator().manual_seed(0)
    ends = {name: run(u, 3, generator) for name, run in rivals.contestants("ULA", energy).items()}
    for name, end in ends.items():
        torch.testing.assert_close(end, ends["sklvebm"], msg=name)
        assert not torch.equal(end, u)


def test_growth_is_a_slope_over_the_largest_sizes(script):
    growth = script("growth")
    assert growth.exponent((1, 10, 100, 1000), [5.0, 2.0, 20.0, 200.0]) == pytest.approx(1.0)
    of_stack = growth.settings_of("rows, MixtureStack", 10**7)
    assert (of_stack["scored"], of_stack["drawn"]) == (10**7, growth.MOST_DRAWN)
    assert growth.settings_of("chains, ParticleLVEBM", 100)["scored"] == 500
    row = {part: {"seconds": 2.0, "megabytes": 30.0} for part in growth.PARTS}
    lines, slopes = growth.lines_of("rows, MixtureStack", (10, 100, 1000), [row] * 3)
    assert [line[0] for line in lines] == [f"rows, MixtureStack: {p}" for p in growth.PARTS]
    assert list(slopes.values()) == pytest.approx([0.0] * 3)


def test_a_slow_step_and_a_wrong_gradient_are_reported(step):
    shapes = [step.PEAK_SHAPE]

    def failures(seconds, disagreement, rate, judged=True):
        row = {
            "seconds": {"sklvebm": seconds, "torchebm": 2.0, "ebmkit": 3.0},
            "disagreement": disagreement,
            "rate": rate,
            "peak": 1.0,
        }
        _, ratio, share = step.line_of(shapes[0], row)
        return step.failures_of("ULA", shapes, [ratio], [share], [row], judged)

    assert failures(1.0, 1e-7, 0.7) == []
    assert len(failures(1.5, 1e-7, 0.7)) == 2  # ratio 1.33, which is the geometric mean as well
    assert len(failures(1.0, 1e-3, 0.7)) == 1
    assert len(failures(1.0, 1e-7, 0.5)) == 1
    assert failures(1.5, 1e-7, 0.5, judged=False) == []


def test_growth_is_measured_in_a_process_of_its_own(script):
    throughput = script("throughput")
    sizes = {"rows": 60, "features": 2, "chains": 8, "latents": 1, "particles": 1}
    found = throughput.measure(("sample",), 10, epochs=1, **sizes)
    assert found["fit"] > 0.0
    assert found["megabytes"] >= 0.0
    assert found["sample"] > 0.0


def test_exponent_is_the_slope_of_the_last_two_sizes(script):
    throughput = script("throughput")
    assert throughput.slope((1, 10, 100), (5.0, 2.0, 20.0)) == pytest.approx(1.0)
    assert throughput.slope((1, 10, 100), (5.0, 2.0, 200.0)) == pytest.approx(2.0)


def test_a_target_is_charged_to_the_first_point_that_reaches_it(script):
    bench = script("time_to_target")
    ours = [(2.0, -1.5), (8.0, -1.0)]
    rivals = {"torchebm": [(30.0, -1.4), (10.0, -1.6)], "ebmkit": [(20.0, -1.2), (5.0, -9.0)]}
    lines, ratios = bench.lines_of(ours, rivals, {"level": -1.45})
    assert lines[0] == ["level", "-1.450", "8.0", "30.0", "20.0", "2.5"]
    assert ratios["best of ebmkit"] == pytest.approx(20.0 / 8.0)
    assert lines[-1] == ["best of ours", "-1.000", "8.0", "never", "never", "-"]
    assert "best of ours" not in ratios
    assert bench.lines_of([(1.0, -9.0)], rivals, {"level": -1.45})[1]["level"] == 0.0


def test_a_rival_is_timed_at_every_checkpoint(script, step, monkeypatch):
    bench = script("time_to_target")
    rivals = sys.modules["contrastive_rivals"]
    for name, value in {"RUNGS": (4,), "N_BETWEEN": 2, "N_LANGEVIN": 1}.items():
        monkeypatch.setattr(rivals, name, value)
    monkeypatch.setattr(rivals, "N_GRID", {2: 40})
    found = bench.rival_points("two moons", "torchebm")["settings"]
    assert len(found) == len(rivals.GRID)
    for points in found.values():
        seconds = [s for s, _ in points]
        assert len(points) == 2
        assert 0.0 < seconds[0] < seconds[1]


def test_everyone_makes_an_update(script, step):
    seconds = script("fit_update").update_row(TINY_SHAPE, "tanh", 0.0)["seconds"]
    assert set(seconds) == {"sklvebm", "torchebm", "ebmkit", "default"}
    assert all(each > 0.0 for each in seconds.values())


def test_without_a_gpu_launches_are_printed_and_what_was_not_measured(
    script, monkeypatch, tmp_path, capsys
):
    gpu = script("gpu")
    counts = {"default": [400.0, 0.1], "published": [146.0, 0.1], "a step of annealing": [60.0, 0]}
    monkeypatch.setattr(gpu, "counted_elsewhere", lambda: counts)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "FAILED default: 400 launches, the bar is 250" in printed
    assert printed.count("FAILED") == 1
    assert "No CUDA device. Not measured: times" in printed


@pytest.mark.slow
def test_updates_and_annealing_are_timed_plainly_and_recorded(script, monkeypatch):
    """On the CPU, which records nothing: the functions are those that a GPU runs."""
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "PLAIN_STEPS", 4)
    monkeypatch.setattr(gpu, "RECORDED_STEPS", 8)
    row = gpu.update_seconds(0.0, "cpu")
    plain = {*gpu.KINDS, "a step of annealing"}
    recorded = {*gpu.RECORDED, "a step of annealing"}
    assert set(row["seconds"]) == plain | {f"{name}, recorded" for name in recorded}
    assert all(each > 0.0 for each in row["seconds"].values())
    assert row["complaints"] == []


@pytest.mark.slow
def test_launches_are_counted_in_a_process_of_its_own(script):
    gpu = script("gpu")
    counts = gpu.counted_elsewhere()
    assert set(counts) == {*gpu.KINDS, "a step of annealing"}
    # an epoch of ten updates waits once; see `test_launches.py` for the limits
    assert [waits for _, waits in counts.values()] == pytest.approx([0.1, 0.0, 0.1, 0.1, 0.1])
    assert all(50 < launches < 500 for launches, _ in counts.values())
