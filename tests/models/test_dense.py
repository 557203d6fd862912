"""Dense layers are the same whichever library multiplies: values, gradients, and what a training makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cnnlab import hardware
from cnnlab.models.dense import Dense, PixelDense


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(hardware, "MULTIPLY_BY_ONEDNN", request.param)


def values_and_gradients(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> list[Tensor | None]:
    values = inputs.clone().requires_grad_()
    out = layer(values)
    out.square().sum().backward()
    assert layer.bias is not None
    return [out.detach(), values.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_dense_layer_at_every_pixel_is_a_convolution(memory_format: torch.memory_format, library: None) -> None:
    torch.manual_seed(0)
    maps = torch.rand(3, 4, 5, 6).contiguous(memory_format=memory_format)
    dense, conv = PixelDense(4, 7), nn.Conv2d(4, 7, 1)
    conv.load_state_dict(dense.state_dict())
    assert dense(maps).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(values_and_gradients(dense, maps), values_and_gradients(conv, maps))


@pytest.mark.parametrize(("batch", "inputs", "units"), [(1, 1, 1), (5, 3, 1), (128, 1936, 10)])
@pytest.mark.parametrize("training", [True, False])
def test_a_dense_layer_is_torchs(batch: int, inputs: int, units: int, training: bool, library: None) -> None:
    torch.manual_seed(0)
    dense = Dense(inputs, units).train(training)
    linear = nn.Linear(inputs, units)
    linear.load_state_dict(dense.state_dict())
    values = torch.randn(batch, inputs)
    for found, wanted in zip(values_and_gradients(dense, values), values_and_gradients(linear, values), strict=True):
        assert found is not None
        assert wanted is not None
        assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()  # a float32 has 24 bits: 6e-8


def test_a_dense_layer_by_onednn_answers_the_same_bits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "MULTIPLY_BY_ONEDNN", torch.backends.mkldnn.is_available())
    torch.manual_seed(0)
    first, values = Dense(1936, 10), torch.randn(128, 1936)
    second = copy.deepcopy(first)
    pairs = zip(values_and_gradients(first, values), values_and_gradients(second, values), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs if one is not None and other is not None)


def test_a_frozen_dense_layer_by_onednn_passes_gradients_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "MULTIPLY_BY_ONEDNN", torch.backends.mkldnn.is_available())
    torch.manual_seed(0)
    dense, values = Dense(6, 2).requires_grad_(False), torch.randn(3, 6, requires_grad=True)
    dense(values).sum().backward()
    assert dense.weight.grad is None
    torch.testing.assert_close(values.grad, dense.weight.sum(dim=0).expand(3, 6))


def test_in_bfloat16_a_dense_layer_is_torchs(library: None) -> None:
    torch.manual_seed(0)
    dense, values = Dense(64, 10), torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = dense(values), nn.functional.linear(values, dense.weight, dense.bias)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


def test_in_bfloat16_a_dense_layer_at_every_pixel_is_a_convolution(library: None) -> None:
    torch.manual_seed(0)
    dense, maps = PixelDense(32, 64), torch.rand(2, 32, 5, 5)
    assert dense.bias is not None
    with torch.autocast("cpu", torch.bfloat16):
        found = dense(maps)
    assert found.dtype == torch.bfloat16
    wanted = nn.functional.conv2d(maps, dense.weight, dense.bias)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.02)  # bfloat16 has 8 bits, the values are below 2
