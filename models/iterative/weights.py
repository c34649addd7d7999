"""A graph's weights between rounds: what is pruned, going back, what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.errors import ModelError
from onnxprune.exporters.to_torch import MASK_SHARE, OnnxModule
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import input_axis, weights
from onnxprune.models.iterative.choosing import Layer, Mask
from onnxprune.models.iterative.pqindex import pq_index

__all__ = ["Remaining", "Snapshot", "magnitudes", "output_axes", "present_masks", "remaining", "restore", "snapshot"]

Snapshot = dict[str, Tensor]


@dataclass(frozen=True)
class Remaining:
    """What is left of one weight: entries, those not masked, and the PQ index of these."""

    name: str
    total: int
    left: int
    pq: float


def output_axes(model: ir.Model, module: OnnxModule) -> dict[str, int]:
    """Return the weights that are pruned, those of linear nodes, with the axis of their outputs.

    Raises:
        ModelError: There are none.
    """
    trained = module.trained()
    found = {}
    for value in weights(lifted(model), Selection.parse("iterate", None, None)).values:
        name = str(value.name)
        if name in trained:
            axes = [axis for axis in range(trained[name].ndim) if axis != input_axis(value) % trained[name].ndim]
            found[name] = axes[0]
    if not found:
        raise ModelError("the graph has no weights of Conv, ConvTranspose, Gemm or MatMul that could be pruned")
    return found


def present_masks(module: OnnxModule, axes: Mapping[str, int]) -> dict[str, Mask]:
    """Return masks of what is there: of everything, but for the zeros of tensors that were pruned before."""
    found = {}
    for name in axes:
        mask = module.trained()[name].detach().cpu().numpy() != 0
        found[name] = mask if 1 - mask.mean() >= MASK_SHARE and mask.any() else np.ones_like(mask)
    return found


def magnitudes(module: OnnxModule, axes: Mapping[str, int], masks: Mapping[str, Mask]) -> dict[str, Layer]:
    """Return the weights as what is chosen from, in float64."""
    trained = module.trained()
    values = {name: trained[name].detach().abs().double().cpu().numpy() for name in axes}
    return {name: Layer(values[name], masks[name], axis) for name, axis in axes.items()}


def remaining(layers: Mapping[str, Layer], p: float, q: float) -> list[Remaining]:
    """Return what is left of every weight."""
    return [
        Remaining(name, layer.mask.size, int(layer.mask.sum()), pq_index(layer.values[layer.mask], p, q))
        for name, layer in layers.items()
    ]


def snapshot(module: OnnxModule) -> Snapshot:
    """Return copies of all that training changes: Parameters and the statistics of normalisation."""
    tensors = {**module.trained(), **module.statistics()}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(module: OnnxModule, stored: Mapping[str, Tensor], masks: Mapping[str, Mask]) -> None:
    """Go back to stored weights and statistics, with what the masks leave out at zero."""
    for name, tensor in {**module.trained(), **module.statistics()}.items():
        tensor.copy_(stored[name])
    module.set_masks({name: torch.from_numpy(mask) for name, mask in masks.items()})
