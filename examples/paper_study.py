"""The paper's comparison, run again: densities, reconstructions, factors, ablations, figures.

    python examples/paper_study.py --quick               # every column on a few rows: two minutes
    python examples/paper_study.py                       # 40,000 rows, five seeds: most of a day
    python examples/paper_study.py --seeds 1 --only defaults VAE --sets LCR-2D
    python examples/paper_study.py --parts factors       # or tables, bounds, ablations, figures
    python examples/paper_study.py --limit 600           # processor seconds a cell may take
    python examples/paper_study.py --report              # what is kept, nothing is computed
    python examples/paper_study.py --output DIR          # where cells, tables and figures go

Tables 1 and 4 of S. Tang et al., "Particle Dynamics for Latent-Variable Energy-Based Models", PMLR
337, 2026, on its three simulated sets, 40,000 training and 10,000 test rows of new draws for each
seed. Every (set, method, seed) is one JSON file that is not computed again; one that exceeds the
limit is kept as such and tried again under a longer limit. No seed is dropped.
docs/benchmarks/paper_study.md discusses the results.
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import torch
from benchmarks.report import print_header
from study import ablations, bounds, factors, figures, tables
from study.cells import Cells
from study.measures import floors, measured, truth
from study.methods import COLUMNS, METHODS
from study.sets import QUICK, SETS, Sizes

RESULTS = Path(__file__).parent / "output" / "paper_study"
PARTS = ("tables", "bounds", "factors", "ablations", "figures")


def set_cells(cells, set_name, methods, seeds, sizes):
    """Return method to the list of its cells, one per seed, with the distance to the truth."""
    found = {
        name: [
            cells.cell(f"{set_name} {name} seed{s}", partial(measured, name, set_name, s, sizes))
            for s in range(seeds)
        ]
        for name in methods
    }
    for seed in range(seeds):
        exact = cells.cell(f"{set_name} truth seed{seed}", partial(truth, set_name, seed, sizes))
        for row in found.values():
            if exact and row[seed] and "score" in row[seed]:
                row[seed]["gap"] = exact["truth"][str(row[seed]["n_scored"])] - row[seed]["score"]
    return found


def paper_tables(cells, sets, methods, seeds, sizes):
    """Return the tables of all sets and what missed its bar; fewer seeds of all sets come first."""
    for n in range(1, seeds):  # all methods have a seed before any has two
        for set_name in sets:
            set_cells(cells, set_name, methods, n, sizes)
    text, misses = [], []
    for set_name in sets:
        found = set_cells(cells, set_name, methods, seeds, sizes)
        floor = cells.cell(f"{set_name} floors", partial(floors, set_name, sizes))
        text += [tables.set_table(set_name, found, floor), tables.ways_table(set_name, found)]
        misses += tables.missed(set_name, found)
    verdict = "\n".join(f"MISSED {miss}" for miss in misses) or "No bar is missed."
    return "\n".join([*text, verdict, ""])


def paper_figures(options, sizes):
    """Draw what is kept; return the names of the files."""
    kept = Cells(options.output, compute=False)
    found = {s: set_cells(kept, s, options.only, options.seeds, sizes) for s in options.sets}
    return figures.draw(options.output, found, sizes)


def run(options, sizes):
    """Compute what is missing, print the tables and write them beside the cells."""
    cells = Cells(options.output, options.limit, compute=not options.report)
    print_header(cells.store)
    made = {
        "tables": partial(paper_tables, cells, options.sets, options.only, options.seeds, sizes),
        "bounds": partial(bounds.table, cells, options.sets, options.seeds, sizes),
        "factors": partial(factors.tables, cells, options.seeds, sizes),
        "ablations": partial(ablations.table, cells, options.seeds, sizes, options.lines),
        "figures": partial(paper_figures, options, sizes),
    }
    for part in options.parts:
        text = made[part]()
        print(f"\n{text}", flush=True)
        (options.output / f"{part}.md").write_text(text)


def main(arguments=None):
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lines = (*ablations.SETTINGS, *ablations.PUBLISHED_CHANGES)
    parser.add_argument("--quick", action="store_true", help="few rows, one seed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to make")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=tuple(SETS), help="data sets")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=COLUMNS, help="methods")
    parser.add_argument(
        "--lines", nargs="+", metavar="LINE", choices=lines, help="lines of ablations"
    )
    parser.add_argument("--seeds", type=int, help="seeds of each cell; 5, or 1 with --quick")
    parser.add_argument("--limit", type=float, help="processor seconds that a cell may take")
    parser.add_argument("--report", action="store_true", help="print what is kept")
    parser.add_argument("--output", type=Path, help="folder of cells, tables and figures")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.quick else 5)
    options.output = options.output or (RESULTS / "quick" if options.quick else RESULTS)
    warnings.simplefilter("ignore")
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    run(options, QUICK if options.quick else Sizes())


if __name__ == "__main__":
    main()
