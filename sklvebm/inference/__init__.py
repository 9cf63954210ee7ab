"""Inference with trained energies: posteriors, draws, checks of log Z, products of densities."""
