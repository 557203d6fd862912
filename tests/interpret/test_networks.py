"""What every method makes of networks of one oddity each: right, warned or refused, as docs/networks.md says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.interpret.attribution import Method, attribute, attribute_head
from cnnlab.interpret.methods.cams import grad_cam, grad_cam_pp, layer_integrated_gradients
from cnnlab.interpret.methods.gradients import integrated_gradients, saliency, smooth_grad
from cnnlab.interpret.network import HeadWrapper, as_maps, default_target_layer, frozen_copy, placement
from cnnlab.utils.errors import UserError
from tests.interpret.networks import LARGE, NETWORKS, PAGE, Odd, Scores, line, relu, row


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_of_networks(name: str) -> None:
    assert line(name, row(name)) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_the_table_of_torchvisions_networks(name: str) -> None:
    assert line(name, row(name)) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("change", "rows", "columns"),
    [
        # Each place of 16 x 8 is the mean of 2 x 8 of 32 x 64 pixels.
        (nn.AdaptiveAvgPool2d((16, 8)), (1.0, 2.0), (4.0, 8.0)),
        (nn.Upsample(scale_factor=2), (0.25, 0.5), (0.25, 0.5)),
        (nn.ConvTranspose2d(3, 3, 2, 2), (0.25, 0.5), (0.25, 0.5)),
        (nn.ZeroPad2d(4), (-3.5, 1.0), (-3.5, 1.0)),
        (nn.PixelUnshuffle(4), (2.0, 4.0), (2.0, 4.0)),
        (nn.LPPool2d(2, 4), (2.0, 4.0), (2.0, 4.0)),
    ],
)
def test_where_a_layer_looks_is_measured(
    change: nn.Module, rows: tuple[float, float], columns: tuple[float, float]
) -> None:
    """The size of maps is changed by what is neither convolution nor pooling: the first place and the step by hand."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        channels = change(images).shape[1]
    net = nn.Sequential(change, nn.Conv2d(channels, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = placement(HeadWrapper(frozen_copy(net)), "1", images)
    assert found[2] == ""
    for field, (start, step) in zip(found[:2], (rows, columns), strict=True):
        assert field.start == pytest.approx(start, abs=0.5 * max(1, step))
        assert field.step == pytest.approx(step, rel=0.05)


def test_a_layer_of_which_no_place_is_known_is_stretched_with_a_warning() -> None:
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4 * 8 * 8), nn.Unflatten(1, (4, 8, 8)))
    net = nn.Sequential(mixed, nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (warning,) = attribute(net, torch.rand(1, 3, 16, 16), 0, grad_cam).warnings
    assert warning == "where layer '1' looks is not known: its maps are stretched to the image"


@pytest.mark.parametrize(
    ("shape", "size", "maps"),
    [
        ((2, 7, 7, 96), (224, 224), (2, 96, 7, 7)),  # Swin: channels last
        ((2, 96, 7, 7), (224, 224), (2, 96, 7, 7)),
        ((2, 8, 10, 10), (32, 40), (2, 8, 10, 10)),  # resized to a square
        ((2, 16, 32, 32), (512, 512), (2, 16, 32, 32)),  # as many channels as rows of a grid
        ((2, 197, 64), (224, 224), (2, 64, 14, 14)),  # ViT: a class token before the patches
        ((2, 49, 64), (224, 224), (2, 64, 7, 7)),
        ((2, 12, 64), (48, 64), (2, 64, 3, 4)),
    ],
)
def test_maps_in_other_layouts(shape: tuple[int, ...], size: tuple[int, int], maps: tuple[int, ...]) -> None:
    found = as_maps(torch.rand(shape), size)
    assert found is not None
    assert tuple(found.shape) == maps


def test_two_branches_are_looked_at_where_they_join() -> None:
    """Each branch sees a half of the image: the map shows both."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1)
            self.join, self.dense = nn.ReLU(), nn.Linear(2, 2)
            for weight in self.parameters():
                nn.init.ones_(weight)

        def forward(self, x: Tensor) -> Tensor:
            half = x.shape[3] // 2
            left = self.left(x * (torch.arange(x.shape[3]) < half))
            right = self.right(x * (torch.arange(x.shape[3]) >= half))
            return self.dense(self.join(torch.cat([left, right], dim=1)).mean(dim=(2, 3)))

    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 2, 1] = image[0, 0, 5, 6] = 1
    result = attribute(Halves(), image, 1, grad_cam)
    assert result.layer_map is not None
    assert result.layer_map.layer == "join"
    assert result.maps[0, 2, 1] > result.maps[0, 0, 1]
    assert result.maps[0, 5, 6] > result.maps[0, 0, 6]


def test_blocks_can_be_named() -> None:
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    net = nn.Sequential(block, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(1, 3, 16, 16)
    wrapper = HeadWrapper(frozen_copy(net))
    assert default_target_layer(wrapper, images, "0") == "0"
    by_block = attribute(net, images, 1, lambda *inputs: grad_cam(*inputs, target_layer="0"))
    by_layer = attribute(net, images, 1, lambda *inputs: grad_cam(*inputs, target_layer="0.1"))
    torch.testing.assert_close(by_block.maps, by_layer.maps)


@pytest.mark.parametrize(
    ("images", "target", "message"),
    [
        (torch.rand(2, 3, 32, 40), 0.5, "give a class, or one whole number for each of 2 images"),
        (torch.rand(2, 3, 32, 40), torch.tensor([0.0, 1.0]), "whole number"),
        (torch.rand(2, 3, 32, 40), torch.tensor([0, 1, 2]), "one whole number for each of 2 images"),
        (torch.rand(2, 3, 32, 40), torch.tensor([[0], [1]]), "one whole number for each of 2 images"),
        (torch.rand(2, 3, 32, 40), 4, r"the classes are 0\.\.3"),
        (torch.rand(2, 3, 32, 40), -1, r"the classes are 0\.\.3"),
        (torch.full((1, 3, 32, 40), torch.nan), 0, "not finite"),
        (torch.full((1, 3, 32, 40), torch.inf), 0, "not finite"),
    ],
)
def test_wrong_inputs_are_refused(images: Tensor, target: object, message: str) -> None:
    net = NETWORKS["ReLU as a module"]()
    with pytest.raises(UserError, match=message):
        attribute(net, images, target, saliency)  # type: ignore[arg-type]


def test_the_network_stays_as_it_was() -> None:
    """Also one that keeps a tensor of an earlier pass, which cannot be copied, and is in training."""

    def kept(net: Odd, x: Tensor) -> Tensor:
        net.seen = net.conv1(x)
        return net.relu(net.conv2(F.relu(net.seen)))

    net = Odd(kept).train()
    images = torch.rand(2, 3, 32, 40)
    net(images).sum().backward()
    before = {name: (value.clone(), value.grad.clone()) for name, value in net.named_parameters()}  # type: ignore[union-attr]
    seen, state = net.seen, torch.get_rng_state()
    result = attribute(net, images, 1, grad_cam)
    assert net.training
    assert net.seen is seen
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in net.parameters())
    for name, value in net.named_parameters():
        assert value.grad is not None
        assert torch.equal(value, before[name][0])
        assert torch.equal(value.grad, before[name][1])
    assert not net._forward_hooks
    assert result.images.data_ptr() != images.data_ptr()


def test_compiled_networks_are_unwrapped() -> None:
    torch.manual_seed(0)
    net, images = NETWORKS["ReLU as a module"](), torch.rand(2, 3, 32, 40)
    expected = attribute(net, images, 1, grad_cam).maps
    net.conv1 = torch.compile(net.conv1, backend="eager")  # type: ignore[assignment]
    assert torch.equal(attribute(net, images, 1, grad_cam).maps, expected)
    assert torch.equal(attribute(torch.compile(net, backend="eager"), images, 1, grad_cam).maps, expected)  # type: ignore[arg-type]


def test_answers_that_hold_a_head() -> None:
    torch.manual_seed(0)
    net = Odd(lambda net, x: net.relu(net.conv2(F.relu(net.conv1(x)))))
    images, expected = torch.rand(2, 3, 32, 40), None
    plain = net._answer or (lambda net, maps: net.dense(maps.mean(dim=(2, 3))))
    answers = [
        (lambda scores: scores, None),
        (lambda scores: {"only": scores}, None),
        (lambda scores: {"a": 0 * scores, "b": scores}, "b"),
        (lambda scores: {"a": {"b": scores}, "c": 0 * scores}, "a.b"),
        (lambda scores: (0 * scores, scores), 1),
        (lambda scores: (0 * scores, scores), -1),
        (lambda scores: [scores, 0 * scores], 0),
        (Scores, None),
        (Scores, "scores"),
    ]
    for answer, head in answers:
        net._answer = lambda net, maps, answer=answer: answer(plain(net, maps))
        maps = attribute(net, images, 1, grad_cam, head=head).maps
        expected = maps if expected is None else expected
        assert torch.equal(maps, expected)


def test_inference_mode_and_threads_change_nothing() -> None:
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    net, images = NETWORKS["ReLU as a module"](), torch.rand(2, 3, 32, 40)
    expected = attribute(net, images, 1, smooth_grad).maps
    with torch.inference_mode():
        assert torch.equal(attribute(net, images, 1, smooth_grad).maps, expected)
    with ThreadPoolExecutor(4) as pool:
        for maps in pool.map(lambda _: attribute(net, images, 1, smooth_grad).maps, range(8)):
            assert torch.equal(maps, expected)


def test_scores_that_mix_images_are_said() -> None:
    net = NETWORKS["BatchNorm without statistics"]()
    different, alike = torch.rand(3, 3, 32, 40), torch.rand(1, 3, 32, 40).expand(3, -1, -1, -1)
    for images in (different, alike, torch.cat([torch.zeros_like(alike[:1]), different]), alike[:1]):
        (warning, *_) = attribute(net, images, 1, saliency).warnings
        assert warning == "the scores of an image depend on the other images of the batch: so does its map"


def test_scores_relative_to_the_brightest_image_are_said() -> None:
    class Relative(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images / images.amax()).mean(dim=(2, 3))

    images = torch.rand(2, 3, 8, 8) * torch.tensor([1, 0.6])[:, None, None, None]
    (warning,) = attribute(Relative(), images, 1, saliency).warnings
    assert warning == "the scores of an image depend on the other images of the batch: so does its map"


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x - 5, lambda x: -100 * x])
def test_a_measured_place_does_not_depend_on_the_batch(change: Callable[[Tensor], Tensor]) -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(F.avg_pool2d(images, 2) * 1).relu().mean(dim=(2, 3))

    torch.manual_seed(0)
    net, images = frozen_copy(Halved()), change(torch.rand(3, 3, 32, 32))
    rows, columns, warning = placement(HeadWrapper(net), "conv", images)
    assert not warning
    assert placement(HeadWrapper(net), "conv", images[1:2]) == (rows, columns, warning)
    assert (rows.start, rows.step) == pytest.approx((1, 2), abs=0.3)


def test_images_of_whole_numbers_stay_so_when_mixing_is_looked_for() -> None:
    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.uint8
            return images.float().mean(dim=(2, 3))

    assert not HeadWrapper(Whole()).unsteady(torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8))


def test_a_map_that_is_0_everywhere_is_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(net[0].bias, -100)
    (warning,) = attribute(net, torch.rand(2, 3, 16, 16), 1, grad_cam).warnings
    assert warning == "all maps are 0: the method finds no evidence for these classes, or cannot see it"


def test_functional_relu_is_seen_where_a_layer_follows() -> None:
    net = Odd(lambda net, x: net.last(relu(net.conv2(relu(net.conv1(x))))), last=nn.Dropout())
    layer = default_target_layer(HeadWrapper(frozen_copy(net)), torch.rand(1, 3, 32, 40))
    assert layer == "last:input"


@pytest.mark.parametrize(
    "change", [lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.transpose(2, 3), lambda x: x.roll(16, 2)]
)
def test_an_image_that_is_turned_inside_the_network_is_not_placed_by_its_kernels(
    change: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    net = Odd(lambda net, x: net.relu(net.conv2(F.relu(net.conv1(change(x))))))
    (warning,) = attribute(net, torch.rand(1, 3, 32, 32), 1, grad_cam).warnings
    assert "looks is not known" in warning


def test_flattened_maps_are_not_taken_for_tokens() -> None:
    """64 channels of 8 x 8 places, flattened, are as many as 64 tokens of 64 channels."""
    layers = [nn.Conv2d(3, 64, 3, 4, padding=1), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(64, 4))
    result = attribute(net, torch.rand(1, 3, 32, 32), 1, grad_cam)
    assert result.layer_map is not None
    assert result.layer_map.layer == "1"


@pytest.mark.parametrize(("side", "count"), [(28, 250), (64, 250), (128, 62), (224, 20), (2000, 1)])
def test_fewer_large_images_go_through_at_once(side: int, count: int) -> None:
    seen: list[int] = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x.mean(dim=(2, 3))

    attribute(Net(), torch.rand(1, 2, side, side).expand(251 if side < 100 else 3, -1, -1, -1), 0, integrated_gradients)
    assert max(seen) <= max(count, 2)  # two, to see whether images mix


class _Ending(nn.Module):
    def __init__(self, net: nn.Module, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.end = net, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.net(images.float()))


@pytest.mark.parametrize(
    "end",
    [
        nn.Sigmoid(),
        torch.sigmoid,
        lambda z: z.sigmoid().double().float(),
        lambda z: z.sigmoid()[:, :, None, None],
        lambda z: z.T.sigmoid().T.contiguous().clone(),
        lambda z: torch.cat([z, z], dim=1).sigmoid()[:, 1:],
        lambda z: z.clone().sigmoid_(),
    ],
)
def test_a_sigmoid_is_undone_for_the_answer_and_the_evidence(end: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))
    images = torch.rand(12, 3, 9, 9)
    with torch.no_grad():
        net[-1].bias -= net(images).median()  # type: ignore[union-attr, operator]
        expected = (net(images)[:, 0] > 0).long()
    assert 0 < expected.sum() < 12
    plain, own = (
        attribute(net, images, "predicted", grad_cam),
        attribute(_Ending(net, end), images, "predicted", grad_cam),
    )
    assert own.targets.tolist() == expected.tolist()
    torch.testing.assert_close(own.maps, plain.maps, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        whole = (images * 255).to(torch.uint8)
        scores, found = net(whole.float()), HeadWrapper(_Ending(net, end))(whole)  # no gradient reaches the image
    assert (found[:, 1] > found[:, 0]).tolist() == (scores[:, 0] > 0).tolist()


def test_a_unit_that_no_sigmoid_made_is_a_score() -> None:
    gate = nn.Sequential(nn.Conv2d(3, 1, 9), nn.Sigmoid(), nn.Flatten(), nn.Linear(1, 1))
    images = torch.rand(5, 3, 9, 9)
    torch.testing.assert_close(HeadWrapper(gate)(images)[:, 1:], gate(images))


def test_softmax_is_not_applied_twice() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Conv2d(3, 5, 9), nn.Flatten()), torch.rand(4, 3, 9, 9)
    expected = net(images).softmax(dim=1)
    torch.testing.assert_close(HeadWrapper(nn.Sequential(net, nn.Softmax(dim=1))).probabilities(images), expected)
    torch.testing.assert_close(HeadWrapper(net).probabilities(images), expected)


def test_a_layer_that_only_some_classes_need_is_named_as_a_part() -> None:
    class ByClass(nn.Module):
        """A convolution of its own for each of two classes; the second runs last."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([conv(images).relu().mean(dim=(1, 2, 3)) for conv in (self.first, self.second)], dim=1)

    torch.manual_seed(0)
    net, images = ByClass(), torch.rand(2, 3, 12, 12)
    assert "only a part" in " ".join(attribute(net, images, 0, grad_cam).warnings)  # it looks at the second layer
    assert not attribute(net, images, 1, grad_cam).warnings
    named = partial(grad_cam, target_layer="first")  # of the first class alone
    result = attribute(net, images, 0, named)
    assert result.maps.any()
    assert not result.warnings


class _Single(nn.Module):
    """A network of one unit that ends in a function of its score."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.out, self.end = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 1), end

    def score(self, images: Tensor) -> Tensor:
        scores: Tensor = self.out(self.conv(images).relu().mean(dim=(2, 3)))
        return scores

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.score(images))


@pytest.mark.parametrize(
    "end",
    [
        torch.sigmoid,
        lambda z: z.sigmoid().squeeze(1)[:, None],
        lambda z: torch.sigmoid(z).clamp(1e-6, 1 - 1e-6),
        lambda z: 1 - torch.sigmoid(-z),
        lambda z: torch.stack([torch.sigmoid(z + 0.1), torch.sigmoid(z - 0.1)]).mean(dim=0),
        lambda z: (torch.sigmoid(z + 0.1) + torch.sigmoid(z - 0.1)) / 2,
        F.hardsigmoid,
    ],
)
def test_a_probability_of_one_unit_names_the_class(end: Callable[[Tensor], Tensor]) -> None:
    """Also where it does not end in a sigmoid: bounds, one minus it, the mean of several networks."""
    torch.manual_seed(0)
    net, images = _Single(end), torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        net.out.bias -= net.score(images).mean()
        expected = (net.score(images)[:, 0] > 0).long()
    assert 0 < expected.sum() < 6
    assert attribute(net, images, "predicted", saliency).targets.tolist() == expected.tolist()


def test_a_sure_sigmoid_is_explained_by_its_score() -> None:
    """A probability that is 1 in float32 tells no score: what goes into the sigmoid does."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    with torch.no_grad():
        plain[1].weight.fill_(1.0)
        plain[1].bias.fill_(-20.0)
    images = torch.ones(1, 3, 4, 4)  # a score of 28
    result = attribute(nn.Sequential(plain, nn.Sigmoid()), images, 1, integrated_gradients)
    torch.testing.assert_close(result.maps, torch.full((1, 4, 4), 3.0))
    assert not result.warnings


def test_a_forward_that_keeps_the_original_network_is_refused() -> None:
    torch.manual_seed(0)
    net, images = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)),
        torch.rand(2, 3, 8, 8),
    )
    expected = attribute(net, images, 1, saliency).maps  # it is in training mode
    original = net.forward
    net.forward = torch.compile(net.forward, backend="eager")
    assert torch.equal(attribute(net, images, 1, saliency).maps, expected)
    assert not net[1].running_mean.any()
    net.forward = lambda images: original(images)
    with pytest.raises(UserError, match="give a subclass"):
        attribute(net, images, 1, saliency)


def test_the_last_head_is_the_last_of_the_answers() -> None:
    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(48, 2), nn.Linear(48, 3)

        def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, None, Tensor]:
            flat = images.flatten(1)
            return [flat], self.first(flat), None, self.last(flat)

    net, images = Answers(), torch.rand(2, 3, 4, 4)
    maps = attribute(net, images, 2, saliency, head=-1).maps
    torch.testing.assert_close(maps[0], net.last.weight[2].view(3, 4, 4).abs().amax(dim=0))


def test_a_shift_within_the_network_is_measured() -> None:
    """Padding and cropping move what a layer sees by 14 pixels; its fields of 5 pixels cannot be blurred so far."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv2(F.pad(self.conv1(images), (14, 0, 14, 0))[:, :, :64, :64]).relu().mean(dim=(2, 3))

    torch.manual_seed(0)
    *fields, warning = placement(HeadWrapper(frozen_copy(Shifted())), "conv2", torch.rand(1, 3, 64, 64))
    assert not warning
    assert [field.start for field in fields] == pytest.approx([-13.5, -13.5], abs=3)


@pytest.mark.parametrize("shift", [lambda x: x.roll(12, 3), lambda x: F.pad(x[:, :, :, :-12], (12, 0))])
def test_a_shift_before_wide_kernels_is_noticed(shift: Callable[[Tensor], Tensor]) -> None:
    """Fields of 25 pixels could be blurred so far, but not all to one side."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.Sequential(*(nn.Conv2d(3, 3, 7, padding=3) for _ in range(4)))

        def forward(self, images: Tensor) -> Tensor:
            return self.convs(shift(images)).relu().mean(dim=(2, 3))

    torch.manual_seed(0)
    _, columns, warning = placement(HeadWrapper(frozen_copy(Shifted())), "convs.3", torch.rand(1, 3, 64, 64))
    assert warning or columns.start == pytest.approx(0.5 - 12, abs=4)


class _OneByOne(nn.Module):
    """Sends its images through the layers one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.dense(self.conv(image[None]).relu().mean(dim=(2, 3))) for image in images])


class _Branching(_OneByOne):
    """Sends bright images through a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).relu()
        if images.mean() > 0.7:
            maps = self.other(maps).relu()
        return self.dense(maps.mean(dim=(2, 3)))


@pytest.mark.parametrize("method", [grad_cam, grad_cam_pp, layer_integrated_gradients])
def test_layers_that_do_not_see_all_images_are_refused(method: Method) -> None:
    torch.manual_seed(0)
    net, images = _OneByOne(), torch.rand(3, 3, 16, 16)
    with pytest.raises(UserError, match="layer 'conv' does not look at all images at once; give one at a time"):
        attribute(net, images, 1, method)
    if method is not layer_integrated_gradients:  # its steps are a batch
        assert attribute(net, images[:1], 1, method).maps.any()
    branching = HeadWrapper(frozen_copy(_Branching()))
    branching.path(images.clamp(min=0.8))
    with pytest.raises(UserError, match="layer 'other' does not run for these images"):
        attribute_head(branching, images, 1, method)


@pytest.mark.parametrize("shape", [(2, 1, 4), (2, 5, 4), (2,), (2, 4, 3, 3, 3)])
def test_answers_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    class Answers(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2, 3)).view(-1, *(1 for _ in shape[1:])).expand(-1, *shape[1:])

    with pytest.raises(UserError, match=r"not scores \(N, classes\) or \(N, classes, H, W\)"):
        attribute(Answers(), torch.rand(2, 3, 8, 8), "predicted", saliency)


def test_scores_that_differ_each_time_are_said_of_one_image_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 30))
    net.register_forward_hook(lambda _module, _inputs, output: F.dropout(output))
    assert attribute(net, torch.rand(1, 3, 4, 4), 1, saliency).warnings[0].startswith("the scores of an image differ")
