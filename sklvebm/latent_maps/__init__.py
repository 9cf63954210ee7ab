"""Nonlinear coordinates of the latents, and their fit."""
