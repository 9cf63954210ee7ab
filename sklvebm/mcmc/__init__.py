"""Markov chain Monte Carlo: Langevin kernels, tempering, adaptation, diagnostics of chains."""
