"""Nonlinear maps from rows to latents, and when to take which."""
