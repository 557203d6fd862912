"""Attribution methods, activations, feature visualisation, and the audit of explanations, for any `nn.Module`."""
