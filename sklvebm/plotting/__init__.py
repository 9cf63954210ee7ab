"""Pictures of fitted densities, with the interface of scikit-learn's displays."""

from sklvebm.plotting.calibration import CalibrationDisplay
from sklvebm.plotting.density import DensityDisplay
from sklvebm.plotting.energy import EnergyDisplay
from sklvebm.plotting.imputation import ImputationDisplay
from sklvebm.plotting.latents import LatentDisplay
from sklvebm.plotting.outliers import OutlierDisplay
from sklvebm.plotting.samples import SampleComparisonDisplay
from sklvebm.plotting.training import TrainingDisplay

__all__ = [
    "CalibrationDisplay",
    "DensityDisplay",
    "EnergyDisplay",
    "ImputationDisplay",
    "LatentDisplay",
    "OutlierDisplay",
    "SampleComparisonDisplay",
    "TrainingDisplay",
]
