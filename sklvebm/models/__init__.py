"""Energies, their networks, and the tempered targets that particles follow."""
