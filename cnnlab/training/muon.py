"""An optimizer: Muon for convolution kernels, Adam for all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.utils.errors import UserError

# Coefficients of a x + b x³ + c x⁵, which brings singular values from (0, 1] to about 1 when repeated (Jordan).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class MuonWithAdam(torch.optim.Adam):
    """Muon for every convolution kernel, Adam for all other parameters.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) sees a kernel (filters, channels, H, W) as a
    matrix of `filters` rows. It has the rate `muon_lr`, Nesterov's `momentum` and `ns_steps` of Newton-Schulz. Adam has
    the rate `lr` and the settings `adam`. The split follows airbench (Jordan 2024); torch's own `Muon` takes only
    matrices. There are two parameter groups, so a scheduler changes both rates. Raises `UserError` for a negative
    `muon_lr`, a `momentum` outside [0, 1) or fewer than one of `ns_steps`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.001,
        muon_lr: float = 0.1,
        momentum: float = 0.8,
        ns_steps: int = 3,
        **adam: Any,
    ) -> None:
        if not muon_lr >= 0:
            raise UserError(f"optimizer.muon_lr={muon_lr} must be at least 0")
        if not 0 <= momentum < 1:
            raise UserError(f"optimizer.momentum={momentum} is not in [0, 1)")
        if ns_steps < 1:
            raise UserError(f"optimizer.ns_steps={ns_steps} must be at least 1")
        others: list[Tensor] = []
        kernels: list[Tensor] = []
        for parameter in params:
            (kernels if parameter.ndim == 4 else others).append(parameter)
        muon: dict[str, Any] = {"params": kernels, "lr": muon_lr, "momentum": momentum, "ns_steps": ns_steps}
        groups: list[dict[str, Any]] = [{"params": others}, muon]
        super().__init__(groups, lr=lr, **adam)
        # Fused Adam would unscale float16 gradients itself, and leave the kernels' scaled.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with both. Return the value of `closure`, which computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon = self.param_groups[1]
        for kernel in muon["params"]:
            if kernel.grad is not None:
                self._muon(kernel, kernel.grad, muon["lr"], muon["momentum"], muon["ns_steps"])
                kernel.grad = None  # Adam skips it
        super().step()
        return loss

    def _muon(self, kernel: nn.Parameter, grad: Tensor, lr: float, momentum: float, ns_steps: int) -> None:
        state = self.state[kernel]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros((), device=kernel.device), torch.zeros_like(kernel)
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - momentum)
        update = newton_schulz(grad.lerp(state["exp_avg"], momentum).flatten(1), ns_steps)
        taller = max(1.0, update.shape[0] / update.shape[1])  # keeps the size of its effect on a map
        kernel.add_(update.view_as(kernel), alpha=-lr * taller**0.5)


def newton_schulz(matrix: Tensor, ns_steps: int) -> Tensor:
    """Return `matrix` float32 (m, n) with singular values near 1, close to U Vᵀ of its decomposition U S Vᵀ.

    After five steps they lie between 0.68 and 1.2, unless below 0.003 of its norm; after three, unless below 0.02
    (Jordan et al. 2024)."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ns_steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
