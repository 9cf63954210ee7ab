"""What a trained energy implies: posteriors, draws, products, independent checks of log Z."""
