"""Estimators that put a fitted density to use: imputation and detection of outliers."""
