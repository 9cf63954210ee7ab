"""What is measured of one fitted method: density, reconstruction both ways, draws."""

import time
import warnings
from functools import partial

import numpy as np

from sklvebm.metrics import (
    maximum_mean_discrepancy,
    noise_floor,
    reconstruction_rmse,
    wasserstein_distance_2,
)
from study.methods import METHODS
from study.probe import probe_decoder, short_run_codes
from study.sets import SETS, constant_rmse, rows_of

BANDWIDTHS = (0.1, 0.2, 0.4, 0.8, 1.6)  # units of the data; fixed, so that values compare
N_SHOWN = 1000  # draws kept for the figure
squared_mmd = partial(maximum_mean_discrepancy, bandwidths=BANDWIDTHS)


def squared_wasserstein(X, Y):
    """Return the exact squared Wasserstein distance of equally many rows, squared units."""
    return wasserstein_distance_2(X, Y) ** 2


def distances(X, Y):
    """Return MMD² and W2² between two samples."""
    return {"mmd": squared_mmd(X, Y), "w2": squared_wasserstein(X, Y)}


def compared(X, reconstructed):
    """Return RMSE, MMD² and W2² of rows and their reconstructions."""
    return {"rmse": reconstruction_rmse(X, reconstructed), **distances(X, reconstructed)}


def measured(name, set_name, seed, sizes):
    """Fit one method to the rows of one seed; return everything that is measured of it."""
    method, rows = METHODS[name], rows_of(set_name, seed, sizes)
    train, test = rows.train[: method.most_rows], rows.test[: method.most_scored]
    begin, wall = time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = method.make(set_name, seed, sizes).fit(train)
    cell = {
        "n_train": len(train),
        "fit_seconds": time.process_time() - begin,
        "fit_wall_seconds": time.perf_counter() - wall,
        "constant_rmse": constant_rmse(rows.test),
        **facts(model),
        **score(model, test),
    }
    if method.kind == "density":
        return cell
    return cell | pictures(model, method.kind, train, test, seed, sizes)


def facts(model):
    """Return what an estimator says about its own fit."""
    found = {"n_iter": getattr(model, "n_iter_", None)}
    if hasattr(model, "diagnostics_"):
        log_z = model.log_partition_
        found |= {
            "verdict": model.diagnostics_.verdict,
            "improved": bool(model.improved_),
            "bracket": log_z.upper - log_z.lower,
        }
    if hasattr(model, "fitted_"):
        found["settings"] = model.fitted_.settings
    return found


def score(model, test):
    """Return the mean held-out log-density, its standard error and the number of rows."""
    values = model.score_samples(test)
    return {
        "score": float(values.mean()),
        "score_error": float(values.std() / np.sqrt(len(values))),
        "n_scored": len(values),
    }


def pictures(model, kind, train, test, seed, sizes):
    """Return reconstructions and draws, compared with test rows."""
    X = test[: sizes.n_compared]
    n = len(X)
    made = {"mean code": model.inverse_transform(model.transform(X))}
    if kind == "energy":
        probe_rows = train[: sizes.n_probe]
        codes = short_run_codes(model, X, seed)
        made["short-run code"] = model.inverse_transform(codes)
        decoder = probe_decoder(
            short_run_codes(model, probe_rows, seed + 1), probe_rows, seed, max_iter=sizes.max_iter
        )
        made["probe decoder"] = decoder.predict(codes)
    draws = model.sample(n, random_state=seed)
    return {
        "n_compared": n,
        "reconstruction": {way: compared(X, each) for way, each in made.items()},
        "draws": distances(X, draws),
        "drawn_rows": np.round(draws[:N_SHOWN], 3),
    }


def truth(set_name, seed, sizes):
    """Return the mean exact log-density of the first test rows, for every number that is scored.

    It differs from minus the entropy by the luck of the rows, which a method's score shares.
    """
    numbers = {method.most_scored for method in METHODS.values()} | {sizes.n_test}
    values = SETS[set_name].log_density(rows_of(set_name, seed, sizes).test)
    return {"truth": {str(len(values[:n])): float(values[:n].mean()) for n in numbers if n}}


def floors(set_name, sizes):
    """Return what both distances read between halves of one sample: median, 5 and 95 %."""
    n = min(sizes.n_compared, sizes.n_test // 2)
    X = rows_of(set_name, 900, sizes).test  # a seed that no fit uses
    read = {"n_compared": n}
    for name, metric in (("mmd", squared_mmd), ("w2", squared_wasserstein)):
        floor = noise_floor(metric, X, n_splits=sizes.n_splits, n_rows=n, random_state=0)
        read[name] = [floor.median, floor.lower, floor.upper]
    return read
