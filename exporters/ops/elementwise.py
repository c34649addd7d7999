"""Operators that treat every element by itself: activations, arithmetic, comparisons, conversions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator
from onnxprune.exporters.tensors import torch_dtype

# From this version on, inputs broadcast as in numpy; before, the attributes broadcast and axis say how.
_NUMPY_BROADCAST = 7


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call, a, b: function(a, _lined_up(call, a, b))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call, *inputs: reduce(function, inputs)


def _lined_up(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Give the second input of an old arithmetic node axes of size 1 behind those that it has."""
    axis = call.attributes.get("axis")
    if call.version >= _NUMPY_BROADCAST or axis is None:
        return b
    return b.reshape(*b.shape, *[1] * (a.ndim - int(axis) % a.ndim - b.ndim))


def _div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return the remainder with the sign of the divisor, or of the dividend (``fmod=1``)."""
    return torch.fmod(a, b) if call.integer("fmod", 0) else torch.remainder(a, b)


def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return a power in the type of the base."""
    found = torch.pow(a, _lined_up(call, a, b))
    return found if a.is_floating_point() and found.is_floating_point() else found.to(a.dtype)


def mean(call: Call, *inputs: Tensor) -> Tensor:
    """Return the mean of all inputs."""
    return reduce(torch.add, inputs) / len(inputs)


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Limit values; the bounds were attributes before opset 11."""
    if "min" in call.attributes or "max" in call.attributes:
        return torch.clamp(x, call.attributes.get("min"), call.attributes.get("max"))
    # maximum first: ONNX gives the upper bound where the two cross.
    x = x if low is None else torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


def cast(call: Call, x: Tensor) -> Tensor:
    """Convert to another element type; floats lose their fraction towards zero."""
    kind = torch_dtype(call.integer("to", 1))
    if kind is None:
        call.refuse("a conversion to this element type is not supported")
    return x.to(kind)


def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose elements."""
    return torch.where(condition, a, b)


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Return ``max(0, min(1, alpha x + beta))``."""
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0, 1)


def gelu(call: Call, x: Tensor) -> Tensor:
    """Return GELU, exact or by tanh."""
    return functional.gelu(x, approximate=call.text("approximate", "none"))


def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """Return ``x`` where positive, else ``slope x``; before opset 7 the slope lies along axis 1."""
    if call.version < _NUMPY_BROADCAST and slope.ndim == 1 and x.ndim > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x < 0, x * slope, x)


def selu(call: Call, x: Tensor) -> Tensor:
    """Return SELU with the node's own numbers."""
    alpha, gamma = call.number("alpha", 1.6732632423543772), call.number("gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def shrink(call: Call, x: Tensor) -> Tensor:
    """Move values towards zero by the bias, and those within ``lambd`` to zero."""
    bias, lambd = call.number("bias", 0.0), call.number("lambd", 0.5)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def is_inf(call: Call, x: Tensor) -> Tensor:
    """Return where values are infinite, of the signs asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.integer("detect_negative", 1):
        found = found | torch.isneginf(x)
    return found | torch.isposinf(x) if call.integer("detect_positive", 1) else found


def swish(call: Call, x: Tensor) -> Tensor:
    """Return ``x sigmoid(alpha x)``."""
    return x * torch.sigmoid(call.number("alpha", 1.0) * x)


def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Shift bits to the left or the right."""
    left = call.text("direction", "LEFT") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "BitShift": bit_shift,
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Cast": cast,
    "CastLike": lambda call, x, like: x.to(like.dtype),
    "Ceil": _unary(torch.ceil),
    "Celu": lambda call, x: functional.celu(x, call.number("alpha", 1.0)),
    "Clip": clip,
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": _binary(_div),
    "Elu": lambda call, x: functional.elu(x, call.number("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "IsInf": is_inf,
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": lambda call, x: functional.leaky_relu(x, call.number("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "Max": _variadic(torch.maximum),
    "Mean": mean,
    "Min": _variadic(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mod": mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Swish": swish,
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": lambda call, x: torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x)),
    "Where": where,
    "Xor": _binary(torch.logical_xor),
}
