"""The public estimators: scikit-learn's interface to the numerics below."""
