"""Energies: networks, references with corrections, how far these reach, targets for kernels."""
