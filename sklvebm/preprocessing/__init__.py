"""Rows before any model: scaling, splits, rounded values."""
