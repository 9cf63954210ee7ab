"""What only potential flows have: the family of `PotentialFlowEBM`."""
