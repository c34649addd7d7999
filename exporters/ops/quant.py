"""Quantised numbers; gradients go straight through the rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxprune.exporters.ops.call import Call, Operator, Result
from onnxprune.exporters.ops.conv import conv

_RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255), torch.int16: (-32768, 32767), torch.uint16: (0, 65535)}
_BY_NUMBER = {2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16}


def _lined_up(call: Call, x: Tensor, numbers: Tensor) -> Tensor:
    """Give scales or zero points the axes of what they belong to: one, one per slice, or one per block."""
    if numbers.numel() == 1:
        return numbers.reshape(())
    axis, block = call.integer("axis", 1) % x.ndim, call.integer("block_size", 0)
    if block:
        return numbers.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return numbers.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Round to steps of the scale; between here and DequantizeLinear the numbers stay floats, for their gradients."""
    kind = zero.dtype if zero is not None else _BY_NUMBER.get(call.integer("output_dtype", 2), torch.uint8)
    if kind not in _RANGES:
        call.refuse("quantisation to this element type is not supported")
    steps = x / _lined_up(call, x, scale)
    steps = steps + (steps.round() - steps).detach()
    shifted = steps if zero is None else steps + _lined_up(call, x, zero).to(steps.dtype)
    found = torch.clamp(shifted, *_RANGES[kind])
    return found if call.readers == {"DequantizeLinear"} else found.to(kind)


def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return the numbers that steps stand for."""
    steps = x.to(scale.dtype)
    if zero is not None:
        steps = steps - _lined_up(call, x, zero).to(scale.dtype)
    return steps * _lined_up(call, x, scale)


def dynamic_quantize(call: Call, x: Tensor) -> Result:
    """Quantise to bytes by the range of the input itself."""
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    found = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    return found.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    # Products of bytes and their sums are exact in float64.
    wide = x.double()
    if zero is None:
        return wide
    if zero.numel() == 1:
        return wide - zero.double().reshape(())
    return wide - zero.double().reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """Multiply matrices of bytes."""
    return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1)).to(torch.int32)


def conv_integer(
    call: Call, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """Convolve bytes."""
    found = conv(call, _centred(x, x_zero, 1), _centred(weight, w_zero, 0))
    return found.to(torch.int32)


OPERATORS: dict[str, Operator] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "MatMulInteger": matmul_integer,
    "QuantizeLinear": quantize,
}
