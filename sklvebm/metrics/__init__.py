"""Metrics of fitted densities: distances between samples, and information in latents."""

from sklvebm.metrics.calibration import CalibrationReport, conditional_calibration
from sklvebm.metrics.classifier_two_sample import ClassifierTest, classifier_two_sample_test
from sklvebm.metrics.disentanglement import DCI, dci, mutual_information_gap, sap_score
from sklvebm.metrics.energy_distance import energy_distance
from sklvebm.metrics.factor_recovery import FactorRecovery, factor_recovery
from sklvebm.metrics.kernel_discrepancy import (
    PermutationTest,
    maximum_mean_discrepancy,
    mmd_permutation_test,
)
from sklvebm.metrics.mode_coverage import ModeCoverage, mode_coverage
from sklvebm.metrics.noise_floor import NoiseFloor, noise_floor
from sklvebm.metrics.reconstruction import reconstruction_rmse
from sklvebm.metrics.sinkhorn import sinkhorn_divergence
from sklvebm.metrics.wasserstein import sliced_wasserstein_distance, wasserstein_distance_2

__all__ = [
    "CalibrationReport",
    "ClassifierTest",
    "DCI",
    "FactorRecovery",
    "ModeCoverage",
    "NoiseFloor",
    "PermutationTest",
    "classifier_two_sample_test",
    "conditional_calibration",
    "dci",
    "energy_distance",
    "factor_recovery",
    "maximum_mean_discrepancy",
    "mmd_permutation_test",
    "mode_coverage",
    "mutual_information_gap",
    "noise_floor",
    "reconstruction_rmse",
    "sap_score",
    "sinkhorn_divergence",
    "sliced_wasserstein_distance",
    "wasserstein_distance_2",
]
