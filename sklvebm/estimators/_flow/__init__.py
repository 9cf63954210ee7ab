"""Potential flows: fit, normalisation, results."""
