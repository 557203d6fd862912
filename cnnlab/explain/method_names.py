"""What the attribution methods are called, and what each measures in a sentence."""

from __future__ import annotations

_ABSOLUTE = "_absolute"  # the end of a method's name whose maps are absolute values

_TITLES = {
    "grad_cam": "Grad-CAM",
    "guided_grad_cam": "guided Grad-CAM",
    "hires_cam": "HiResCAM",
    "grad_cam_pp": "Grad-CAM++",
    "layer_cam": "LayerCAM",
    "score_cam": "Score-CAM",
    "smooth_grad": "SmoothGrad",
    "input_x_gradient": "input × gradient",
    "gradient_shap": "GradientSHAP",
    "deep_lift": "DeepLIFT",
    "deep_lift_shap": "DeepLIFT SHAP",
    "lrp": "LRP",
    "layer_integrated_gradients": "layer int. gradients",
    "kernel_shap": "KernelSHAP",
    "shapley_sampling": "Shapley sampling",
    "lime": "LIME",
    "rise": "RISE",
    "occlusion_dense": "occlusion, stride 1",
    "occlusion_grey": "occlusion with grey",
}

_WORDS = {
    "grad_cam": "Where those of the last feature maps that speak for the class are bright.",
    "hires_cam": "Where the last feature maps add to the score, place by place.",
    "grad_cam_pp": "Grad-CAM with weights that favour places of steep gradients.",
    "layer_cam": "Where the last feature maps are bright and more brightness would raise the score.",
    "score_cam": "The last feature maps, each weighted by the score of the image under it.",
    "layer_integrated_gradients": "What each place of the last feature maps adds to the score, from a black image on.",
    "guided_grad_cam": "Grad-CAM times a gradient that follows positive contributions alone.",
    "integrated_gradients": "Each pixel's share in the difference of the score between the image and a black one.",
    "expected_gradients": "Each pixel's share in the difference of the score between the image and other images.",
    "gradient_shap": "Expected gradients at random places on the way, with noise.",
    "deep_lift": "Each pixel's share in the difference to a black image, by rules for each layer.",
    "deep_lift_shap": "DeepLIFT, the mean over other images instead of a black one.",
    "lrp": "The score handed back from layer to layer, in shares.",
    "input_x_gradient": "The pixel times how much a small change of it would move the score.",
    "guided_backprop": "A gradient that follows positive contributions alone.",
    "deconvolution": "A gradient of which every ReLU passes the positive part.",
    "occlusion": "How far the score falls where a small black square covers the image.",
    "occlusion_dense": "How far the score falls where a small black square covers the image, at every place.",
    "occlusion_grey": "How far the score falls where a small grey square covers the image, at every place.",
    "feature_ablation": "How far the score falls when one square of a grid turns black.",
    "shapley_sampling": "What a square of a grid adds to the score, the mean over orders in which squares appear.",
    "kernel_shap": "Shapley values of squares, by a regression on random subsets.",
    "lime": "The weights of a linear model of the score by squares that are black or not.",
    "rise": "The mean of random masks, each weighted by the class's probability under it.",
    "saliency": "How much a small change of the pixel would move the score, whichever way.",
    "smooth_grad": "Saliency, the mean over noisy copies of the image.",
}


def method_title(name: str) -> str:
    """A method's name as it is read, and as its paper writes it."""
    if name.endswith(_ABSOLUTE):
        return f"{method_title(name.removesuffix(_ABSOLUTE))} (absolute)"
    return _TITLES.get(name, name.replace("_", " "))


def method_words(name: str) -> str:
    """What a method measures, in one plain sentence; "" for one that is not ours."""
    if name.endswith(_ABSOLUTE) and name.removesuffix(_ABSOLUTE) in _WORDS:
        return f"{_WORDS[name.removesuffix(_ABSOLUTE)][:-1]}, for or against it."
    return _WORDS.get(name, "")
