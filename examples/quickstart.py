"""Fit a density to handwritten digits and compare it with what scikit-learn offers.

    python examples/quickstart.py

Data: scikit-learn's digits, 8 x 8 pixels with 17 grey levels, made continuous with uniform noise
(a density of integers is unbounded); a third of the rows is held out. Every method is fitted to
standardised pixels and reported in nats per image in the units of the pixels. The rivals' settings
are chosen by BIC or by cross-validation on the training rows. Output: tables on the screen and
`examples/output/quickstart.png`.
"""

import platform
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sklvebm import ParticleLVEBM

N_COMPONENTS = 8
N_JOBS = 2  # processes of the searches
MIXTURE_GRID = {
    "n_components": [1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 80],
    "covariance_type": ["full", "tied", "diag", "spherical"],
}
FIGURE = Path(__file__).parent / "output" / "quickstart.png"


def load_rows():
    """Return training and held-out rows with their classes."""
    X, y = load_digits(return_X_y=True)
    X = X + np.random.default_rng(0).uniform(size=X.shape)
    return train_test_split(X, y, test_size=1 / 3, random_state=0, stratify=y)


def mixture_by_bic(X):
    """Return the fitted Gaussian mixture with the lowest BIC."""
    candidates = [
        GaussianMixture(k, covariance_type=kind, random_state=0).fit(X)
        for kind in MIXTURE_GRID["covariance_type"]
        for k in MIXTURE_GRID["n_components"]
    ]
    return min(candidates, key=lambda mixture: mixture.bic(X))


def rivals():
    """Return functions that fit each rival to standardised rows."""
    bandwidths = {"bandwidth": np.geomspace(0.2, 2.0, 12)}
    return {
        f"probabilistic PCA ({N_COMPONENTS})": PCA(N_COMPONENTS).fit,
        f"FactorAnalysis ({N_COMPONENTS})": FactorAnalysis(N_COMPONENTS).fit,
        "GaussianMixture by BIC": mixture_by_bic,
        "GaussianMixture by CV": GridSearchCV(
            GaussianMixture(random_state=0), MIXTURE_GRID, cv=3, n_jobs=N_JOBS
        ).fit,
        "KernelDensity by CV": GridSearchCV(KernelDensity(), bandwidths, cv=5, n_jobs=N_JOBS).fit,
    }


def settings_of(fitted):
    """Say what a search settled on."""
    if isinstance(fitted, GridSearchCV):
        return ", ".join(
            f"{value:.2g}" if isinstance(value, float) else str(value)
            for value in fitted.best_params_.values()
        )
    if isinstance(fitted, GaussianMixture):
        return f"{fitted.covariance_type}, {fitted.n_components}"
    return ""


def compare_densities(X_train, X_test):
    """Print held-out log-likelihoods; return our fitted model."""
    print(f"\n{'held-out log-likelihood':32s} {'nats/image':>10s} {'seconds':>8s}", flush=True)
    scaler = StandardScaler().fit(X_train)
    jacobian = -np.log(scaler.scale_).sum()
    for name, fit in rivals().items():
        begin = time.perf_counter()
        # their matrices are small: more threads wait for each other, and take up to four times as
        # long where other processes run
        with threadpool_limits(1):
            fitted = fit(scaler.transform(X_train))
        best = getattr(fitted, "best_estimator_", fitted)
        # KernelDensity.score is a sum over rows, all others are means
        value = best.score_samples(scaler.transform(X_test)).mean() + jacobian
        seconds = time.perf_counter() - begin
        print(f"{name:32s} {value:10.2f} {seconds:8.1f}  {settings_of(fitted)}", flush=True)
    begin = time.perf_counter()
    model = ParticleLVEBM(N_COMPONENTS, random_state=0, verbose=10).fit(X_train)
    value = model.score(X_test)
    seconds = time.perf_counter() - begin
    log_z = model.log_partition_
    print(
        f"{f'ParticleLVEBM ({N_COMPONENTS})':32s} {value:10.2f} {seconds:8.1f}  "
        f"log Z in [{log_z.lower:.2f}, {log_z.upper:.2f}] +- {log_z.standard_error:.2f}",
        flush=True,
    )
    return model


def compare_latents(model, X_train, y_train, X_test, y_test):
    """Print the accuracy of logistic regression on latents, in pipelines.

    `model` is fitted to the same rows already, and is not fitted again.
    """
    print(f"\n{'accuracy from 8 latents':32s} {'held out':>10s} {'seconds':>8s}", flush=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    latents = {
        "PCA, standardised pixels": make_pipeline(StandardScaler(), PCA(N_COMPONENTS)),
        "PCA, raw pixels": PCA(N_COMPONENTS),
        "ParticleLVEBM": FrozenEstimator(model),
    }
    for name, transformer in latents.items():
        begin = time.perf_counter()
        pipeline = Pipeline([("latents", transformer), ("classifier", clone(classifier))])
        accuracy = pipeline.fit(X_train, y_train).score(X_test, y_test)
        print(f"{name:32s} {accuracy:10.3f} {time.perf_counter() - begin:8.1f}", flush=True)


def search(X_train):
    """Print a small grid search: whether histograms make pixels normal."""
    begin = time.perf_counter()
    untrained = ParticleLVEBM(N_COMPONENTS, max_iter=0, random_state=0)
    grid = GridSearchCV(untrained, {"margins": ["none", "auto"]}, cv=2, n_jobs=N_JOBS).fit(X_train)
    seconds = time.perf_counter() - begin
    print(f"\nGridSearchCV over margins, two folds of 599 rows, {seconds:.1f} s")
    for parameters, value in zip(
        grid.cv_results_["params"], grid.cv_results_["mean_test_score"], strict=True
    ):
        print(f"  {parameters['margins']}: {value:.2f} nats/image")


def draw(model, X_test, y_test):
    """Save a figure of draws, the ELBO curve and the latent map."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    images = model.sample(100, random_state=0).reshape(10, 10, 8, 8)
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    left.imshow(framed.transpose(0, 2, 1, 3).reshape(100, 100), cmap="gray_r", vmin=0, vmax=17)
    left.set(title="100 draws of the model", xticks=[], yticks=[])
    middle.plot(range(1, model.n_iter_ + 1), model.lower_bounds_)
    middle.set(title="ELBO on held-out training rows", xlabel="epoch", ylabel="nats per image")
    plane = PCA(2).fit_transform(model.transform(X_test))
    points = right.scatter(*plane.T, c=y_test, s=8, cmap="tab10")
    right.set(title="posterior means of held-out images", xlabel="first axis", ylabel="second axis")
    figure.colorbar(points, ax=right, ticks=range(10), label="digit")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=110)
    print(f"\nFigure: {FIGURE}")


def main():
    """Run the comparison from data to figure."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    X_train, X_test, y_train, y_test = load_rows()
    print(
        f"digits: {len(X_train)} training rows, {len(X_test)} held out, {X_train.shape[1]} pixels; "
        f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    )
    model = compare_densities(X_train, X_test)
    compare_latents(model, X_train, y_train, X_test, y_test)
    search(X_train)
    draw(model, X_test, y_test)


if __name__ == "__main__":
    main()
