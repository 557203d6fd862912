"""Muon beside torch's own on matrices, and beside a singular value decomposition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.training.muon import MuonWithAdam, newton_schulz
from cnnlab.utils.errors import UserError


def _trained(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_all_singular_values_come_near_one_and_the_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(matrix, 5)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ found @ v.T  # U S' Vᵀ in the bases of U and V: S', diagonal
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.25
    torch.testing.assert_close(inner, inner.diagonal().diag(), atol=1e-4, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_kernels_move_as_torchs_muon_moves_matrices() -> None:
    """Of four filters with 2 x 3 x 3 weights, and of forty: wider, and taller than wide. Torch's counts in bfloat16."""
    for filters in (4, 40):
        gradients = [torch.randn(filters, 2, 3, 3, generator=torch.Generator().manual_seed(n)) for n in range(3)]
        kernel = nn.Parameter(torch.zeros(filters, 2, 3, 3))
        peer = nn.Parameter(torch.zeros(filters, 18))
        ours = MuonWithAdam([kernel], muon_lr=0.1, momentum=0.8, ns_steps=4)
        theirs = torch.optim.Muon([peer], lr=0.1, weight_decay=0, momentum=0.8, ns_steps=4)
        for gradient in gradients:
            kernel.grad, peer.grad = gradient.clone(), gradient.flatten(1)
            ours.step()
            theirs.step()
        difference = (kernel.detach().flatten(1) - peer.detach()).norm() / peer.detach().norm()
        assert difference < 0.02


def test_everything_else_moves_as_adam_moves_it() -> None:
    images = torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    ours, adam = _net(), _net()
    _trained(ours, MuonWithAdam(ours.parameters(), lr=0.01, muon_lr=0.0, eps=1e-7, fused=True), images, 4)
    adam[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    rest = [p for p in adam.parameters() if p.requires_grad]
    _trained(adam, torch.optim.Adam(rest, lr=0.01, eps=1e-7, fused=True), images, 4)
    for own, other in zip(ours.parameters(), adam.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_goes_on_from_its_state_exactly(layout: Any) -> None:
    images = torch.randn(5, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    net = _net().to(memory_format=layout)
    optimizer = MuonWithAdam(net.parameters(), fused=True)
    _trained(net, optimizer, images, 2)
    second = copy.deepcopy(net)
    again = MuonWithAdam(second.parameters(), fused=True)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _trained(net, optimizer, images, 2)
    _trained(second, again, images, 2)
    for one, other in zip(net.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [{"muon_lr": -0.1}, {"momentum": 1.0}, {"ns_steps": 0}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(UserError, match=rf"optimizer\.{name}="):
        MuonWithAdam(_net().parameters(), **bad)


def test_a_copy_goes_on_as_well() -> None:
    net = _net()
    optimizer = MuonWithAdam(net.parameters())
    _trained(net, optimizer, torch.ones(1, 2, 5, 5), 1)
    second_net, second = copy.deepcopy((net, optimizer))
    for one, its_optimizer in ((net, optimizer), (second_net, second)):
        _trained(one, its_optimizer, torch.ones(1, 2, 5, 5), 1)
    assert torch.equal(net[0].weight, second_net[0].weight)  # type: ignore[arg-type]


def test_a_network_without_convolutions_is_trained_by_adam_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    before = net[0].weight.detach().clone()  # type: ignore[union-attr]
    _trained(net, MuonWithAdam(net.parameters()), torch.ones(3, 4), 1)
    assert not torch.equal(before, net[0].weight)  # type: ignore[arg-type]


def test_the_closure_is_run_with_gradients_and_its_value_returned() -> None:
    net = _net()
    optimizer = MuonWithAdam(net.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(torch.ones(1, 2, 5, 5)).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
