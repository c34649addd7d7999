"""Normalisation, softmax and dropout."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator, Result, alike

# Before this version softmax works on the input as a matrix, split at the axis.
_SOFTMAX_ALONG_ONE_AXIS = 13
# Before this version GroupNormalization has a scale per group, from it on one per channel.
_SCALE_PER_CHANNEL = 21


def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Result:
    """Normalise channels by stored statistics, or by those of the batch, which then update the stored ones."""
    eps, momentum = call.number("epsilon", 1e-5), 1 - call.number("momentum", 0.9)
    if call.integer("spatial", 1) == 0:
        call.refuse("statistics per position (spatial=0) are not supported")
    asked = bool(call.integer("training_mode", 0))
    x, scale, bias = alike(x, scale, bias)
    if asked or (call.mode.training and call.mode.batch_statistics):
        keeps = call.mode.training and call.mode.batch_statistics
        stored = (mean, var) if keeps else (mean.clone(), var.clone())
        found = functional.batch_norm(x, *stored, scale, bias, training=True, momentum=momentum, eps=eps)
        return (found, *stored) if asked else found
    return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=eps)


def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise every channel of every example by itself."""
    x, scale, bias = alike(x, scale, bias)
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5))


def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """Normalise over the axes from ``axis`` on."""
    x, scale, bias = alike(x, scale, bias)
    axis, eps = call.integer("axis", -1) % x.ndim, call.number("epsilon", 1e-5)
    sizes = list(x.shape[axis:])
    if call.outputs == 1 and list(scale.shape) == sizes and (bias is None or list(bias.shape) == sizes):
        return functional.layer_norm(x, sizes, scale, bias, eps)
    over = list(range(axis, x.ndim))
    mean = x.mean(over, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(over, keepdim=True) + eps)
    found = (x - mean) * inverse * scale
    return found if bias is None else found + bias, mean, inverse


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root of the mean square over the axes from ``axis`` on."""
    over = list(range(call.integer("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(over, keepdim=True) + call.number("epsilon", 1e-5)) * scale


def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise groups of channels."""
    x, scale, bias = alike(x, scale, bias)
    groups, eps = call.integer("num_groups", 1), call.number("epsilon", 1e-5)
    if call.version < _SCALE_PER_CHANNEL:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, eps)


def lrn(call: Call, x: Tensor) -> Tensor:
    """Divide by a power of the squares of neighbouring channels."""
    size = call.integer("size", 1)
    squares = x.square().unsqueeze(1).flatten(3) if x.ndim > 3 else x.square().unsqueeze(1)
    before = (size - 1) // 2
    padded = functional.pad(squares, (0, 0, before, size - 1 - before))
    summed = functional.avg_pool2d(padded, (size, 1), 1, divisor_override=1).squeeze(1).reshape(x.shape)
    scale = call.number("bias", 1.0) + call.number("alpha", 1e-4) / size * summed
    return x / scale ** call.number("beta", 0.75)


def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divide by the norm along an axis; zero stays zero."""
    size = torch.linalg.vector_norm(x, call.integer("p", 2), call.integer("axis", -1), keepdim=True)
    return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))


def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation over the axes given."""
    axes = call.integers("axes") or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def _as_softmax(call: Call, x: Tensor, kind: str) -> Tensor:
    old = call.version < _SOFTMAX_ALONG_ONE_AXIS
    axis = call.integer("axis", 1 if old else -1)
    if old:
        axis = axis % x.ndim
        flat = x.reshape(prod(x.shape[:axis]), -1)
        return _along(flat, 1, kind).reshape(x.shape)
    return _along(x, axis, kind)


def _along(x: Tensor, axis: int, kind: str) -> Tensor:
    if kind == "hard":
        first = x.argmax(axis, keepdim=True)
        return torch.zeros_like(x).scatter(axis, first, 1.0)
    return torch.softmax(x, axis) if kind == "soft" else torch.log_softmax(x, axis)


def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Result:
    """Drop while the module trains, if dropping is on; what the graph says of training was said of another time."""
    share = float(ratio) if ratio is not None else call.number("ratio", 0.5)
    kept = torch.ones_like(x, dtype=torch.bool)
    if call.mode.training and call.mode.dropout and share > 0:
        kept = torch.rand(x.shape, device=x.device) >= share
        x = torch.where(kept, x / max(1 - share, 1e-12), torch.zeros_like(x))
    return x if call.outputs < 2 else (x, kept)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "GroupNormalization": group_normalization,
    "Hardmax": lambda call, x: _as_softmax(call, x, "hard"),
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": lambda call, x: _as_softmax(call, x, "log"),
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "Softmax": lambda call, x: _as_softmax(call, x, "soft"),
}
