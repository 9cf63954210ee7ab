"""Deterministic flows: potentials, their ordinary differential equation, their explicit energy."""
