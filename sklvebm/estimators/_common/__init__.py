"""Parts that all families of estimators share."""
