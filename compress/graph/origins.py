"""Weights behind nodes: stored tensors that the graph dequantises, casts or transposes before an operator reads them.

Such a weight is cut like a stored one: what goes along an axis of it goes along the axis behind it of every tensor
that it is made from (integers, scales, zero points).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import int_attribute, ints_attribute
from onnxprune.graph.shapes import Shapes

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_MOVERS = ("Cast", "Identity", "Transpose")


def is_weight(value: ir.Value | None, shapes: Shapes) -> bool:
    """Return whether a value is a weight that one node alone reads, so that it can be cut.

    It is an initialiser, or made from initialisers of its own by dequantising, casting and transposing.
    """
    if value is None or value.is_graph_input() or value.is_graph_output() or len(value.uses()) != 1:
        return False
    if value.is_initializer():
        return value.const_value is not None
    node = behind(value)
    return node is not None and all(is_weight(item, shapes) for item in _cut_along(node, shapes))


def behind(value: ir.Value) -> ir.Node | None:
    """Return the node that makes a value, if it is one through which a weight can be seen."""
    node = value.producer()
    seen = node is not None and node.domain in ("", "ai.onnx") and node.op_type in (*QUANTISERS, *_MOVERS)
    return node if seen else None


def shows_stored(value: ir.Value) -> bool:
    """Return whether a value is a stored tensor seen through nodes (an initialiser itself is none)."""
    node = behind(value)
    source = None if node is None else node.inputs[0]
    return source is not None and (source.is_initializer() or shows_stored(source))


def _cut_along(node: ir.Node, shapes: Shapes) -> list[ir.Value | None]:
    """Return the inputs of a node that are cut when its output is; one scale for all is not."""
    parameters = node.inputs[1:3] if node.op_type in QUANTISERS and not _per_tensor(node, shapes) else ()
    return [node.inputs[0], *(value for value in parameters if value is not None)]


def _shape(value: ir.Value | None, shapes: Shapes) -> tuple[int | None, ...]:
    return () if value is None else shapes.get(str(value.name), ())


def _per_tensor(node: ir.Node, shapes: Shapes) -> bool:
    shape = _shape(node.inputs[1], shapes)
    return not shape or shape == (1,)


def sources(node: ir.Node, axis: int, shapes: Shapes) -> tuple[list[tuple[ir.Value, int]], str | None]:
    """Return the axes of a node's inputs that lie behind ``axis`` of its output, and why none may be cut, if so."""
    value = node.inputs[0]
    assert value is not None
    rank = len(_shape(value, shapes))
    if node.op_type == "Transpose":
        return [(value, ints_attribute(node, "perm", range(rank)[::-1])[axis])], None
    found = [(value, axis)]
    if node.op_type not in QUANTISERS or _per_tensor(node, shapes):
        return found, None
    parameters = [item for item in node.inputs[1:3] if item is not None]
    along = int_attribute(node, "axis", 1)
    along += rank if along < 0 else 0
    if int_attribute(node, "block_size", 0):
        if axis == along:
            return found, f"'{node.name}' quantises them in blocks, which a cut would part"
        return [*found, *((item, axis) for item in parameters)], None
    return [*found, *((item, 0) for item in parameters if axis == along)], None


def values(value: ir.Value) -> np.ndarray | None:
    """Return what a weight holds when the graph runs, None where it is no weight."""
    node = None if value.is_initializer() else behind(value)
    if node is None:
        return constants.array(value)
    given = [None if item is None else values(item) for item in node.inputs]
    data = given[0]
    if data is None:
        return None
    if node.op_type == "Transpose":
        return np.transpose(data, ints_attribute(node, "perm", range(data.ndim)[::-1]))
    if node.op_type == "Cast":
        return data.astype(ir.DataType(int_attribute(node, "to", 1)).numpy())
    return data if node.op_type == "Identity" else _scaled(node, data, given[1:])


def _scaled(node: ir.Node, data: np.ndarray, parameters: list[np.ndarray | None]) -> np.ndarray | None:
    """Return the result of QuantizeLinear (rounded, not yet narrowed to its integer type) or DequantizeLinear."""
    scale, zero = (*(_spread(node, item, data.shape) for item in parameters), None)[:2]
    if scale is None:
        return None
    offset = np.float32(0) if zero is None else zero
    if node.op_type == "DequantizeLinear":
        return np.asarray((data.astype(np.float32) - offset) * scale)
    return np.asarray(np.rint(data.astype(np.float32) / scale) + offset)


def _spread(node: ir.Node, parameter: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return scales or zero points in float32, with as many axes as what they scale."""
    if parameter is None or parameter.size == 1:
        return None if parameter is None else parameter.astype(np.float32).reshape(())
    axis, block = int_attribute(node, "axis", 1), int_attribute(node, "block_size", 0)
    if block:
        whole = parameter.astype(np.float32).repeat(block, axis=axis)
        return np.take(whole, np.arange(shape[axis]), axis=axis)
    wide = [1] * len(shape)
    wide[axis] = -1
    return parameter.astype(np.float32).reshape(wide)
