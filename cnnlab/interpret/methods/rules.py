"""Attribution methods with rules of their own for backpropagation. Each rule keeps the value of a function and changes
its gradient. PyTorch hands every call of a function to the rules. So they hold for `F.relu` as for `nn.ReLU`, for
additions and gates, and for layers that run several times. All methods sum over channels and keep the sign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cnnlab.interpret.attribution import ImageMap, to_image
from cnnlab.interpret.methods.cams import grad_cam
from cnnlab.interpret.methods.gradients import one_baseline, several_baselines
from cnnlab.interpret.network import HeadWrapper, placement
from cnnlab.utils.errors import UserError

Call = Callable[..., Tensor]
Rule = Callable[..., Tensor]  # (call, *arguments of the function) -> output; call(*arguments) is the plain function

RELUS = ("relu", "relu6")
LARGER_OR_SMALLER = ("maximum", "minimum", "fmax", "fmin")
ACTIVATIONS = (
    *("leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh"),
    *("softplus", "tanh", "threshold", "softsign", "softshrink", "hardshrink", "tanhshrink", "log_sigmoid"),
    *("clamp", "clip", "clamp_min", "clamp_max", *LARGER_OR_SMALLER),
    *("sin", "cos", "erf", "atan", "arctan", "asinh", "arcsinh", "log1p"),
)
CLAMPS = ("clamp", "clip", "clamp_min")
# May act as a ReLU, as `v * (v > 0)`, or as a scale, as a norm.
UNCLEAR = ("gt", "ge", "lt", "le", "where", "setitem", "abs", "square", "exp", "pow", "sign", "heaviside")
ELEMENTWISE = (
    *(*RELUS, *ACTIVATIONS, "sigmoid", "hardsigmoid", "exp", "log", "sqrt", "rsqrt"),
    *("reciprocal", "rdiv", "abs", "square", "pow"),
)
NO_RULE = (
    "the network has another activation than ReLU ({}), for which guided backpropagation and deconvolution have no "
    "rule: choose another method, such as integrated_gradients"
)
PRODUCTS = ("mul", "multiply", "matmul", "bmm")


class _Rules(TorchFunctionMode):
    """Applies rules by the name of a function, where its first argument depends on the image. Functions in place stay
    so."""

    def __init__(self, net: HeadWrapper, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        if any(isinstance(module, torch.jit.ScriptModule) for module in net.modules()):
            raise UserError("this method cannot look into a scripted network: give it as an nn.Module")
        self.rules = rules

    def __torch_function__(self, function: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        rule = self.rules.get(name.strip("_"))
        if rule is not None:  # the rules take these by position
            args = (*args, *(kwargs.pop(key) for key in ("input", "weight", "other", "bias") if key in kwargs))
        if name in LARGER_OR_SMALLER and not args[0].requires_grad:
            args = (args[1], args[0], *args[2:])
        first = args[0] if args else None
        if rule is None or not isinstance(first, Tensor) or not first.requires_grad:
            return function(*args, **kwargs)
        flag = kwargs.get("inplace", False) or (name in ELEMENTWISE and any(arg is True for arg in args[1:]))
        if not flag and (name.endswith("__") or not name.endswith("_")):
            return rule(partial(function, **kwargs), *args)
        before = first.clone()

        def apart(value: Tensor, *rest: Any, **settings: Any) -> Tensor:
            return function(value.clone(), *rest, **settings)

        apart.__name__ = name.strip("_")
        return first.copy_(rule(partial(apart, **kwargs), before, *args[1:]))


def _input_gradients(net: HeadWrapper, images: Tensor, targets: Tensor, rules: Mapping[str, Rule]) -> Tensor:
    """Return the gradients of the class scores of the first images, (N, C, H, W), under `rules`."""
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad(), _Rules(net, rules):
        scores = net(inputs)[: len(targets)].gather(1, targets[:, None]).sum()
        (gradients,) = torch.autograd.grad(scores, inputs)
    return gradients[: len(targets)]


def _with_gradient_of(linear: Tensor, value: Tensor) -> Tensor:
    """Return `value` with the gradient of `linear`."""
    return linear + (value - linear).detach()


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values for the images and for their baselines, without gradients."""
    images, baselines = values.detach().chunk(2)
    return images, baselines


def _twice(values: Tensor) -> Tensor:
    return torch.cat([values, values])


def _rescale(call: Call, value: Tensor, *rest: Any) -> Tensor:
    """DeepLIFT's rescale rule: the slope between image and baseline; where both are alike, the gradient."""
    output = call(value, *rest)
    if len(value) % 2 or any(isinstance(other, Tensor) and other.requires_grad for other in rest):
        return output
    (image, baseline), (high, low) = _halves(value), _halves(output)
    change = image - baseline
    near = change.abs() <= 1e-5 * torch.maximum(image.abs(), baseline.abs())
    slope = _twice((high - low) / change.where(~near, 1))
    return torch.where(_twice(near), output, _with_gradient_of(slope * value, output))


def _mean_product(call: Call, left: Tensor, right: Any, *rest: Any) -> Tensor:
    """Share the change of a product between its factors, each with the mean of the other: exact, and symmetric."""
    output = call(left, right, *rest)
    if not (isinstance(right, Tensor) and right.requires_grad) or len(left) != len(right) or len(left) % 2:
        return output
    means = [_twice((image + baseline) / 2) for image, baseline in map(_halves, (left, right))]
    return _with_gradient_of(call(left, means[1], *rest) + call(means[0], right, *rest), output)


def _quotient(call: Call, left: Tensor, right: Any, *rest: Any) -> Tensor:
    if isinstance(right, Tensor) and right.requires_grad and not rest:
        product = _mean_product(torch.mul, left, _rescale(torch.reciprocal, right))
        return _with_gradient_of(product, call(left, right))
    return call(left, right, *rest)


def _softmax_shares(call: Call, value: Tensor, *rest: Any) -> Tensor:
    output = call(value, *rest)
    dim = next((at for at in range(value.ndim) if torch.equal(output, value.softmax(at))), None)
    if dim is None or len(value) % 2:
        return output
    top = _twice(torch.maximum(*_halves(value.amax(dim, keepdim=True))))
    parts = _rescale(torch.exp, value - top)
    shares = _mean_product(torch.mul, parts, _rescale(torch.reciprocal, parts.sum(dim, keepdim=True)))
    return _with_gradient_of(shares, output)


def _largest(call: Any, value: Tensor, *rest: Any) -> Any:
    """Applies DeepLIFT's rule. The change from the baseline's output to the larger output goes to the image's
    largest pixel, the change from there to the image's output to the baseline's. The shares of overlapping
    windows add up."""
    output = call(value, *rest)
    if not isinstance(output, Tensor) or len(value) % 2:
        return output  # with indices
    pool = getattr(F, call.func.__name__)  # torch.max_pool2d gives no indices
    _, places = pool(value, *rest, **{**call.keywords, "return_indices": True})
    flat, (high, low) = value.flatten(2), _halves(output)
    larger = torch.maximum(high, low)
    terms: Tensor | float = 0.0
    for share, at in zip((larger - low, high - larger), places.flatten(2).chunk(2), strict=True):
        image, baseline = (half.gather(2, at) for half in _halves(flat))
        change = image - baseline
        slope = (share.flatten(2) / change.where(change != 0, 1)).where(change != 0, 0)
        terms = terms + _twice(slope) * flat.gather(2, _twice(at))
    return _with_gradient_of(terms.view_as(output), output)  # type: ignore[union-attr]


DEEP_LIFT: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _rescale),
    **dict.fromkeys(PRODUCTS, _mean_product),
    **dict.fromkeys(("div", "true_divide"), _quotient),
    **dict.fromkeys(("max_pool2d", "adaptive_max_pool2d"), _largest),
    "softmax": _softmax_shares,
}


def deep_lift(net: HeadWrapper, images: Tensor, targets: Tensor, baselines: float | Tensor = 0.0) -> ImageMap:
    """Return DeepLIFT with the rescale rule (Shrikumar et al. 2017) from `baselines`: one value for all pixels, or an
    image (1, C, H, W). Products share their change equally between the factors."""
    baseline = one_baseline(images, baselines)
    slopes = _input_gradients(net, torch.cat([images, baseline.expand_as(images)]), targets, DEEP_LIFT)
    return ImageMap((slopes * (images - baseline)).sum(dim=1), baseline)


def deep_lift_shap(net: HeadWrapper, images: Tensor, targets: Tensor, baselines: Tensor | None = None) -> ImageMap:
    """Return the mean of DeepLIFT over `baselines` float32 (R, C, H, W) (Lundberg and Lee 2017). None: black."""
    others = several_baselines(images, baselines)
    maps = [deep_lift(net, images, targets, one[None]).values for one in others]
    return ImageMap(torch.stack(maps).mean(dim=0), others)


def _alpha_1_beta_0(call: Call, value: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    """Share out the relevance of a convolution by what adds to it: positive inputs and weights, or both negative."""
    output = call(value, weight, bias, *rest)
    positive = call(value.clamp(min=0), weight.clamp(min=0), None, *rest)
    if (value < 0).any():
        positive = positive + call(value.clamp(max=0), weight.clamp(max=0), None, *rest)
    share = (output / positive.where(positive > 0, 1)).where(positive > 0, 0).detach()
    return _with_gradient_of(share * positive, output)


def _passed_on(call: Call, value: Tensor, *rest: Any) -> Tensor:
    """Passes the relevance of an activation on unchanged."""
    output = call(value, *rest)
    return _with_gradient_of((output / value.where(value != 0, 1)).detach() * value, output)


def _half_each(call: Call, left: Tensor, right: Any, *rest: Any) -> Tensor:
    """Gives half of a product's relevance to each factor."""
    output = call(left, right, *rest)
    if not (isinstance(right, Tensor) and right.requires_grad):
        return output
    return _with_gradient_of((call(left, right.detach(), *rest) + call(left.detach(), right, *rest)) / 2, output)


LRP: dict[str, Rule] = {
    **dict.fromkeys((*RELUS, *ACTIVATIONS, "sigmoid", "hardsigmoid"), _passed_on),
    **dict.fromkeys(PRODUCTS, _half_each),
    "conv2d": _alpha_1_beta_0,
}


def lrp(net: HeadWrapper, images: Tensor, targets: Tensor) -> ImageMap:
    """Return layer-wise relevance propagation (Bach et al. 2015): the alpha-1-beta-0 rule for convolutions, the epsilon
    rule with epsilon 0 for other layers (a composite after Montavon et al. 2019), half of a product's relevance to each
    factor (Achtibat et al. 2024)."""
    relevance = (_input_gradients(net, images, targets, LRP) * images).sum(dim=1)
    return ImageMap(relevance, torch.zeros_like(images[:1]))


def _only_positive(output: Tensor) -> Tensor:
    output.register_hook(lambda gradient: gradient.clamp(min=0))
    return output


def _no_relu(call: Call, *inputs: Any) -> Tensor:
    raise UserError(NO_RULE.format(call.func.__name__.strip("_")))  # type: ignore[attr-defined]


def _no_maximum(call: Call, value: Tensor, *rest: Any) -> Any:
    """Refuses the larger of two tensors, which may be a ReLU; the largest along an axis is a pooling."""
    return _no_relu(call) if rest and isinstance(rest[0], Tensor) else call(value, *rest)


def _for_relus(rule: Rule) -> dict[str, Rule]:
    """Return `rule` for ReLUs, clamping at 0 among them, and a refusal for other activations."""

    def clamp(call: Call, value: Tensor, *rest: Any) -> Tensor:
        bounds = {**dict(zip(("min", "max"), rest, strict=False)), **call.keywords}  # type: ignore[attr-defined]
        if bounds.get("min") == 0 and bounds.get("max") is None:
            return rule(call, value, *rest)
        return _no_relu(call)

    others = {**dict.fromkeys((*ACTIVATIONS, "glu", "masked_fill"), _no_relu), "max": _no_maximum}
    return {**others, **dict.fromkeys(RELUS, rule), **dict.fromkeys(CLAMPS, clamp)}


GUIDED = _for_relus(lambda call, *inputs: _only_positive(call(*inputs)))
DECONVOLUTION = _for_relus(lambda call, value, *rest: _only_positive(_with_gradient_of(value, call(value, *rest))))


def _by_relus(net: HeadWrapper, images: Tensor, targets: Tensor, rules: Mapping[str, Rule]) -> ImageMap:
    """Return maps by rules for ReLU. Sigmoids are gates beside ReLUs; without a ReLU they are other activations."""
    called = set()

    def noted(name: str, rule: Rule) -> Rule:
        def run(call: Call, *inputs: Any) -> Tensor:
            called.add(name)
            return rule(call, *inputs)

        return run

    every = {**dict.fromkeys(("sigmoid", "hardsigmoid", *UNCLEAR), lambda call, *inputs: call(*inputs)), **rules}
    gradients = _input_gradients(net, images, targets, {name: noted(name, rule) for name, rule in every.items()})
    none, unclear = not called & {*RELUS, *CLAMPS}, ", ".join(sorted(called & {*UNCLEAR}))
    if none and called - {"max"}:
        raise UserError(NO_RULE.format(min(called - {"max"})))
    plain = none and not _is_linear(net, images)
    warnings = ("no ReLU was found: the map is that of the plain gradient",) if plain else ()
    if unclear:
        warnings = (f"functions that may act as a ReLU ({unclear}) pass on the plain gradient",)
    return ImageMap(gradients.sum(dim=1), warnings=warnings)


@torch.no_grad()
def _is_linear(net: HeadWrapper, images: Tensor) -> bool:
    """Return whether scores are a linear function of the image, up to a constant."""
    constant, once, twice = (net(factor * images[:1]) for factor in (0, 1, 2))
    return torch.allclose(twice - constant, 2 * (once - constant), rtol=1e-3, atol=1e-5)


def guided_backprop(net: HeadWrapper, images: Tensor, targets: Tensor) -> ImageMap:
    """Return the gradient that passes only positive contributions through every ReLU (Springenberg et al. 2015). Raises
    `UserError` for a network with other activations."""
    return _by_relus(net, images, targets, GUIDED)


def deconvolution(net: HeadWrapper, images: Tensor, targets: Tensor) -> ImageMap:
    """Return the gradient with only its positive part passed by every ReLU (Zeiler and Fergus 2014). Raises `UserError`
    for a network with other activations."""
    return _by_relus(net, images, targets, DECONVOLUTION)


def guided_grad_cam(net: HeadWrapper, images: Tensor, targets: Tensor, target_layer: str | None = None) -> ImageMap:
    """Return Grad-CAM times guided backpropagation (Selvaraju et al. 2017)."""
    cam, fine = grad_cam(net, images, targets, target_layer), guided_backprop(net, images, targets)
    where = placement(net, cam.layer, images)[2]
    return ImageMap(to_image(cam, net, images) * fine.values, warnings=(*cam.warnings, *fine.warnings, where))
