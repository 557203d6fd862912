"""Muon for the kernels of convolutions, Adam for all other parameters: one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.errors import UserError

# The odd polynomial a x + b x³ + c x⁵ whose repetition brings singular values from (0, 1] to about 1 (Jordan's).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class MuonWithAdam(torch.optim.Adam):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for every kernel (filters, channels, H, W),
    as a matrix of `filters` rows, with `muon_lr`, `momentum` (Nesterov's) and `steps` of Newton and Schulz; Adam with
    `lr` and `adam`, its other settings, for biases, BatchNorm and dense layers. airbench (Jordan 2024) leaves all but
    the kernels to another optimizer, too; torch's own `Muon` takes matrices alone. A dense layer at every pixel is a
    1 x 1 convolution, and so is trained by Muon.

    The rates are those of two groups, so that a scheduler changes both alike. A kernel's state is Adam's without the
    second moment. Raises `UserError` for a negative `muon_lr`, a `momentum` outside [0, 1) or fewer than one of
    `steps`.
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
        if not muon_lr >= 0:
            raise UserError(f"optimizer.muon_lr={muon_lr} must be at least 0")
        if not 0 <= momentum < 1:
            raise UserError(f"optimizer.momentum={momentum} is not in [0, 1)")
        if steps < 1:
            raise UserError(f"optimizer.steps={steps} must be at least 1")
        others: list[Tensor] = []
        kernels: list[Tensor] = []
        for parameter in params:
            (kernels if parameter.ndim == 4 else others).append(parameter)
        muon: dict[str, Any] = {"params": kernels, "lr": muon_lr, "momentum": momentum, "steps": steps}
        groups: list[dict[str, Any]] = [{"params": others}, muon]
        super().__init__(groups, lr=lr, **adam)
        # Fused, Adam would divide the gradients of float16 by their scale itself; the kernels' would stay scaled.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; the value of `closure`, which computes the gradients. Those of kernels are gone then."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon = self.param_groups[1]
        for kernel in muon["params"]:
            if kernel.grad is not None:
                self._muon(kernel, kernel.grad, muon["lr"], muon["momentum"], muon["steps"])
                kernel.grad = None  # which Adam passes over
        super().step()
        return loss

    def _muon(self, kernel: nn.Parameter, grad: Tensor, lr: float, momentum: float, steps: int) -> None:
        state = self.state[kernel]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros((), device=kernel.device), torch.zeros_like(kernel)
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - momentum)
        update = orthogonal(grad.lerp(state["exp_avg"], momentum).flatten(1), steps)
        taller = max(1.0, update.shape[0] / update.shape[1])  # than wide: the size of what it adds to a map stays
        kernel.add_(update.view_as(kernel), alpha=-lr * taller**0.5)


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """`matrix` float32 (m, n) with its singular values brought near 1, nearly U Vᵀ of its decomposition U S Vᵀ: after
    five steps to between 0.68 and 1.2, but for those below 0.003 of its norm; after three, for those below 0.02. By the
    iteration of Newton and Schulz (Jordan et al. 2024)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
