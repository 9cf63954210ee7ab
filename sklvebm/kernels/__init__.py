"""Faster versions of plain functions, with the same signature; reached through `backends` only."""
