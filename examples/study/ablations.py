"""What single particle settings are worth, and the time that each costs.

On LCR-2D, 10,000 rows and draws that the tables do not use. The first lines are anchored on one
Gaussian: the default reference is so good in the plane that training hardly changes it, and every
setting would look alike. Then the published algorithm with its number of epochs, which on so few
rows is a quarter of its updates. Every line differs from the first of its kind in what it names.
"""

import time
import warnings
from functools import partial

from sklvebm import ParticleLVEBM
from study.methods import published
from study.sets import rows_of
from study.tables import markdown, reader, seeds_of, summary, trouble

SET = "LCR-2D"
N_TRAIN, N_SCORED = 10_000, 2000
PLAIN = {"n_temperatures": 1, "dynamics": "ula"}
SETTINGS = {
    "anchored on one Gaussian": {},
    "1 latent": {"n_components": 1},
    "4 posterior particles": {"n_particles": 4},
    "16 posterior particles": {"n_particles": 16},
    "pool of 32 per temperature": {"n_chains": 32},
    "pool of 512 per temperature": {"n_chains": 512},
    "1 Langevin step": {"n_langevin_steps": 1},
    "5 Langevin steps": {"n_langevin_steps": 5},
    "10 Langevin steps": {"n_langevin_steps": 10},
    "1 temperature": {"n_temperatures": 1},
    "2 temperatures": {"n_temperatures": 2},
    "8 temperatures": {"n_temperatures": 8},
    "MALA": {"dynamics": "mala"},
    "Leimkuhler-Matthews, step 0.01": {"dynamics": "leimkuhler-matthews", "step_size": 0.01},
    "unadjusted, step 0.01": {"dynamics": "ula", "step_size": 0.01},
    "unadjusted, step 0.001": {"dynamics": "ula", "step_size": 0.001},
    "unadjusted, step 0.01, 1 temperature": PLAIN | {"step_size": 0.01},
    "unadjusted, step 0.001, 1 temperature": PLAIN | {"step_size": 0.001},
    "unadjusted, step 0.001, 1 temperature, 10 steps": PLAIN
    | {"step_size": 0.001, "n_langevin_steps": 10},
    "contrastive negatives": {"negatives": "contrastive"},
    "contrastive negatives, 10 steps": {"negatives": "contrastive", "n_langevin_steps": 10},
    "anchored on the default ensemble": {"reference": "mixture"},
}
PUBLISHED_CHANGES = {
    "published": {},
    "published, 4 particles": {"n_particles": 4},
    "published, 2 steps": {"n_langevin_steps": 2},
    "published, 30 steps": {"n_langevin_steps": 30},
    "published, step 0.005": {"step_size": 5e-3},
    "published, learning rate 0.0003": {"learning_rate_init": 3e-4},
    "published, learning rate 0.0003, step 0.005": {
        "learning_rate_init": 3e-4,
        "step_size": 5e-3,
    },
    "published, pool of 2048": {"n_chains": 2048},
    "published, step 0.0001": {"step_size": 1e-4},
    "published, MALA": {"dynamics": "mala", "step_size": None},
}


def anchored(changes, seed, sizes):
    """Return the estimator of one line."""
    limit = {} if sizes.max_iter is None else {"max_iter": sizes.max_iter}
    settings = {"n_components": 2, "reference": "gaussian", **limit} | changes
    return ParticleLVEBM(**settings, random_state=seed)


def lines_of(sizes):
    """Return name to a function of the seed that makes the estimator."""
    made = {name: partial(anchored, each, sizes=sizes) for name, each in SETTINGS.items()}
    for name, changes in PUBLISHED_CHANGES.items():
        made[name] = partial(_published, changes, sizes=sizes)
    return made


def _published(changes, seed, sizes):
    return published(SET, seed, sizes, **changes)


def ablated(make, seed, sizes):
    """Fit one line; return its held-out score and its cost."""
    rows = rows_of(SET, 100 + seed, sizes)  # not the rows of the tables
    train, test = rows.train[:N_TRAIN], rows.test[:N_SCORED]
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(seed).fit(train)
    log_z = model.log_partition_
    return {
        "n_train": len(train),
        "fit_seconds": time.process_time() - begin,
        "n_iter": model.n_iter_,
        "improved": bool(model.improved_),
        "bracket": log_z.upper - log_z.lower,
        "verdict": model.diagnostics_.verdict,
        "score": float(model.score_samples(test).mean()),
    }


def table(cells, seeds, sizes, names=None):
    """Return the table of all lines: median and worst seed; compute those named, or all."""
    lines = []
    made = lines_of(sizes)
    # a quick run shows that they run
    wanted = names or list(made)[:: 1 if sizes.max_iter is None else 6]

    def one(name, seed):
        key = f"ablation {name} seed{seed}"
        if name not in wanted:
            return cells.kept(key)
        return cells.cell(key, partial(ablated, made[name], seed, sizes))

    computed = {name: [one(name, seed) for seed in range(seeds)] for name in wanted}
    for name in made:
        row = computed.get(name) or [one(name, seed) for seed in range(seeds)]
        done = [cell for cell in row if cell and "score" in cell]
        lines.append(
            [
                name if done else f"{name}: {trouble(row)}",
                seeds_of(done, row),
                summary(done, reader("score"), 3, max),
                summary(done, reader("bracket"), 2),
                summary(done, lambda cell: cell["n_iter"], 0),
                summary(done, reader("fit_seconds"), 0),
            ]
        )
    columns = ["setting", "seeds", "log-likelihood", "bracket of log Z", "epochs", "fit s"]
    title = f"### Ablations on {SET}, {N_TRAIN} rows: median (worst)"
    return markdown(title, columns, lines)
