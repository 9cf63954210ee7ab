"""Losses for the training loop, and the particles that they move."""
