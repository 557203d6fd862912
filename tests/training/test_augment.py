"""Affine changes of a batch against maps worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnlab.training.augment import Affine, Light
from cnnlab.utils.errors import UserError


def test_without_limits_nothing_changes() -> None:
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(Affine(rotate=0, scale=0, shear=0, shift=0)(images), images)


def test_a_shift_moves_each_image_by_its_own_amount() -> None:
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, 14, 14] = 1
    torch.manual_seed(0)
    moved = Affine(rotate=0, scale=0, shear=0, shift=2)(images)
    places = torch.arange(28.0)
    right = (moved * places).sum(dim=(1, 2, 3)) - 14  # the bilinear weights' mean is the place itself
    down = (moved * places[:, None]).sum(dim=(1, 2, 3)) - 14
    for amount in (right, down):
        assert amount.abs().max() <= 2
        assert amount.max() > 1.8
        assert amount.min() < -1.8
    assert abs(torch.corrcoef(torch.stack([right, down]))[0, 1]) < 0.2


def test_a_turn_keeps_the_middle_and_the_mass_and_turns_both_ways() -> None:
    images = torch.zeros(100, 1, 28, 28)
    images[:, :, 13:15, 4:24] = 1  # a bar through the middle
    turned = Affine(rotate=30, scale=0, shear=0, shift=0)(images)
    assert (turned[:, 0, 13:15, 13:15] > 0.8).all()
    torch.testing.assert_close(turned.sum(dim=(1, 2, 3)), torch.full((100,), 40.0), atol=1.5, rtol=0)
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    slope = (turned[:, 0] * x * y).sum(dim=(1, 2)) / (turned[:, 0] * x * x).sum(dim=(1, 2))
    steepest = torch.tan(torch.deg2rad(torch.tensor(30.0)))
    assert -steepest - 0.02 < slope.min() < -0.4
    assert 0.4 < slope.max() < steepest + 0.02


def test_an_image_that_is_not_square_turns_like_its_square() -> None:
    """Padded with black to 40 x 40 and cut out again, an image of 24 x 40 changes in the same way."""
    wide = torch.rand(20, 1, 24, 40)
    change = Affine(rotate=40, scale=0.1, shear=0.3, shift=3)
    torch.manual_seed(0)
    changed = change(wide)
    torch.manual_seed(0)
    square = change(nn.functional.pad(wide, (0, 0, 8, 8)))[:, :, 8:32]
    torch.testing.assert_close(changed, square, atol=1e-4, rtol=0)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment.shift=-1 must be at least 0"):
        Affine(rotate=0, scale=0, shear=0, shift=-1)


def test_light_dims_lifts_the_ground_and_adds_noise_to_half_of_the_images_each() -> None:
    images = torch.zeros(4000, 3, 8, 8)
    images[:, 0, 2:6, 3] = 1
    torch.manual_seed(0)
    dim = Light(dim=0.6, ground=0, noise=0)(images)[:, 0, 3, 3]
    assert (dim == 1).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert dim[dim < 1].mean().item() == pytest.approx(0.7, abs=0.01)  # between 0.4 and 1
    assert dim.min() > 0.4
    ground = Light(dim=0, ground=0.3, noise=0)(images)
    assert torch.equal(ground[:, :, 3, 3], images[:, :, 3, 3])  # the line itself stays
    level = ground[:, :, 0, 0]
    assert torch.equal(level, level[:, :1].expand(-1, 3))  # grey
    assert level[level > 0].mean().item() == pytest.approx(0.15, abs=0.01)
    noisy = Light(dim=0, ground=0, noise=0.1)(0.5 + 0 * images)
    deviation = noisy.flatten(1).std(dim=1)
    assert (deviation == 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert deviation[deviation > 0].mean().item() == pytest.approx(0.05, abs=0.005)
    assert 0 <= noisy.min() <= noisy.max() <= 1


def test_light_of_nothing_changes_nothing_and_limits_are_refused() -> None:
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(Light(dim=0, ground=0, noise=0)(images), images)
    with pytest.raises(UserError, match=r"augment.ground=1 is not in \[0, 1\)"):
        Light(dim=0, ground=1, noise=0)
