"""Latent-variable energy-based models behind scikit-learn's interface."""

from sklvebm.applications.conditions import sample_within
from sklvebm.applications.imputer import ParticleImputer
from sklvebm.applications.outliers import DensityOutlierDetector
from sklvebm.checkpointing import checkpoints
from sklvebm.communication import distributed
from sklvebm.deprecation import Renamed as _Renamed
from sklvebm.deprecation import renamed_names as _renamed_names
from sklvebm.estimators.composition import ComposedEnergy, compose
from sklvebm.estimators.inference_data import to_inference_data
from sklvebm.estimators.interpolation import interpolate
from sklvebm.estimators.margins import GaussianMargins
from sklvebm.estimators.mixture_stack import MixtureStack
from sklvebm.estimators.particle_lvebm import ParticleLVEBM
from sklvebm.estimators.potential_flow_ebm import PotentialFlowEBM
from sklvebm.estimators.transformed_density import TransformedDensity
from sklvebm.estimators.wasserstein_flow_ebm import WassersteinFlowEBM
from sklvebm.exceptions import ParticleDivergenceError
from sklvebm.latent_maps.maps import KernelLatentMap, PerceptronLatentMap
from sklvebm.mixtures.reference import MixtureReference
from sklvebm.models.convolutions import ConvEnergy, ConvLayerEnergy
from sklvebm.models.embeddings import PeriodicEnergy
from sklvebm.models.energies import (
    AnchoredEnergy,
    BridgedEnergy,
    Energy,
    FeatureEnergy,
    LinearGaussianEnergy,
    MappedEnergy,
    MLPEnergy,
)
from sklvebm.models.ensembles import EnsembleEnergy
from sklvebm.persistence.folders import load_model, save_model
from sklvebm.preprocessing.dequantization import dequantize, resolution
from sklvebm.row_sources import RowSource, open_rows
from sklvebm.smc.log_partition import LogPartition
from sklvebm.versions import show_versions

__version__ = "0.2.0"

__all__ = [
    "AnchoredEnergy",
    "BridgedEnergy",
    "ComposedEnergy",
    "ConvEnergy",
    "ConvLayerEnergy",
    "DensityOutlierDetector",
    "Energy",
    "EnsembleEnergy",
    "FeatureEnergy",
    "GaussianMargins",
    "KernelLatentMap",
    "LinearGaussianEnergy",
    "LogPartition",
    "MLPEnergy",
    "MappedEnergy",
    "MixtureReference",
    "MixtureStack",
    "ParticleDivergenceError",
    "ParticleImputer",
    "ParticleLVEBM",
    "PerceptronLatentMap",
    "PeriodicEnergy",
    "PotentialFlowEBM",
    "RowSource",
    "TransformedDensity",
    "WassersteinFlowEBM",
    "checkpoints",
    "compose",
    "dequantize",
    "distributed",
    "interpolate",
    "load_model",
    "open_rows",
    "resolution",
    "sample_within",
    "save_model",
    "show_versions",
    "to_inference_data",
]

_RENAMED = {
    "ChartedEnergy": _Renamed("MappedEnergy", "0.3"),
    "KernelChart": _Renamed("KernelLatentMap", "0.3"),
    "PerceptronChart": _Renamed("PerceptronLatentMap", "0.3"),
}
__getattr__ = _renamed_names(__name__, _RENAMED, globals())
