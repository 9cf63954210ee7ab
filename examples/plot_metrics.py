"""
How different are two samples?
==============================

Distances and tests between rows and draws, and scores of latents against known factors. A distance
means something beside what it reads between two halves of one sample: its noise floor.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklvebm import MixtureStack
from sklvebm.datasets import make_concentric_rings, make_coupled_oscillators
from sklvebm.metrics import (
    DCI,
    CalibrationReport,
    ClassifierTest,
    FactorRecovery,
    ModeCoverage,
    NoiseFloor,
    PermutationTest,
    classifier_two_sample_test,
    conditional_calibration,
    dci,
    energy_distance,
    factor_recovery,
    maximum_mean_discrepancy,
    mmd_permutation_test,
    mode_coverage,
    mutual_information_gap,
    noise_floor,
    sap_score,
    sinkhorn_divergence,
    sliced_wasserstein_distance,
    wasserstein_distance_2,
)

X, factors = make_concentric_rings(300, return_factors=True, random_state=0)
model = MixtureStack(max_components=10, random_state=0).fit(X)
drawn = model.sample(300, random_state=0)
distances = {
    "energy distance": energy_distance,
    "maximum mean discrepancy": maximum_mean_discrepancy,
    "sliced Wasserstein": sliced_wasserstein_distance,
    "Wasserstein 2": wasserstein_distance_2,
    "Sinkhorn": sinkhorn_divergence,
}
for name, distance in distances.items():
    floor: NoiseFloor = noise_floor(distance, X, n_splits=4, random_state=0)
    print(f"{name:25s} {distance(X, drawn):8.4f}, floor up to {floor.upper:.4f}")

# %%
# Tests answer by a p-value: small where the samples differ. `mode_coverage` counts the rings.

forest: ClassifierTest = classifier_two_sample_test(X, drawn, random_state=0)
kernel: PermutationTest = mmd_permutation_test(X, drawn, n_permutations=50, random_state=0)
rings = np.abs(factors[:, :1] - [0.5, 1.0, 1.5]).argmin(1)
coverage: ModeCoverage = mode_coverage(X, rings, drawn)
report: CalibrationReport = conditional_calibration(model, X[:60])
print(f"classifier p={forest.p_value:.2f}, kernel p={kernel.p_value:.2f}")
print(f"rings covered {coverage.covered:.0%}, conditionals calibrated: {report.calibrated()}")

# %%
# Factors of coupled oscillators are known. Here, they stand for latents with some noise.

_, known = make_coupled_oscillators(300, return_factors=True, random_state=0)
latents = known + 0.1 * np.random.default_rng(0).normal(size=known.shape)
recovery: FactorRecovery = factor_recovery(latents, known, random_state=0)
scores: DCI = dci(latents, known, random_state=0)
print(f"recovery {recovery.linear.round(2)}, disentanglement {scores.disentanglement:.2f}")
print(f"gap {mutual_information_gap(latents, known):.2f}, SAP {sap_score(latents, known):.2f}")

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", sharex=True, sharey=True)
for ax, rows, title in zip(axes, (X, drawn), ("rows", "draws"), strict=True):
    ax.scatter(*rows.T, s=4)
    ax.set_title(title)
