"""What all estimators share: parameters, one fit, public methods, stored state."""
