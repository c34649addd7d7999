"""Constants of a graph: reading them, lifting them to initialisers, folding what depends on nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.attributes import int_attribute

# A folded tensor may exceed its inputs by this much before it is left as a computation (Expand, Tile, ...).
_GROWTH_LIMIT = 1 << 16
_NEVER_FOLDED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike"}
    | {"RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
_EVALUATION_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initialiser, or None for anything computed, fed or absent."""
    if value is None or value.producer() is not None or not value.is_initializer():
        return None
    return value.const_value


def array(value: ir.Value | None) -> np.ndarray | None:
    """Return the values of an initialiser as an array, or None for anything else."""
    tensor = constant(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def set_array(value: ir.Value, data: np.ndarray) -> None:
    """Give an initialiser new values (any shape), kept in the element type that it had."""
    old = value.const_value
    assert old is not None
    kept = np.ascontiguousarray(data.astype(old.numpy().dtype, copy=False))
    value.const_value = ir.Tensor(kept, dtype=old.dtype, name=value.name)
    value.shape = ir.Shape(kept.shape)
    value.type = ir.TensorType(old.dtype)


def add_array(graph: ir.Graph, name: str, data: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """Register a new initialiser under ``name`` (made unique) and return it."""
    taken = {str(v.name) for v in graph.inputs} | set(graph.initializers)
    taken |= {str(out.name) for node in graph for out in node.outputs}
    unique = next(
        n for n in itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1))) if n not in taken
    )
    kept = np.ascontiguousarray(data)
    tensor = ir.Tensor(kept, dtype=dtype, name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(kept.shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def lift(model: ir.Model) -> None:
    """Turn every Constant node of the main graph into an initialiser, in place."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def fold(model: ir.Model) -> int:
    """Replace nodes whose inputs are all constants by their result, in place; return how many were folded."""
    count = 0
    version = model.opset_imports.get("", 1)
    for node in list(model.graph):
        if any(out.is_graph_output() for out in node.outputs):
            continue
        results = _static_shape(node) or _evaluate(node, version)
        if results is None:
            continue
        for out, data in zip(node.outputs, results, strict=False):
            if out.uses():
                value = add_array(model.graph, f"{out.name}_folded", data, ir.DataType.from_numpy(data.dtype))
                out.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def _evaluate(node: ir.Node, version: int) -> list[np.ndarray] | None:
    inputs = [array(value) for value in node.inputs if value is not None]
    plain = node.domain == "" and node.op_type not in _NEVER_FOLDED
    bodies = any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    )
    if not plain or bodies or not inputs or any(data is None for data in inputs):
        return None
    feeds = {str(v.name): data for v in node.inputs if v is not None and (data := array(v)) is not None}
    proto = ir.serde.serialize_node(node)
    names = [name for name in proto.output if name]
    graph = onnx.helper.make_graph(
        [proto],
        "fold",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(d.dtype), d.shape)
            for n, d in feeds.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
    )
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        results = ReferenceEvaluator(single).run(None, feeds)
    except _EVALUATION_ERRORS:
        return None  # an operator that the reference cannot run stays as it is
    given = sum(data.nbytes for data in feeds.values())
    if any(not isinstance(r, np.ndarray | np.generic) for r in results):
        return None
    arrays = [np.asarray(r) for r in results]
    return arrays if sum(a.nbytes for a in arrays) <= given + _GROWTH_LIMIT else None


def _static_shape(node: ir.Node) -> list[np.ndarray] | None:
    """Return the value of ``Shape`` (or of ``Gather`` on one) where every size it yields is static."""
    if node.op_type == "Shape" and node.domain == "":
        sizes = _sizes(node)
        return None if sizes is None or None in sizes else [np.array(sizes, dtype=np.int64)]
    source = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
    if source is None or source.op_type != "Shape" or node.domain != "":
        return None
    sizes, index = _sizes(source), array(node.inputs[1])
    if sizes is None or index is None or not all(-len(sizes) <= i < len(sizes) for i in index.flat):
        return None
    picked = [sizes[int(i)] for i in index.flat]
    return None if None in picked else [np.array(picked, dtype=np.int64).reshape(index.shape)]


def _sizes(node: ir.Node) -> list[int | None] | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in shape]
    start = int_attribute(node, "start", 0)
    end = int_attribute(node, "end", len(sizes))
    return sizes[start:end]
