"""Muon for the kernels of convolutions, Adam for all other parameters: one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The odd polynomial a x + b x³ + c x⁵ whose repetition brings singular values from (0, 1] to about 1 (Jordan's).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class MuonWithAdam(torch.optim.Adam):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for every kernel (filters, channels, H, W),
    as a matrix of `filters` rows, with `muon_lr`, `momentum` (Nesterov's) and `steps` of Newton and Schulz; Adam with
    `lr` and `adam` for biases, BatchNorm and dense layers. airbench (Jordan 2024) divides them so, too; torch's own
    `Muon` takes matrices alone.

    The rates are those of two groups, so that a scheduler changes both alike. A kernel's state is Adam's without the
    second moment.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.001,
        muon_lr: float = 0.1,
        momentum: float = 0.8,
        steps: int = 3,
        **adam: Any,
    ) -> None:
        others: list[Tensor] = []
        kernels: list[Tensor] = []
        for parameter in params:
            (kernels if parameter.ndim == 4 else others).append(parameter)
        groups: list[dict[str, Any]] = [{"params": others}, {"params": kernels, "lr": muon_lr}]
        super().__init__(groups, lr=lr, **adam)
        self.momentum, self.steps = momentum, steps
        # Fused, Adam would divide the gradients of float16 by their scale itself; the kernels' would stay scaled.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; the value of `closure`, which computes the gradients. Those of kernels are gone then."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kernels = self.param_groups[1]
        for kernel in kernels["params"]:
            if kernel.grad is not None:
                self._muon(kernel, kernel.grad, kernels["lr"])
                kernel.grad = None  # which Adam passes over
        super().step()
        return loss

    def _muon(self, kernel: nn.Parameter, grad: Tensor, lr: float) -> None:
        state = self.state[kernel]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros((), device=kernel.device), torch.zeros_like(kernel)
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - self.momentum)
        update = orthogonal(grad.lerp(state["exp_avg"], self.momentum).flatten(1), self.steps)
        taller = max(1.0, update.shape[0] / update.shape[1])  # than wide: the size of what it adds to a map stays
        kernel.add_(update.view_as(kernel), alpha=-lr * taller**0.5)


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """`matrix` float32 (m, n) with all its singular values brought near 1, between 0.7 and 1.2 after five steps: nearly
    U Vᵀ of its decomposition U S Vᵀ, by the iteration of Newton and Schulz (Jordan et al. 2024)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
