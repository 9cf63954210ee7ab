"""Fitted estimators in a folder: arrays in a safetensors file, everything else as JSON."""
