"""Latent-variable energy-based models behind scikit-learn's interface."""

from sklvebm.estimators.composition import ComposedEnergy, compose
from sklvebm.estimators.interpolation import interpolate
from sklvebm.estimators.margins import GaussianMargins
from sklvebm.estimators.particle_lvebm import ParticleLVEBM
from sklvebm.estimators.potential_flow_ebm import PotentialFlowEBM
from sklvebm.estimators.transformed_density import TransformedDensity
from sklvebm.estimators.wasserstein_flow_ebm import WassersteinFlowEBM
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.latent_maps.maps import KernelChart, PerceptronChart
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.convolutions import ConvEnergy, ConvLayerEnergy
from sklvebm.models.energies import (
    AnchoredEnergy,
    BridgedEnergy,
    ChartedEnergy,
    Energy,
    FeatureEnergy,
    LinearGaussianEnergy,
    MLPEnergy,
)
from sklvebm.preprocessing.dequantization import dequantize, resolution
from sklvebm.smc.log_partition import LogPartition
from sklvebm.versions import show_versions

__version__ = "0.1.0"

__all__ = [
    "AnchoredEnergy",
    "BridgedEnergy",
    "ChartedEnergy",
    "ComposedEnergy",
    "ConvEnergy",
    "ConvLayerEnergy",
    "Energy",
    "FeatureEnergy",
    "GaussianMargins",
    "KernelChart",
    "LinearGaussianEnergy",
    "LogPartition",
    "MLPEnergy",
    "MixtureReference",
    "ParticleDivergenceError",
    "ParticleLVEBM",
    "PerceptronChart",
    "PotentialFlowEBM",
    "TransformedDensity",
    "WassersteinFlowEBM",
    "compose",
    "dequantize",
    "interpolate",
    "resolution",
    "show_versions",
]
