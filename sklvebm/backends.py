"""Picks the fast or the plain function for an energy; the only importer of `kernels`."""

from sklvebm.energies import AnchoredEnergy, MLPEnergy, PathEnergy
from sklvebm.gradients import CorrectionAndGrad, autograd_correction_and_grad


def select_correction_and_grad(energy: PathEnergy) -> CorrectionAndGrad:
    """Return the fastest function that computes the correction of `energy` and its gradients.

    Parameters
    ----------
    energy : AnchoredEnergy or BridgedEnergy
        Any energy; those without a hand-derived gradient use automatic differentiation.

    Returns
    -------
    correction_and_grad : callable
        Signature of `gradients.CorrectionAndGrad`; the choice never changes its values beyond
        rounding.
    """
    if isinstance(energy, AnchoredEnergy) and type(energy.network) is MLPEnergy:
        from sklvebm.kernels.mlp import mlp_correction_and_grad

        return mlp_correction_and_grad(energy)
    return autograd_correction_and_grad(energy)
