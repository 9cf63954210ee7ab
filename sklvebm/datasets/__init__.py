"""Data sets with known factors, some with known density and entropy: shapes, images, physics."""

from sklvebm.datasets.concentric_rings import (
    concentric_rings_entropy,
    concentric_rings_log_density,
    make_concentric_rings,
)
from sklvebm.datasets.concentric_shells import (
    concentric_shells_entropy,
    concentric_shells_log_density,
    make_concentric_shells,
)
from sklvebm.datasets.coupled_oscillators import make_coupled_oscillators
from sklvebm.datasets.double_well import (
    double_well_entropy,
    double_well_log_density,
    make_double_well,
)
from sklvebm.datasets.harmonic_rings import (
    harmonic_rings_entropy,
    harmonic_rings_log_density,
    make_harmonic_rings,
)
from sklvebm.datasets.kepler import make_kepler_orbits
from sklvebm.datasets.lorenz import make_lorenz
from sklvebm.datasets.pendulum import make_pendulum
from sklvebm.datasets.shape_images import make_shape_images

__all__ = [
    "concentric_rings_entropy",
    "concentric_rings_log_density",
    "concentric_shells_entropy",
    "concentric_shells_log_density",
    "double_well_entropy",
    "double_well_log_density",
    "harmonic_rings_entropy",
    "harmonic_rings_log_density",
    "make_concentric_rings",
    "make_concentric_shells",
    "make_coupled_oscillators",
    "make_double_well",
    "make_harmonic_rings",
    "make_kepler_orbits",
    "make_lorenz",
    "make_pendulum",
    "make_shape_images",
]
