"""Standardisation of rows, quantised values, and held-out rows."""
