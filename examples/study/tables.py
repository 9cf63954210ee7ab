"""Tables from kept cells, in Markdown: medians, worst seeds, what is missing or below a bar."""

import numpy as np

from study.cells import median_and_worst
from study.published import printed
from study.sets import entropy_bound

BARS = {"LCR-2D": -1.36, "LCS-3D": -2.00, "HMR-2D": -1.10}  # median log-likelihood, nats
WAYS = ("mean code", "short-run code", "probe decoder")
COLUMNS = (
    "method",
    "rows",
    "seeds",
    "log-likelihood",
    "to the truth",
    "RMSE",
    "MMD²",
    "W2²",
    "probe RMSE",
    "probe MMD²",
    "probe W2²",
    "draws MMD²",
    "draws W2²",
    "fit s",
)


def markdown(title, columns, lines):
    """Return a table with a title line."""
    cells = [columns, ["---"] * len(columns), *(list(map(str, line)) for line in lines)]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in cells), ""])


def number(value, digits=4):
    """Return a number as text, a dash for None."""
    # adding zero turns a rounded -0.0 into 0.0
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def summary(cells, read, digits=4, best=min):
    """Return median and, with several seeds, the worst in brackets."""
    median, worst, n = median_and_worst(cells, read, best)
    if median is None:
        return "–"
    return number(median, digits) + (f" ({number(worst, digits)})" if n > 1 else "")


def reader(*keys):
    """Return a function that walks down a cell."""

    def read(cell):
        for key in keys:
            cell = cell[key]
        return cell

    return read


def distances_of(cells, *keys):
    """Return summaries of RMSE, MMD² and W2² below `keys`."""
    return [summary(cells, reader(*keys, name)) for name in ("rmse", "mmd", "w2")]


def method_line(name, cells):
    """Return the line of one method from the cells of its seeds."""
    done = [cell for cell in cells if cell and "score" in cell]
    first = done[0] if done else {}
    scored = first.get("n_scored", 0)
    few = f", {scored} scored" if done and scored < 10_000 else ""
    return [
        name,
        f"{first['n_train']}{few}" if done else trouble(cells),
        seeds_of(done, cells),
        summary(done, reader("score"), 3, max),
        summary(done, reader("gap"), 3),
        *distances_of(done, "reconstruction", "mean code"),
        *distances_of(done, "reconstruction", "probe decoder"),
        summary(done, reader("draws", "mmd")),
        summary(done, reader("draws", "w2")),
        summary(done, reader("fit_seconds"), 0),
    ]


def seeds_of(done, cells):
    """Return how many seeds have numbers, and of how many where some have none."""
    n_kept = sum(bool(cell) for cell in cells)
    return f"{len(done)}" + (f" of {n_kept}" if n_kept > len(done) else "")


def trouble(cells):
    """Say why there is no number."""
    kept = [cell for cell in cells if cell]
    if any("timed_out" in cell for cell in kept):
        return f"not in {kept[0].get('timed_out', 0):.0f} s"
    if any("Divergence" in cell.get("error", "") for cell in kept):
        return "diverged"
    return "failed" if kept else "not run"


def paper_lines(set_name):
    """Return the paper's columns as lines; its ELBO is no log-likelihood and stands in brackets."""
    dashes = ["–"] * 4
    return [
        [
            f"paper: {column}",
            "40000",
            "–",
            f"[{number(values['ELBO'])}]" if values["ELBO"] else "–",
            *dashes,
            *(number(values[name]) for name in ("RMSE", "MMD", "W2²")),
            "–",
            "–",
            "–",
        ]
        for column, values in printed(set_name).items()
    ]


def reference_lines(set_name, floor, cells):
    """Return the bound, the constant predictor and the noise floor."""
    constants = [c["constant_rmse"] for row in cells.values() for c in row if c and "score" in c]
    lines = [["entropy bound", "", "", f"{entropy_bound(set_name):.3f}", *[""] * 10]]
    if constants:
        lines.append(["predicts the mean", "", "", "", "", number(constants[0]), *[""] * 8])
    if floor and "mmd" in floor:
        mmd, w2 = (
            f"{number(median)} ({number(lower)} to {number(upper)})"
            for median, lower, upper in (floor["mmd"], floor["w2"])
        )
        label = f"two samples of {floor['n_compared']}"
        lines.append([label, *[""] * 10, mmd, w2, ""])
    return lines


def set_table(set_name, cells, floor):
    """Return the table of one set.

    Parameters
    ----------
    set_name : str
        Which set.
    cells : dict
        Method to the list of its cells, one per seed, None where missing.
    floor : dict or None
        What `measures.floors` returned.
    """
    lines = reference_lines(set_name, floor, cells) + paper_lines(set_name)
    lines += [method_line(name, row) for name, row in cells.items()]
    n_rows = max(len(row) for row in cells.values())
    return markdown(f"### {set_name}, up to {n_rows} seeds: median (worst)", COLUMNS, lines)


def ways_table(set_name, cells):
    """Return reconstruction three ways for the methods that have no decoder."""
    lines = []
    for name, row in cells.items():
        done = [cell for cell in row if cell and "probe decoder" in cell.get("reconstruction", ())]
        if done:
            numbers = [each for w in WAYS for each in distances_of(done, "reconstruction", w)]
            lines.append([name, str(len(done)), *numbers])
    columns = ["method", "seeds"]
    columns += [f"{way}: {name}" for way in WAYS for name in ("RMSE", "MMD²", "W2²")]
    return markdown(f"### {set_name}: reconstruction without and with a decoder", columns, lines)


def missed(set_name, cells):
    """Return sentences on bars that the defaults miss: the log-likelihood, and every baseline.

    Rivals are compared on the seeds that both have, by their distance to the truth where it is
    known: rows of another seed, or fewer of them, are luckier or less lucky.
    """
    ours = cells.get("defaults", [])
    median, _, n = median_and_worst(ours, reader("score"))
    if not n:
        return [f"{set_name}: defaults were not run"]
    found = []
    if median < BARS[set_name]:
        found.append(f"{set_name}: {median:.3f} is below the bar {BARS[set_name]:.2f}")
    for name, row in cells.items():
        leads = [lead(theirs, mine) for theirs, mine in zip(row, ours, strict=True)]
        leads = [each for each in leads if each is not None]
        if leads and np.median(leads) > 0.0:
            found.append(f"{set_name}: {name} is {np.median(leads):.3f} nats ahead of defaults")
    if median > entropy_bound(set_name) + 0.05:
        found.append(f"{set_name}: {median:.3f} is above the entropy bound: an error")
    return found


def lead(theirs, ours):
    """Return by how many nats one cell is ahead of another of the same seed, None if unknown."""
    if not (theirs and ours and "score" in theirs and "score" in ours):
        return None
    if "gap" in theirs and "gap" in ours:
        return ours["gap"] - theirs["gap"]
    return theirs["score"] - ours["score"]
