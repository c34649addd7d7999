"""What a model costs: parameters, non-zeros, multiply-accumulates and weight bytes, in all and per node.

MACs are counted for one forward pass at the given input shapes; reports print FLOPs = 2 x MACs beside them. Quantised
weights are parameters, their scales and zero points are not; the bytes of all count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph import constants
from onnxprune.graph.constants import stored
from onnxprune.graph.names import node_names
from onnxprune.graph.shapes import Shapes, concrete_shapes, true_inputs

Shape = Sequence[int | None]
ShapeOf = Callable[[ir.Value | None], Shape | None]
# Inputs 3 and 4 of BatchNormalization are statistics, not parameters (PyTorch calls them buffers).
_STATISTICS = {
    "BatchNormalization": frozenset({3, 4}),
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
}
_MOVERS = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class NodeCost:
    """One node's share: ``macs`` is None where its shapes are not known."""

    op_type: str
    params: int
    nonzero: int
    macs: int | None
    bytes: int


@dataclass(frozen=True)
class Cost:
    """A model's cost; ``unknown`` names nodes whose MACs cannot be counted, and why."""

    params: int
    nonzero: int
    macs: int
    bytes: int
    nodes: Mapping[str, NodeCost] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


def example_shapes(model: ir.Model, given: Mapping[str, Sequence[int]] | None = None) -> dict[str, tuple[int, ...]]:
    """Return concrete input shapes: as given (from data), else the declared ones with symbols as 1.

    Raises:
        ModelError: An input declares no shape at all and none is given.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for value in true_inputs(model):
        name = str(value.name)
        if given is not None and name in given:
            shapes[name] = tuple(given[name])
        elif value.shape is None:
            raise ModelError(f"input '{name}' declares no shape; declare one in the model or give data")
        else:
            shapes[name] = tuple(size if isinstance(size, int) else 1 for size in value.shape)
    return shapes


def measure(model: ir.Model, inputs: Mapping[str, Sequence[int]] | None = None) -> Cost:
    """Count a model's cost at the given concrete input shapes (symbols count as 1 where none are given)."""
    bound = example_shapes(model, inputs)
    shapes = concrete_shapes(model, bound)
    nodes: dict[str, NodeCost] = {}
    unknown: dict[str, str] = {}
    seen: set[int] = set()
    for name, node in zip(node_names(model.graph), model.graph, strict=True):
        macs = node_macs(node, lookup(shapes))
        if macs is None:
            unknown[name] = f"{node.op_type} has sizes that depend on {_open_sizes(model, shapes, node)}"
        elif _hides_macs(model, node):
            unknown[name] = f"{node.op_type} has a body of its own, whose MACs are not counted"
        params, nonzero, size = _weights(node, seen)
        if macs != 0 or params:
            nodes[name] = NodeCost(node.op_type, params, nonzero, macs, size)
    total = _totals(model)
    return Cost(
        params=sum(n.params for n in nodes.values()),
        nonzero=sum(n.nonzero for n in nodes.values()),
        macs=sum(n.macs or 0 for n in nodes.values()),
        bytes=total,
        nodes=nodes,
        unknown=unknown,
    )


def lookup(shapes: Shapes) -> ShapeOf:
    """Return a function from a value to its shape in ``shapes``."""

    def shape_of(value: ir.Value | None) -> Shape | None:
        return None if value is None else shapes.get(str(value.name))

    return shape_of


def _open_sizes(model: ir.Model, shapes: Shapes, node: ir.Node) -> str:
    symbols = sorted({str(s) for v in true_inputs(model) for s in (v.shape or ()) if not isinstance(s, int)})
    unknown = [str(v.name) for v in node.inputs if v is not None and None in (shapes.get(str(v.name)) or (None,))]
    return f"'{', '.join(unknown)}'" + (f" (symbols: {', '.join(symbols)})" if symbols else "")


def _weights(node: ir.Node, seen: set[int]) -> tuple[int, int, int]:
    """Return parameters, non-zeros and bytes of a node's own initialisers; a shared one counts where first read."""
    params = nonzero = size = 0
    for position, value in enumerate(node.inputs):
        tensor = stored(value)
        if tensor is None or id(value) in seen or not _is_weight(tensor, node, position):
            continue
        seen.add(id(value))
        size += tensor.nbytes
        if is_parameter(tensor, node, position):
            params += int(tensor.size)
            nonzero += _nonzero(tensor, node)
    return params, nonzero, size


def is_parameter(tensor: ir.TensorProtocol, node: ir.Node, position: int) -> bool:
    """Return whether a stored tensor that a node reads there holds parameters, and no statistics, scales or sizes."""
    return position not in _STATISTICS.get(node.op_type, ()) and _is_weight(tensor, node, position)


def _is_weight(tensor: ir.TensorProtocol, node: ir.Node, position: int) -> bool:
    if tensor.dtype.is_floating_point():
        return True
    # Integers that are dequantised: whole numbers read elsewhere are sizes and indices.
    if position == 0 and node.op_type in _MOVERS:
        return any(_is_weight(tensor, use.node, use.idx) for use in node.outputs[0].uses())
    return position in (0, 2) and node.op_type == "DequantizeLinear"


def _nonzero(tensor: ir.TensorProtocol, node: ir.Node) -> int:
    """Count the entries that are not zero; of quantised ones, those that are not at a zero point that all share."""
    zero = stored(node.inputs[2]) if node.op_type == "DequantizeLinear" and len(node.inputs) > 2 else None
    if zero is None or zero.size != 1 or not zero.numpy().any():
        return constants.count_nonzero(tensor)
    return int(np.count_nonzero(np.asarray(tensor.numpy()) != zero.numpy().reshape(())))


def _totals(model: ir.Model) -> int:
    """Return the bytes of all stored tensors of the graph and its bodies, Constant nodes included."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    values += [out for node in model.graph.all_nodes() if node.op_type == "Constant" for out in node.outputs]
    return sum(tensor.nbytes for value in values if (tensor := stored(value)) is not None)


def _hides_macs(model: ir.Model, node: ir.Node) -> bool:
    """Return whether a node's body, or the function that it calls, holds operators with MACs."""
    function = model.functions.get(node.op_identifier())
    inner = list(function.all_nodes()) if function is not None else []
    for attribute in node.attributes.values():
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        graphs = list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else graphs
        inner += [nested for graph in graphs for nested in graph.all_nodes()]
    return any(nested.op_type in MACS and nested.domain == "" for nested in inner)


def node_macs(node: ir.Node, shape_of: ShapeOf) -> int | None:
    """Return a node's multiply-accumulates under ``shape_of``; 0 for operators that have none; None if unknown."""
    rule = MACS.get(node.op_type) if node.domain == "" else None
    return 0 if rule is None else rule(node, shape_of)


def _product(sizes: Shape | None) -> int | None:
    if sizes is None or any(size is None for size in sizes):
        return None
    return math.prod(size for size in sizes if size is not None)


def _times(*factors: int | None) -> int | None:
    return None if any(f is None for f in factors) else math.prod(f for f in factors if f is not None)


def _conv(node: ir.Node, shape_of: ShapeOf) -> int | None:
    out, weight = shape_of(node.outputs[0]), shape_of(node.inputs[1])
    return None if out is None else _times(_product([out[0], *out[2:]]), _product(weight))


def _conv_transpose(node: ir.Node, shape_of: ShapeOf) -> int | None:
    given, weight = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    return None if given is None else _times(_product([given[0], *given[2:]]), _product(weight))


def _gemm(node: ir.Node, shape_of: ShapeOf) -> int | None:
    left, out = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if left is None or out is None or len(left) != 2:
        return None
    transposed = node.attributes.get("transA")
    inner = left[0] if transposed is not None and transposed.as_int() else left[1]
    return _times(_product(out), inner)


def _matmul(node: ir.Node, shape_of: ShapeOf) -> int | None:
    left, out = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    return None if left is None or not left else _times(_product(out), left[-1])


def _recurrent(node: ir.Node, shape_of: ShapeOf) -> int | None:
    given = shape_of(node.inputs[0])
    kernel, recurrence = shape_of(node.inputs[1]), shape_of(node.inputs[2])
    if given is None or len(given) < 2:
        return None
    weights = [_product(kernel), _product(recurrence)]
    if weights[0] is None or weights[1] is None:
        return None
    return _times(given[0], given[1], weights[0] + weights[1])


def _einsum(node: ir.Node, shape_of: ShapeOf) -> int | None:
    equation = node.attributes["equation"].as_string().replace(" ", "")
    sizes: dict[str, int | None] = {}
    for term, value in zip(equation.split("->")[0].split(","), node.inputs, strict=False):
        shape = shape_of(value)
        if shape is None or "." in term or len(term) != len(shape):
            return None
        sizes.update(zip(term, shape, strict=True))
    return _product(list(sizes.values()))


MACS: dict[str, Callable[[ir.Node, ShapeOf], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Einsum": _einsum,
}
