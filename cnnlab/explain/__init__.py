"""What a trained network learned, and whether what shows it is right.

The methods (`network`, `activations`, `activation_maximization`, `attribution`, `attribution_metrics`,
`evaluation`) take any `nn.Module` and know nothing of Lightning, Hydra or run folders. `explanation_report` and
`evaluation_report` apply them to a run.
"""
