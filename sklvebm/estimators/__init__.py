"""The scikit-learn face: arrays in, arrays out. The only rooms that import scikit-learn."""
