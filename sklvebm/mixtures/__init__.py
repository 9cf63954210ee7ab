"""Gaussian mixtures: the reference, its components, expectation maximisation, stacking."""
