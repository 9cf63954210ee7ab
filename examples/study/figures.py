"""Figures from kept cells: draws beside the data, and log-likelihoods beside the entropy bound."""

import json

from study.methods import METHODS
from study.sets import entropy_bound, rows_of

SHOWN = (
    "defaults",
    "published",
    "joint CD",
    "VAE",
    "non-amortised VI",
    "hard EM",
    "particle gradient descent",
    "latent EBM",
)
N_ROWS = 1000


def kept_cells(folder, set_name, name):
    """Return the finished cells of one method, by seed."""
    file = f"{set_name} {name} seed*.json".replace(" ", "-")
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob(file))]
    return [cell for cell in cells if "score" in cell]


def draw(folder, sets, sizes, limit=None):
    """Write both figures; return their names."""
    import matplotlib

    matplotlib.use("Agg")
    made = [draw_samples(folder, sets, sizes), draw_scores(folder, sets)]
    return "\n".join(str(path) for path in made if path)


def slab(X, set_name):
    """Return two columns; of shells a slab around the centre, where a cut shows rings."""
    if set_name != "LCS-3D":
        return X[:, :2]
    return X[abs(X[:, 1]) < 0.3][:, [0, 2]]


def draw_samples(folder, sets, sizes):
    """Draw rows of the test set and of every method's first seed."""
    import matplotlib.pyplot as plt
    import numpy as np

    found = {name: [kept_cells(folder, s, name) for s in sets] for name in SHOWN}
    found = {name: cells for name, cells in found.items() if any(cells)}
    figure, panels = plt.subplots(
        len(sets), 1 + len(found), figsize=(2.0 * (1 + len(found)), 2.1 * len(sets)), squeeze=False
    )
    for row, set_name in zip(panels, sets, strict=True):
        rows = slab(rows_of(set_name, 0, sizes).test[:N_ROWS], set_name)
        reach = 1.25 * abs(rows).max()
        row[0].set_ylabel(set_name)
        shown = [("data", rows)]
        for name, cells in found.items():
            first = cells[sets.index(set_name)][:1]
            drawn = [np.array(cell["drawn_rows"]) for cell in first if "drawn_rows" in cell]
            shown.append((name, slab(drawn[0], set_name) if drawn else np.empty((0, 2))))
        for panel, (name, points) in zip(row, shown, strict=True):
            panel.scatter(*points.T, s=1.5, lw=0, color="black")
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            panel.set_aspect("equal")
            if row is panels[0]:
                panel.set_title(name, fontsize=8)
    figure.tight_layout()
    path = folder / "paper_study_draws.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def draw_scores(folder, sets):
    """Draw the log-likelihood of every method and seed below the entropy bound."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(sets), figsize=(4.0 * len(sets), 3.4), squeeze=False)
    names = [name for name in METHODS if any(kept_cells(folder, s, name) for s in sets)]
    for panel, set_name in zip(panels[0], sets, strict=True):
        bound = entropy_bound(set_name)
        for height, name in enumerate(names):
            gaps = [bound - cell["score"] for cell in kept_cells(folder, set_name, name)]
            panel.plot(gaps, [height] * len(gaps), "o", ms=5, alpha=0.6, color="black")
        panel.set(title=set_name, xlabel="nats below the entropy bound", xscale="log")
        panel.set_yticks(range(len(names)), names if panel is panels[0][0] else [])
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
    figure.tight_layout()
    path = folder / "paper_study_scores.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
