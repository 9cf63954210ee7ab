"""Nonlinear maps from rows to latents, and their selection."""
