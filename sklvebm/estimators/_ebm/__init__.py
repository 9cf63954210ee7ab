"""What only energies trained by particles have: `ParticleLVEBM` and `WassersteinFlowEBM`."""
