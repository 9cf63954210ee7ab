"""Do latents know the true factors, and does each know one? Rings, orbits, oscillators.

R² by nearest neighbours asks whether a factor is in the latents at all, by linear regression
whether it is a direction; DCI and the mutual information gap ask whether single latents hold single
factors. All on held-out rows.
"""

import time
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import ParticleLVEBM, datasets
from sklvebm.metrics import dci, factor_recovery, mutual_information_gap
from study.cells import median_and_worst
from study.methods import BASELINES
from study.tables import markdown, reader


class FactorSet(NamedTuple):
    """Rows with known factors."""

    draw: object
    n_latents: int
    names: tuple
    circular: tuple  # factors that are angles


FACTOR_SETS = {
    "rings": FactorSet(datasets.make_concentric_rings, 2, ("radius", "angle"), (1,)),
    "orbits": FactorSet(
        datasets.make_kepler_orbits, 3, ("energy", "angular momentum", "phase"), (2,)
    ),
    "oscillators": FactorSet(
        datasets.make_coupled_oscillators,
        4,
        ("amplitude 1", "amplitude 2", "phase 1", "phase 2"),
        (2, 3),
    ),
}


def transformers(n_latents, seed, max_iter):
    """Return the methods that are compared, unfitted."""
    limit = {} if max_iter is None else {"max_iter": max_iter}
    ours = partial(ParticleLVEBM, n_latents, random_state=seed, **limit)
    return {
        "the rows themselves": StandardScaler(),
        "PCA": make_pipeline(StandardScaler(), PCA(n_latents)),
        "factor analysis": make_pipeline(StandardScaler(), FactorAnalysis(n_latents)),
        **{name: make(n_latents, random_state=seed, **limit) for name, make in BASELINES.items()},
        "ParticleLVEBM": ours(),
    }


def recovered(set_name, name, seed, sizes):
    """Fit one method to one seed; return how well its latents of held-out rows know the factors."""
    chosen = FACTOR_SETS[set_name]
    X = chosen.draw(sizes.n_factor_train, random_state=51_000 + seed)
    test, factors = chosen.draw(
        sizes.n_factor_test, return_factors=True, random_state=52_000 + seed
    )
    model = transformers(chosen.n_latents, seed, sizes.max_iter)[name]
    begin = time.process_time()
    model.fit(X)
    seconds = time.process_time() - begin
    latents = model.transform(test)
    r2 = factor_recovery(latents, factors, circular=chosen.circular, random_state=0)
    shares = dci(latents, factors, circular=chosen.circular, random_state=0)
    found = {
        "n_train": len(X),
        "fit_seconds": seconds,
        "linear": r2.linear,
        "nearest_neighbours": r2.nearest_neighbours,
        "disentanglement": shares.disentanglement,
        "gap": mutual_information_gap(latents, factors),
    }
    if hasattr(model, "improved_"):
        found["improved"] = bool(model.improved_)
    return found


def tables(cells, seeds, sizes):
    """Return a table for each set: medians over seeds."""
    text = []
    for set_name, chosen in FACTOR_SETS.items():
        lines = []
        for name in transformers(chosen.n_latents, 0, None):
            row = [
                cells.cell(
                    f"factors {set_name} {name} seed{seed}",
                    partial(recovered, set_name, name, seed, sizes),
                )
                for seed in range(seeds)
            ]
            lines.append(line_of(name, [cell for cell in row if cell and "gap" in cell], chosen))
        columns = ["latents of", "seeds"]
        columns += [f"{each}: linear, neighbours" for each in chosen.names]
        title = f"### {set_name}, {chosen.n_latents} latents: R² of the factors, median over seeds"
        text.append(markdown(title, [*columns, "DCI", "gap", "fit s"], lines))
    return "\n".join(text)


def line_of(name, cells, chosen):
    """Return the line of one method; a dash where nothing was computed."""
    if not cells:
        return [name, "0", *["–"] * (len(chosen.names) + 3)]

    def middle(*keys):
        return median_and_worst(cells, reader(*keys))[0]

    def share(kind, k):  # a negative R² is as good as none
        return f"{np.clip(middle(kind, k), 0.0, 1.0):.2f}"

    pairs = [
        f"{share('linear', k)}, {share('nearest_neighbours', k)}" for k in range(len(chosen.names))
    ]
    rest = [
        f"{middle('disentanglement'):.2f}",
        f"{middle('gap'):.2f}",
        f"{middle('fit_seconds'):.0f}",
    ]
    return [name, str(len(cells)), *pairs, *rest]
