"""Resize and Upsample, one axis after the other: chosen entries, or weighted sums of two or four."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.exporters.ops.call import Call, Operator, whole

# Versions below this one know the coordinates "asymmetric" only.
_COORDINATES = 11


def resize(call: Call, x: Tensor, *inputs: Tensor | None) -> Tensor:
    """Resize by scales or to sizes; before opset 11 the second input holds the scales."""
    old = call.version < _COORDINATES
    given = [*inputs, None, None, None]
    scales, sizes = (given[0], None) if old else (given[1], given[2])
    if call.integer("antialias", 0):
        call.refuse("resizing with antialias is not supported")
    axes = [a % x.ndim for a in call.integers("axes") or range(x.ndim)]
    if sizes is not None and sizes.numel():
        ends = whole(sizes)
        factors = [float(end / x.shape[axis]) for end, axis in zip(ends, axes, strict=True)]
        policy = call.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            ends = [math.floor(x.shape[axis] * factor + 0.5) for axis in axes]
    else:
        found = call.attributes.get("scales") if scales is None else scales.flatten().tolist()
        if not found:
            call.refuse("it has neither scales nor sizes")
        factors = [float(item) for item in found]
        ends = [math.floor(x.shape[axis] * factor) for axis, factor in zip(axes, factors, strict=True)]
    for axis, end, factor in zip(axes, ends, factors, strict=True):
        if factor != 1 or end != x.shape[axis]:
            x = _along(call, x, axis, end, factor)
    return x


def _along(call: Call, x: Tensor, axis: int, end: int, factor: float) -> Tensor:
    mode, size = call.text("mode", "nearest"), x.shape[axis]
    places = _coordinates(call, size, end, factor)
    if mode == "nearest":
        return x.index_select(axis, _nearest(call, places).clamp(0, size - 1).to(x.device))
    below = places.floor()
    part = places - below
    if mode in ("linear", "bilinear", "trilinear"):
        taps, weights = [0, 1], [1 - part, part]
    elif mode == "cubic":
        taps, weights = [-1, 0, 1, 2], _cubic(part, call.number("cubic_coeff_a", -0.75))
    else:
        call.refuse(f"mode '{mode}' is not supported")
    if mode == "cubic" and call.integer("exclude_outside", 0):
        inside = [((below + tap >= 0) & (below + tap < size)).to(part.dtype) for tap in taps]
        weights = [w * i for w, i in zip(weights, inside, strict=True)]
        total = torch.stack(weights).sum(0)
        weights = [w / total for w in weights]
    shape = [-1] + [1] * (x.ndim - 1 - axis)
    found = torch.zeros(())
    for number, (tap, weight) in enumerate(zip(taps, weights, strict=True)):
        index = (below + tap).clamp(0, size - 1).long().to(x.device)
        term = x.index_select(axis, index) * weight.reshape(shape).to(x.device, x.dtype)
        found = term if number == 0 else found + term
    return found


def _coordinates(call: Call, size: int, end: int, factor: float) -> Tensor:
    """Return where on the input's axis every entry of the output lies."""
    out = torch.arange(end, dtype=torch.float32)
    default = "asymmetric" if call.version < _COORDINATES else "half_pixel"
    mode = call.text("coordinate_transformation_mode", default)
    if mode == "asymmetric":
        return out / factor
    if mode == "align_corners":
        return torch.zeros(end) if end == 1 else out * (size - 1) / (end - 1)
    if mode == "pytorch_half_pixel":
        return (out + 0.5) / factor - 0.5 if end > 1 else torch.zeros(end)
    if mode == "half_pixel":
        return (out + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = end / (factor * size)
        return size / 2 * (1 - adjustment) + (out + 0.5) / factor - 0.5
    call.refuse(f"coordinates of mode '{mode}' are not supported")


def _nearest(call: Call, places: Tensor) -> Tensor:
    if call.version < _COORDINATES:
        return places.floor().long()
    mode = call.text("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        return places.floor().long()
    if mode == "ceil":
        return places.ceil().long()
    if mode == "round_prefer_ceil":
        return (places + 0.5).floor().long()
    return (places - 0.5).ceil().long()


def _cubic(part: Tensor, a: float) -> list[Tensor]:
    def near(t: Tensor) -> Tensor:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Tensor) -> Tensor:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return [far(part + 1), near(part), near(1 - part), far(2 - part)]


OPERATORS: dict[str, Operator] = {"Resize": resize, "Upsample": resize}
