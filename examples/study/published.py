"""What the paper prints: its Tables 1 and 4 for the three simulated sets, without units.

S. Tang et al., "Particle Dynamics for Latent-Variable Energy-Based Models", Proceedings of Machine
Learning Research 337, 2026. Not given there: whether MMD is squared, its bandwidth, the
regularisation of W2², the units of the ELBO. No table has standard deviations. Two caveats can be
checked here: the ELBO of every method is above minus the entropy of the data, which no normalised
density can be; and NAVI, Hard EM and, on two sets, the VAE have the RMSE of a predictor that
always says the mean.
"""

MEASURES = ("ELBO", "RMSE", "MMD", "W2²")

TABLE_1 = {
    "LCR-2D": {
        "ours": (2.5048, 0.1612, 0.1549, 0.2161),
        "VAE": (2.3038, 0.7585, 0.5712, 1.0821),
        "NAVI": (2.3039, 0.7651, 0.5259, 1.0787),
        "Hard EM": (2.3025, 0.7655, 0.5680, 1.0834),
    },
    "LCS-3D": {
        "ours": (3.4984, 0.1303, 0.0129, 0.2567),
        "VAE": (2.8499, 0.6247, 0.5376, 1.0837),
        "NAVI": (2.8505, 0.6189, 0.5471, 1.0748),
        "Hard EM": (2.8274, 0.6225, 0.5474, 1.0869),
    },
    "HMR-2D": {
        "ours": (5.2234, 0.0375, 0.0012, 0.1663),
        "VAE": (3.1866, 0.8565, 0.3485, 1.1998),
        "NAVI": (3.1813, 1.1890, 0.4843, 1.6820),
        "Hard EM": (3.1850, 1.1881, 0.5620, 1.6739),
    },
}
TABLE_4 = {  # no ELBO there
    "LCR-2D": {
        "Marks-style": (None, 0.0603, 0.0144, 0.0389),
        "Kuntz-style": (None, 2.5331, 0.6116, 8.2686),
        "joint CD": (None, 0.9333, 0.3785, 0.6085),
    },
    "LCS-3D": {
        "Marks-style": (None, 0.1264, 0.0435, 0.0941),
        "Kuntz-style": (None, 2.5704, 0.6176, 14.1360),
        "joint CD": (None, 0.6479, 0.4282, 0.6331),
    },
    "HMR-2D": {
        "Marks-style": (None, 0.0622, 0.0048, 0.0374),
        "Kuntz-style": (None, 2.5576, 0.5763, 8.0292),
        "joint CD": (None, 0.8174, 0.4012, 0.5215),
    },
}


def printed(set_name):
    """Return the printed values of a set: column to measure to number, or None where not given."""
    columns = TABLE_1[set_name] | TABLE_4[set_name]
    return {column: dict(zip(MEASURES, values, strict=True)) for column, values in columns.items()}
