"""Energies trained with a pool of particles: fit, normalisation, diagnostics, results."""
