"""Benchmarks: scripts that are run by hand, and what they share."""
