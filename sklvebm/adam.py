r"""Adam with decoupled weight decay, as `torch.optim.AdamW` computes it.

.. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
          v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
          \theta \leftarrow (1 - \eta \lambda) \theta
          - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

torch's optimisers import its compiler when the first of them is made, which takes three seconds of
the first fit of a process. The operation below is theirs: one for all parameters, and one launch on
a GPU.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_EPSILON = 1e-8
# of the cycle: share that rises, and what the rate starts and ends from, in shares of the largest
_RISING, _FIRST_SHARE, _LAST_SHARE = 0.3, 1.0 / 25.0, 1.0 / 25.0 / 1e4
_MOMENTA = 0.85, 0.95


class Adam:
    """Adam on a list of tensors, whose gradients are in their `grad`.

    Parameters
    ----------
    parameters : iterable of Tensor
        Changed in place by every step. One without a gradient stays as it is.
    learning_rate : float
        The rate eta; may be set before any step.
    weight_decay : float, default=0.0
        The decay lambda per unit of learning rate.
    betas : tuple of float, default=(0.9, 0.999)
        The rates beta of both moments.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.parameters = list(parameters)
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.first = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.second = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        # where the parameters are: a step that is recorded must count its replays
        self.count = _count(self.parameters, 0)

    @property
    def n_steps(self) -> int:
        """Return the number of steps taken; the host waits for the device."""
        return int(self.count)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, max_norm: float = math.inf) -> None:
        """Change the parameters by one step; gradients longer than `max_norm` are scaled to it."""
        found = ((i, parameter.grad) for i, parameter in enumerate(self.parameters))
        given = {i: grad for i, grad in found if grad is not None}
        if not given:
            return
        self.count.add_(1.0)
        grads = list(given.values())
        parameters, first, second = (
            [tensors[i] for i in given] for tensors in (self.parameters, self.first, self.second)
        )
        torch._fused_adamw_(
            parameters,
            grads,
            first,
            second,
            [],
            [self.count] * len(grads),
            lr=self.learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=_EPSILON,
            amsgrad=False,
            maximize=False,
            grad_scale=_divisor(grads, max_norm) if max_norm < math.inf else None,
        )

    def state(self) -> dict[str, Any]:
        """Return copies of all that steps depend on besides the parameters."""
        return {
            "first": [moment.clone() for moment in self.first],
            "second": [moment.clone() for moment in self.second],
            "n_steps": self.count.clone(),
            "learning_rate": self.learning_rate,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned, in place; `n_steps` may be a number."""
        for name in ("first", "second"):
            for own, theirs in zip(getattr(self, name), state[name], strict=True):
                own.copy_(theirs)
        steps = state["n_steps"]
        if isinstance(steps, Tensor):
            self.count.copy_(steps)
        else:
            self.count.fill_(float(steps))
        self.learning_rate = state["learning_rate"]

    def to(self, device: torch.device | str) -> None:
        """Move the moments to a device, in place; the parameters are moved by their module."""
        self.first = [moment.to(device) for moment in self.first]
        self.second = [moment.to(device) for moment in self.second]
        self.count = self.count.to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adam":
        """Return a copy whose parameters are those of a module that is copied together with it."""
        twin = Adam.__new__(Adam)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _count(parameters: list[Tensor], n_steps: int) -> Tensor:
    """Return a number of steps, 0-d float32, where the parameters are."""
    device = parameters[0].device if parameters else None
    return torch.full((), float(n_steps), dtype=torch.float32, device=device)


def _divisor(grads: list[Tensor], max_norm: float) -> Tensor:
    """Return what gradients are divided by so that their norm is `max_norm` at most, 0-d."""
    norm = torch.linalg.vector_norm(torch.cat([grad.reshape(-1) for grad in grads]))
    return norm.clamp_(min=max_norm).div_(max_norm).float()


def one_cycle(step: int, n_steps: int) -> tuple[float, float]:
    """Return share of the largest learning rate, and beta of the first moment, in a cycle.

    The rate rises over three tenths of the steps and falls over the others, along cosines; the
    momentum does the opposite (`torch.optim.lr_scheduler.OneCycleLR`).

    Parameters
    ----------
    step : int
        From 0 to `n_steps - 1`.
    n_steps : int
        Of the cycle.

    References
    ----------
    .. [1] L. N. Smith, N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using
       Large Learning Rates", 2019.
    """
    turn = _RISING * n_steps - 1.0
    low, high = _MOMENTA
    if step <= turn:
        return _cosine(_FIRST_SHARE, 1.0, step / turn), _cosine(high, low, step / turn)
    share = (step - turn) / (n_steps - 1.0 - turn)
    return _cosine(1.0, _LAST_SHARE, share), _cosine(low, high, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1.0)
