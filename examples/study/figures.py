"""Figures from kept cells: draws beside the data, and log-likelihoods beside the entropy bound."""

import numpy as np

from study.methods import METHODS
from study.sets import rows_of
from study.tables import trouble

SHOWN = (
    "defaults",
    "published",
    "published, slower",
    "joint CD",
    "VAE",
    "non-amortised VI",
    "hard EM",
    "particle gradient descent",
    "latent EBM",
)
N_ROWS = 1000


def draw(folder, found, sizes):
    """Write both figures; return their names.

    Parameters
    ----------
    folder : path
        Where they go.
    found : dict
        Set to method to the list of its cells, one per seed, None where missing.
    sizes : Sizes
        Of the test rows that are shown.
    """
    import matplotlib

    matplotlib.use("Agg")
    return f"{draw_samples(folder, found, sizes)}\n{draw_scores(folder, found)}"


def slab(X, set_name):
    """Return two columns; of shells a slab around the centre, where a cut shows rings."""
    if set_name != "LCS-3D":
        return X[:, :2]
    return X[abs(X[:, 1]) < 0.4][:, [0, 2]]


def drawn_rows(cells, set_name):
    """Return the draws kept of the first seed, two columns; none where it is missing."""
    first = cells[0] or {}
    return slab(np.array(first["drawn_rows"]), set_name) if "drawn_rows" in first else None


def draw_samples(folder, found, sizes):
    """Draw rows of the test set and of every method's first seed."""
    import matplotlib.pyplot as plt

    shown = {s: {"data": slab(rows_of(s, 0, sizes).test[:N_ROWS], s)} for s in found}
    for set_name, methods in found.items():
        shown[set_name] |= {name: drawn_rows(methods[name], set_name) for name in methods}
    titles = [
        name
        for name in ("data", *SHOWN)
        if any(each.get(name) is not None for each in shown.values())
    ]
    size = (1.8 * len(titles), 1.9 * len(shown))
    figure, panels = plt.subplots(len(shown), len(titles), figsize=size, squeeze=False)
    for place, (set_name, samples) in enumerate(shown.items()):
        reach = 1.25 * abs(samples["data"]).max()
        panels[place, 0].set_ylabel(set_name)
        for panel, title in zip(panels[place], titles, strict=True):
            points = samples.get(title)
            if points is not None:
                panel.scatter(*points.T, s=1.5, lw=0, color="black")
            else:
                reason = trouble(found[set_name].get(title, ())[:1])
                panel.text(0.0, 0.0, reason, ha="center", va="center", fontsize=8)
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            panel.set_aspect("equal")
            if place == 0:
                panel.set_title(title, fontsize=8)
    return saved(figure, folder / "paper_study_draws.png")


def draw_scores(folder, found):
    """Draw how far every method and seed is below the exact log-density of its test rows."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4.0 * len(found), 3.6), squeeze=False)
    names = [n for n in METHODS if any(gaps_of(methods.get(n, ())) for methods in found.values())]
    for place, (set_name, methods) in enumerate(found.items()):
        panel = panels[0, place]
        for height, name in enumerate(names):
            gaps = gaps_of(methods.get(name, ()))
            panel.plot(gaps, [height] * len(gaps), "o", ms=5, alpha=0.6, color="black")
        panel.set(title=set_name, xlabel="nats below the truth", xscale="log")
        panel.set_yticks(range(len(names)), names if place == 0 else [])
        # the same for every set, also where the last methods have no points
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.grid(alpha=0.3)
    return saved(figure, folder / "paper_study_scores.png")


def gaps_of(cells):
    """Return the distances to the truth of finished cells, nats."""
    return [cell["gap"] for cell in cells if cell and "gap" in cell]


def saved(figure, path):
    """Write a figure and return its path."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path
