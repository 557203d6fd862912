"""The layers of a network in running order: shapes, parameters, and which layer feeds which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.interpret.network import frozen_copy, leaf_modules
from cnnlab.models.layers import parameter_counts
from cnnlab.plots.architecture import LayerRow
from cnnlab.utils.console import as_table

NAMED = 2  # layers before another one, in the text


def layer_table(net: nn.Module, image_shape: Sequence[int]) -> list[LayerRow]:
    """Return every layer that runs on an image (C, H, W), found with one forward pass. Connections follow the graph of
    gradients: "image" is the input, and functions such as `torch.cat` count as part of the layer after them."""
    copied, rows, runs = frozen_copy(net), list[LayerRow](), dict[str, int]()
    counts = {name: parameter_counts(layer)["total"] for name, layer in leaf_modules(copied).items()}
    parameter = next(copied.parameters(), torch.zeros(0))
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype, requires_grad=True).clone()
    nodes: dict[Any, str] = {image.grad_fn: "image"}

    def row_of(name: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            runs[name] = runs.get(name, 0) + 1
            run_name = name if runs[name] == 1 else f"{name} ({runs[name]})"
            sources = [source for value in inputs if isinstance(value, Tensor) for source in _sources(value, nodes)]
            kernel = getattr(layer, "kernel_size", ())
            kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            rows.append(
                LayerRow(
                    name=run_name,
                    type=" ".join([type(layer).__name__, " × ".join(map(str, kernel))]).strip(),
                    shape=tuple(output.shape[1:]) if isinstance(output, Tensor) else (),
                    parameters=counts[name] if runs[name] == 1 else 0,
                    connected_to=tuple(dict.fromkeys(sources)),
                )
            )
            if not isinstance(output, Tensor) or not output.requires_grad:
                return output
            output = output.clone()  # so that its node in the graph is this layer's alone
            nodes[output.grad_fn] = run_name
            return output

        return hook

    for name, layer in leaf_modules(copied).items():
        layer.register_forward_hook(row_of(name))
    with torch.enable_grad():
        copied(image)
    return rows


def _sources(value: Tensor, nodes: dict[Any, str]) -> list[str]:
    """Return the nearest layers before a tensor."""
    sources, waiting, seen = list[str](), [value.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop(0)
        if node in nodes:
            sources.append(nodes[node])
        elif node is not None and node not in seen:
            waiting += [before for before, _ in node.next_functions]
        seen.add(node)
    return sources


def layer_text(net: nn.Module, rows: Sequence[LayerRow]) -> str:
    """Return the table of `layer_table` as text, with the totals as Keras counts them."""
    counts = parameter_counts(net)
    table = [["layer", "type", "connected to", "output shape", "parameters"]]
    for row in rows:
        others = len(row.connected_to) - NAMED
        sources = ", ".join([*row.connected_to[:NAMED], *([f"{others} others"] if others > 0 else [])])
        table.append([row.name, row.type, sources, row.size, f"{row.parameters:,}"])
    elsewhere = counts["total"] - sum(row.parameters for row in rows)
    table += [["not in these layers", "", "", "", f"{elsewhere:,}"]] if elsewhere else []
    totals = f"{counts['total']:,} parameters: {counts['trainable']:,} trainable, {counts['non_trainable']:,} not"
    return f"{as_table(table, left=3)}\n\n{totals}\n"
