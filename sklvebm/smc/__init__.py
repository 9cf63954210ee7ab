"""Sequential Monte Carlo: annealing, resampling, ratios of normalisers, the bracket of log Z."""
