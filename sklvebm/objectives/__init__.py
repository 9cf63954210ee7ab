"""What the parameters of an energy descend; one file per paper.

Persistent contrastive divergence is the particle likelihood with one temperature and without
latents; the published latent-variable algorithm is the same with latents.
"""
