"""Operators of the default domain as functions of torch, in one table per family."""

from onnxprune.exporters.ops import (
    conv,
    elementwise,
    index,
    linear,
    norm,
    pool,
    quant,
    recurrent,
    reduce,
    resize,
    shape,
)
from onnxprune.exporters.ops.call import Call, Mode, Operator, Result

__all__ = ["HOST_INPUTS", "OPERATORS", "Call", "Mode", "Operator", "Result"]

_FAMILIES = (conv, elementwise, index, linear, norm, pool, quant, recurrent, reduce, resize, shape)
OPERATORS: dict[str, Operator] = {name: function for family in _FAMILIES for name, function in family.OPERATORS.items()}
"""``function(call, *inputs)`` by operator."""

HOST_INPUTS: dict[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "CumSum": frozenset({1}),
    "Dropout": frozenset({1, 2}),
    "Expand": frozenset({1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
}
"""Inputs that are read as Python numbers: sizes, positions, axes. They stay on the host, whatever device is used."""
HOST_INPUTS |= {name: frozenset({1}) for name in reduce.OPERATORS if name.startswith("Reduce")}
