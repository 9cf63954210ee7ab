"""One Langevin step beside torchebm, ebmkit and a plain autograd loop, on one density.

    python examples/benchmarks/langevin_step.py               # about eight minutes
    python examples/benchmarks/langevin_step.py --quick       # few repeats: two minutes
    python examples/benchmarks/langevin_step.py --gpu         # CUDA shapes as well
    python examples/benchmarks/langevin_step.py --output DIR  # where finished rows go

Every row is one interleaved run: contestants take turns, a few steps each, and the shortest turn
counts, so that what else the machine does hits all of them alike. With one thread, time is the
processor time of this process, which other processes do not enter; with two threads, and on a GPU,
it is wall time. The peak is the highest rate of multiply-adds that BLAS or oneDNN reach at one of
the matrix products of the step, measured in the same turns. It counts what a step cannot do
without: products with the weights, forwards and backwards.
"""

import argparse
import math
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from langevin_rivals import contestants, largest_disagreement, our_energy
from report import RESULTS, Store, package_versions, print_header, print_table

# chains, coordinates, width of both hidden layers
SHAPES = ((256, 2, 64), (1024, 4, 128), (2000, 10, 128), (10_000, 10, 128), (10_000, 64, 256))
GPU_SHAPES = (*SHAPES, (100_000, 64, 512))
KERNELS = ("ULA", "MALA")
# least ratio to the faster library at any shape, and least geometric mean of these
BARS = {"ULA": (1.5, 1.8), "MALA": (2.0, 2.0)}
PEAK_SHAPE, PEAK_BAR = (10_000, 64, 256), 0.6
LIBRARIES = ("torchebm", "ebmkit")
# steps of a turn; ours, and the loop of MALA, spend one gradient more to start with
FEWEST_STEPS, MOST_STEPS = 10, 100
TURN_WORK = 5e8  # multiply-adds of a turn, within these limits
FEWEST_TURNS = 5
PRODUCT_ROWS = 2000


def clock(n_threads, device):
    """Return the clock that suits a row."""
    if device == "cuda":

        def synchronised():
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    return time.process_time if n_threads == 1 else time.perf_counter


def shortest_turns(runners, now, budget):
    """Return seconds of the shortest turn of each runner; they take turns for `budget` seconds."""
    shortest, end, n_turns = dict.fromkeys(runners, math.inf), time.perf_counter() + budget, 0
    while n_turns < FEWEST_TURNS or time.perf_counter() < end:
        n_turns += 1
        for name, run in runners.items():
            begin = now()
            run()
            shortest[name] = min(shortest[name], now() - begin)
    return shortest


def repeated(run, n_times):
    """Call a function and drop what it returns."""
    for _ in range(n_times):
        run()


def product_runners(shape, device, repeats):
    """Return the products of a step, by each library, with their multiply-adds.

    Of all chains at once and of 2,000 at a time, whose results stay in the cache.
    """
    n_chains, width, hidden = shape
    runners, counts = {}, {}
    for n_in, n_out in ((width, hidden), (hidden, hidden), (hidden, width)):
        for n_rows in sorted({n_chains, min(n_chains, PRODUCT_ROWS)}):
            rows = torch.randn(n_rows, n_in, device=device)
            weight = torch.randn(n_out, n_in, device=device)
            libraries = {"BLAS": partial(torch.mm, rows, weight.T)}
            if device == "cpu" and torch.backends.mkldnn.is_available():
                opaque = rows.to_mkldnn(), weight.to_mkldnn()
                libraries["oneDNN"] = partial(torch._C._nn.mkldnn_linear, *opaque)
            for library, run in libraries.items():
                name = f"{library} {n_rows}x{n_in}x{n_out}"
                runners[name] = lambda run=run: repeated(run, repeats)
                counts[name] = repeats * n_rows * n_in * n_out
    return runners, counts


def step_row(kernel, shape, activation, n_threads, device, budget):
    """Time one step of all contestants and the products that it consists of."""
    n_chains, width, hidden = shape
    threads = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        energy = our_energy(width, hidden, activation, device)
        generator = torch.Generator(device).manual_seed(1)
        u = torch.randn(n_chains, width, generator=generator, device=device)
        disagreement = largest_disagreement(energy, u)
        multiply_adds = 2 * n_chains * (width * hidden + hidden * hidden)
        n_steps = min(MOST_STEPS, max(FEWEST_STEPS, round(TURN_WORK / multiply_adds)))
        runners = {
            name: partial(run, u, n_steps, generator)
            for name, run in contestants(kernel, energy).items()
        }
        products, counts = product_runners(shape, device, n_steps)
        seconds = shortest_turns({**runners, **products}, clock(n_threads, device), budget)
    finally:
        torch.set_num_threads(threads)
    peak = max(counts[name] / seconds[name] for name in products)
    return {
        "seconds": {name: seconds[name] / n_steps for name in runners},
        "disagreement": disagreement,
        # ours spends one gradient before the first step
        "rate": multiply_adds * (n_steps + 1) / seconds["sklvebm"],
        "peak": peak,
    }


def line_of(shape, row):
    """Return the cells of one row, and its ratio to the faster library."""
    seconds = row["seconds"]
    fastest = min(seconds[name] for name in LIBRARIES if name in seconds)
    ratio = fastest / seconds["sklvebm"]
    share = row["rate"] / row["peak"]
    label = "{:,} x {} / {}".format(*shape)
    times = [f"{1e6 * seconds[name]:,.0f}" for name in seconds]
    cells = [label, *times, f"{ratio:.2f}", f"{row['peak'] / 1e9:.0f}", f"{share:.0%}"]
    return cells, ratio, share


def failures_of(kernel, shapes, ratios, shares, rows, judged):
    """Return what missed its bar; rows of two threads under load are read, not judged."""
    least, least_mean = BARS[kernel]
    found = [
        f"{shape}: gradients differ by {row['disagreement']:.1e}"
        for shape, row in zip(shapes, rows, strict=True)
        if not row["disagreement"] < 1e-5
    ]
    if not judged:
        return found
    found += [
        f"{shape}: ratio {ratio:.2f}"
        for shape, ratio in zip(shapes, ratios, strict=True)
        if ratio < least
    ]
    if geometric_mean(ratios) < least_mean:
        found.append(f"geometric mean {geometric_mean(ratios):.2f}")
    if kernel == "ULA" and PEAK_SHAPE in shapes:
        share = shares[shapes.index(PEAK_SHAPE)]
        if share < PEAK_BAR:
            found.append(f"{PEAK_SHAPE}: {share:.0%} of the peak")
    return found


def geometric_mean(values):
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def run(shapes, activations, threads, device, budget, folder):
    """Print one table per kernel, activation and number of threads."""
    store = Store(folder)
    print_header(store)
    print(package_versions("torchebm", "ebmkit"))
    for n_threads in threads:
        for activation in activations:
            for kernel in KERNELS:
                where = f"{n_threads} thread{'s' * (n_threads > 1)}" if device == "cpu" else device
                key = f"step {kernel} {activation} {where}"
                rows = [
                    store.row(
                        f"{key} {'x'.join(map(str, shape))}",
                        partial(step_row, kernel, shape, activation, n_threads, device, budget),
                    )
                    for shape in shapes
                ]
                lines, ratios, shares = zip(*map(line_of, shapes, rows), strict=True)
                mean = geometric_mean(ratios)
                print_table(
                    f"{kernel}, {activation}, {where}: microseconds per step",
                    ["chains x width / units", *rows[0]["seconds"], "ratio", "peak, G/s", "share"],
                    [
                        *lines,
                        ["geometric mean", *[""] * len(rows[0]["seconds"]), f"{mean:.2f}", "", ""],
                    ],
                    "the ratio to the faster library or the share of the peak misses its bar"
                    if n_threads == 1
                    else "gradients differ",
                    failures_of(kernel, shapes, ratios, shares, rows, n_threads == 1),
                )


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, one thread, tanh")
    parser.add_argument("--gpu", action="store_true", help="also on CUDA; skipped without one")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of finished rows")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if options.quick:
        run(SHAPES, ("tanh",), (1,), "cpu", 8.0, options.output / "quick")
    else:
        run(SHAPES, ("tanh", "silu"), (1, 2), "cpu", 6.0, options.output)
    if options.gpu and torch.cuda.is_available():
        run(GPU_SHAPES, ("tanh",), (1,), "cuda", 10.0, options.output)
    elif options.gpu:
        print("No CUDA device: nothing was run on a GPU.")


if __name__ == "__main__":
    main()
