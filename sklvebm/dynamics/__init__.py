"""How particles move: one file per equation of motion, torch only.

Persistent contrastive divergence, the published particle algorithm and tempered sampling differ
only in the kernel (`langevin`) and in the number of temperatures (`tempering`).
"""
