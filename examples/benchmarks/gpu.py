"""What training asks of a GPU, and how long it takes there beside other libraries: ten minutes.

    python examples/benchmarks/gpu.py                # launches, then times on the CUDA device
    python examples/benchmarks/gpu.py --quick        # small shapes and tables: two minutes
    python examples/benchmarks/gpu.py --output DIR   # where finished rows go

Launches are counted on the pretended device of the tests, in a process of its own, so that this
needs no GPU. They are counted operation by operation: the Triton kernels make fewer. Without a CUDA
device they are printed alone, and it is said what was not measured.
Times are wall times between synchronisations; contestants take turns, and the shortest turn counts.
The peak is what cuBLAS reaches in float32 at one of the products of the step. After ten minutes
nothing more is started, and what was left out is named.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fit_update import LIBRARIES, ebmkit_update, our_update, torchebm_update
from langevin_rivals import our_energy, ours
from langevin_step import GPU_SHAPES, clock, repeated, shortest_turns, step_row
from report import RESULTS, Store, print_header, print_table
from sklearn.datasets import load_digits, make_moons

from sklvebm import ParticleLVEBM, WassersteinFlowEBM
from sklvebm.backends import select_correction_and_grad
from sklvebm.datasets import make_shape_images
from sklvebm.estimators._common.session import FitSession
from sklvebm.estimators._common.transactional_fit import Reporter
from sklvebm.estimators._ebm.config import likelihood_config, proximal_config
from sklvebm.estimators._ebm.training import start
from sklvebm.mcmc.langevin import crank_nicolson_step
from sklvebm.mcmc.langevin import start as start_chains
from sklvebm.mcmc.state import IndependentNoise
from sklvebm.models.targets import joint_target
from sklvebm.preprocessing.prepared import prepare
from sklvebm.row_weights import distinct_rows
from sklvebm.smc.annealing import anneal
from sklvebm.training import batches, train_epoch
from sklvebm.updates import UpdatesInPlace

TESTS = Path(__file__).parents[2] / "tests"
MINUTES = 10.0
KINDS = {
    "default": (ParticleLVEBM, {}),
    "one Gaussian": (ParticleLVEBM, {"reference": "gaussian"}),
    "published": (
        ParticleLVEBM,
        {"reference": "gaussian", "n_temperatures": 1, "dynamics": "ula"},
    ),
    "proximal": (WassersteinFlowEBM, {"reference": "gaussian"}),
}
BARS = {"default": 250, "published": 150, "a step of annealing": 60}  # launches
N_ROWS, UPDATES = 800, 10  # of moons, and of an epoch on 640 of those that are fitted
N_EPOCHS = 8  # of a mean: proposals come every 16th update, a respaced ladder every 10th
CN_STEPS = 20  # of a turn
PEAK_BAR, RIVAL_BAR = 0.5, 10.0
RECORDED = ("default", "published", "proximal")  # kinds whose updates are also timed as CUDA graphs
# of annealing that is too short to be recorded, and of one that is
PLAIN_STEPS, RECORDED_STEPS = 240, 1_024


def recorded_epoch(box, objective, x, generator):
    """Return the same function with updates that are replayed as CUDA graphs."""
    energy, average, optimizer, _ = box[0]
    how = {"objective": objective, "x": x, "state": box[1], "generator": generator}
    updates = UpdatesInPlace(energy, average, optimizer, **how)

    def epoch():
        order = torch.randperm(64 * UPDATES, generator=generator, device=x.device)
        box[1], _ = updates.pass_over(batches(order, 64), box[1], updates.n_updates, 0.01)

    return epoch


def started_epoch(name, device, is_recorded=False):
    """Return a function that makes an epoch of ten updates of a fit on moons, and its objects."""
    kind, options = KINDS[name]
    X, _ = make_moons(N_ROWS, noise=0.1, random_state=0)
    estimator = kind(device=str(device), random_state=0, **options)
    configure = likelihood_config if kind is ParticleLVEBM else proximal_config
    config = configure(estimator.get_params(), *X.shape)
    data = prepare(distinct_rows(X, None), config.held_out_share, 0)
    session = FitSession(data, config, np.random.RandomState(0), Reporter(estimator, "bound"))
    training, objective = start(session), config.objective()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.from_numpy(data.fitted).float().to(device)
    state = objective.ready(training.optimisation.energy, training.state, len(x), generator)
    box = [training.optimisation, state]
    if is_recorded:
        return recorded_epoch(box, objective, x, generator), box[0].energy, generator

    def epoch():
        how = {"batch_size": 64, "learning_rate": 0.01, "generator": generator}
        box[0], box[1], _ = train_epoch(box[0], objective, x[: 64 * UPDATES], box[1], **how)

    return epoch, training.optimisation.energy, generator


# Launches --------------------------------------------------------------------------------------


def count_launches():
    """Return launches and waits of updates and of a step of annealing, on the pretended device."""
    sys.path.insert(0, str(TESTS))
    from pretended_device import NAME, pretended

    found = {}
    with pretended() as trace:
        for name in KINDS:
            epoch, energy, generator = started_epoch(name, NAME)
            epoch()  # rare components are looked for once
            before = trace.launches, trace.synchronisations
            repeated(epoch, N_EPOCHS)
            after = trace.launches, trace.synchronisations
            n = N_EPOCHS * UPDATES
            found[name] = [(b - a) / n for a, b in zip(before, after, strict=True)]
            if name == "default":
                found["a step of annealing"] = annealing_counts(trace, energy, generator)
    return found


@torch.no_grad()
def annealing_counts(trace, energy, generator):
    """Return launches and waits of a step of annealing on the joint path."""
    target = joint_target(energy, select_correction_and_grad(energy))
    particles = energy.reference.sample(64, generator)
    counts = []
    for n_steps in (4, 8, 16):  # the first computes what the reference keeps
        chains = start_chains(particles, target)
        betas = torch.linspace(0.0, 1.0, n_steps + 1, device=particles.device)
        sizes, noise = torch.full_like(betas, 0.3), IndependentNoise(generator)
        before = trace.launches, trace.synchronisations
        anneal(chains, target, betas, step_sizes=sizes, noise=noise)
        after = trace.launches, trace.synchronisations
        counts.append([b - a for a, b in zip(before, after, strict=True)])
    return [(long - short) / 8 for _, short, long in zip(*counts, strict=True)]


def counted_elsewhere():
    """Return `count_launches` of a process of its own: the device must be there from the start."""
    command = [sys.executable, "-W", "ignore", __file__, "--launches"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_launches(counts, milliseconds):
    """Print launches and waits, beside the times of the same updates where there are some."""
    lines, failures = [], []
    for name, (launches, waits) in counts.items():
        took = milliseconds.get(name)
        times = ["–", "–"] if took is None else [f"{took:.2f}", f"{1e3 * took / launches:.1f}"]
        lines.append([name, f"{launches:.0f}", f"{waits:.2f}", *times])
        if launches > BARS.get(name, np.inf):
            failures.append(f"{name}: {launches:.0f} launches, the bar is {BARS[name]}")
    print_table(
        f"Launches of an update, and waits of the host, in epochs of {UPDATES} updates",
        ["", "launches", "waits", "ms", "µs a launch"],
        lines,
        "launches exceed their bar",
        failures,
    )


# Times -----------------------------------------------------------------------------------------


@torch.no_grad()
def annealing_of(n_steps, device):
    """Return a function that anneals 1,024 walkers to a default energy."""
    _, energy, generator = started_epoch("default", device)
    target = joint_target(energy, select_correction_and_grad(energy))
    particles = energy.reference.sample(1_024, generator)
    betas = torch.linspace(0.0, 1.0, n_steps + 1, device=device)
    sizes, noise = torch.full_like(betas, 0.3), IndependentNoise(generator)
    return lambda: anneal(
        start_chains(particles, target), target, betas, step_sizes=sizes, noise=noise
    )


def update_seconds(budget, device="cuda"):
    """Return seconds of updates and of a step of annealing, and what could not be recorded."""
    n_units, runners = {}, {}
    for name, n_steps in (("", PLAIN_STEPS), (", recorded", RECORDED_STEPS)):
        runners[f"a step of annealing{name}"] = annealing_of(n_steps, device)
        n_units[f"a step of annealing{name}"] = n_steps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        for name in KINDS:
            runners[name] = started_epoch(name, device)[0]
        for name in RECORDED:
            runners[f"{name}, recorded"] = started_epoch(name, device, is_recorded=True)[0]
            # rates of the first updates have no recording
            repeated(runners[f"{name}, recorded"], 12)
        repeated(runners["a step of annealing, recorded"], 1)
    seconds = shortest_turns(runners, clock(1, device), budget)
    complaints = sorted({str(each.message) for each in caught if "CUDA graph" in str(each.message)})
    of_units = {name: each / n_units.get(name, UPDATES) for name, each in seconds.items()}
    return {"seconds": of_units, "complaints": complaints}


def exact_step_row(shape, budget):
    """Return seconds of a Crank-Nicolson step."""
    n_chains, width, hidden = shape
    run = ours(our_energy(width, hidden, "tanh", "cuda"), crank_nicolson_step)
    generator = torch.Generator("cuda").manual_seed(1)
    u = torch.randn(n_chains, width, generator=generator, device="cuda")
    runners = {"sklvebm": partial(run, u, CN_STEPS, generator)}
    return {"seconds": shortest_turns(runners, clock(1, "cuda"), budget)["sklvebm"] / CN_STEPS}


def published_row(shape, budget):
    """Return seconds of a published update of all libraries; None where one fails on the card."""
    makers = {"sklvebm": our_update, "torchebm": torchebm_update, "ebmkit": ebmkit_update}
    updates, complaints = {}, {}
    for name, make in makers.items():
        try:
            updates[name] = make(shape, "tanh", "cuda")
            updates[name]()
        except Exception as error:  # another library's, of any kind
            if name == "sklvebm":
                raise
            complaints[name] = str(error)[:200]
            updates.pop(name, None)
    seconds = shortest_turns(updates, clock(1, "cuda"), budget)
    return {"seconds": {name: seconds.get(name) for name in makers}, "complaints": complaints}


def curved_rows(n_rows, n_features, seed=0):
    """Return rows with three curved factors, seen through noisy columns."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n_rows, 3))
    return np.tanh(factors @ rng.normal(size=(3, n_features))) + 0.1 * rng.normal(
        size=(n_rows, n_features)
    )


def fit_row(X, n_scored=0, **options):
    """Return seconds of a default fit on the card, of scores, and the most memory held there."""
    torch.cuda.reset_peak_memory_stats()
    now = clock(1, "cuda")
    begin = now()
    model = ParticleLVEBM(device="cuda", random_state=0, **options).fit(X)
    found = {"fit": now() - begin, "epochs": len(model.history_)}
    if n_scored:
        rows = X[np.arange(n_scored) % len(X)]
        begin = now()
        model.score_samples(rows)
        found["scores a second"] = n_scored / (now() - begin)
    found["megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def print_steps(store, shapes, budget, on_time):
    """Print steps beside the other libraries."""
    lines, failures = [], []
    for shape in on_time(shapes, "steps"):
        key, label = "x".join(map(str, shape)), "{:,} x {} / {}".format(*shape)
        row = store.row(
            f"gpu ULA {key}", partial(step_row, "ULA", shape, "tanh", 1, "cuda", budget)
        )
        exact = store.row(f"gpu CN {key}", partial(exact_step_row, shape, budget))["seconds"]
        seconds, share = row["seconds"], row["rate"] / row["peak"]
        times = [1e6 * each for each in (*seconds.values(), exact)]
        lines.append([label, *(f"{each:,.0f}" for each in times), f"{share:.0%}"])
        if shape == GPU_SHAPES[-1] and share < PEAK_BAR:
            failures.append(f"{label}: {share:.0%} of the peak")
        columns = ["chains x width / units", *(f"ULA {name}" for name in seconds), "CN", "share"]
    if lines:
        fails = f"the share of the peak is below {PEAK_BAR:.0%} at the largest shape"
        print_table("tanh: microseconds of a step", columns, lines, fails, failures)


def print_updates(store, shapes, budget, on_time):
    """Print updates of the published form beside the other libraries."""
    lines, failures = [], []
    for shape in on_time(shapes, "published updates"):
        key, label = "x".join(map(str, shape)), "{:,} x {} / {}".format(*shape)
        row = store.row(f"gpu published {key}", partial(published_row, shape, budget))
        seconds = row["seconds"]
        own, rivals = seconds["sklvebm"], [seconds[name] for name in LIBRARIES if seconds[name]]
        ratio = min(rivals, default=np.nan) / own
        times = ["failed" if each is None else f"{1e3 * each:.2f}" for each in seconds.values()]
        lines.append([label, *times, f"{ratio:.1f}"])
        if shape == GPU_SHAPES[1] and not ratio >= RIVAL_BAR:
            failures.append(f"{label}: {ratio:.1f} times as fast as the faster library")
        failures += [f"{label}: {name}: {said}" for name, said in row["complaints"].items()]
    columns = ["chains x width / units", "sklvebm", *LIBRARIES, "ratio"]
    fails = f"ours is below {RIVAL_BAR:.0f} times the faster library at the second shape"
    print_table("Published update, tanh: milliseconds", columns, lines, fails, failures)


def print_fits(store, is_quick, on_time):
    """Print default fits on the card."""
    n_rows, n_scored, side = (5_000, 10_000, 16) if is_quick else (100_000, 1_000_000, 28)
    fits = {
        f"{n_rows:,} x 20": lambda: fit_row(curved_rows(n_rows, 20), n_scored),
        "digits": lambda: fit_row(load_digits().data, n_components=8),
        f"images of {side} x {side}": lambda: fit_row(
            make_shape_images(500 if is_quick else 2_000, size=side, random_state=0),
            image_shape=(side, side),
        ),
    }
    lines, failures = [], []
    for name in on_time(list(fits), "fits"):
        row = store.row(f"gpu fit {name}", fits[name])
        rate = f"{row['scores a second']:,.0f}" if "scores a second" in row else "–"
        epochs, held = row["epochs"], f"{row['megabytes']:,.0f}"
        lines.append([name, f"{row['fit']:.1f}", epochs, rate, held])
        if name.startswith("100,000") and row["fit"] > 60.0:
            failures.append(f"{name}: {row['fit']:.0f} seconds")
    columns = ["rows", "fit, s", "epochs", "rows scored a second", "megabytes held"]
    fails = "100,000 x 20 takes more than a minute"
    print_table("Default fits", columns, lines, fails, failures)


def until(deadline):
    """Return a function that yields items as long as there is time, and names the others."""

    def on_time(items, what):
        for number, item in enumerate(items):
            if time.perf_counter() > deadline:
                print(f"Not measured, for lack of time: {what} {items[number:]}", flush=True)
                return
            yield item

    return on_time


def run(folder, is_quick):
    """Print all tables that this machine can make."""
    deadline = time.perf_counter() + 60.0 * MINUTES
    store = Store(folder)
    print_header(store)
    counts = store.row("gpu launches", lambda: {"counts": counted_elsewhere()})["counts"]
    if not torch.cuda.is_available():
        print_launches(counts, {})
        print(
            "No CUDA device. Not measured: times of steps, updates and fits, scores of a million "
            "rows, other libraries, memory, the share of the peak, CUDA graphs."
        )
        return
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    budget = 2.0 if is_quick else 6.0
    row = store.row("gpu updates", partial(update_seconds, budget))
    seconds = row["seconds"]
    print_launches(counts, {name: 1e3 * each for name, each in seconds.items()})
    for name in (*RECORDED, "a step of annealing"):
        print(f"{name}, as CUDA graphs: {1e3 * seconds[f'{name}, recorded']:.3f} ms")
    print("\n".join(row["complaints"]) or "Everything was recorded.")
    on_time = until(deadline)
    print_steps(store, GPU_SHAPES[:2] if is_quick else GPU_SHAPES, budget, on_time)
    print_updates(store, GPU_SHAPES[:2] if is_quick else GPU_SHAPES[:-1], budget, on_time)
    print_fits(store, is_quick, on_time)


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes and tables")
    parser.add_argument("--launches", action="store_true", help="count and print JSON")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if options.launches:
        print(json.dumps(count_launches()))
    else:
        run(options.output / "quick" if options.quick else options.output, options.quick)


if __name__ == "__main__":
    main()
