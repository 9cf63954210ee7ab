"""Flows from noise to data: integrators, marginals of the interpolant, potentials."""
