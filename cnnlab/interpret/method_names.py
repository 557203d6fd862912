"""Titles and one-sentence descriptions of the attribution methods."""

from __future__ import annotations

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
}

_DESCRIPTIONS = {  # of the methods on the Play page
    "grad_cam": "Bright where the last layer found evidence for this class.",
    "hires_cam": "Bright where the last layer adds to the score, place by place.",
    "layer_cam": "Bright where the last layer is active and more activity would raise the score.",
    "guided_grad_cam": "Grad-CAM times a gradient that follows only positive contributions.",
    "integrated_gradients": "Each pixel's share of the score difference between the image and a black one.",
    "lrp": "The score handed back from layer to layer, in shares.",
    "input_x_gradient": "The pixel times the effect of a small change of it on the score.",
    "occlusion": "The drop of the score when a small black square covers the pixel.",
    "saliency": "The effect of a small change of the pixel on the score, up or down.",
}


def method_title(name: str) -> str:
    """Return a method's name as its paper writes it."""
    return _TITLES.get(name, name.replace("_", " "))


def method_description(name: str) -> str:
    """Return one sentence about a method; "" for methods without a description."""
    return _DESCRIPTIONS.get(name, "")
