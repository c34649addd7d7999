"""Constants of a graph: reading them, lifting them to initialisers, folding what depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.names import free_name, value_names

# From this IR version on, an initialiser that is listed as an input is a default that the caller may replace.
LISTED_BEFORE = 4
# Where a model's meta keeps the inputs of before :func:`unlist_initializers`.
INPUTS = "onnxprune.inputs"
# A folded tensor may exceed its inputs by this much before it is left as a computation (Expand, Tile, ...).
_GROWTH_LIMIT = 1 << 16
# Entries of a stored tensor read at once.
_PIECE = 1 << 22
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
    """Return the tensor of an initialiser, or None for anything computed, absent or that a caller may feed.

    Before IR version 4 initialisers are listed as inputs without being any: :func:`unlist_initializers` mends that.
    """
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor that the model keeps for a value: an initialiser, or what a Constant node holds."""
    if value is None or value.is_initializer():
        return None if value is None else value.const_value
    node = value.producer()
    return None if node is None else _held(node)


def _held(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the tensor of a Constant node, or None for anything else."""
    if node.op_type != "Constant" or node.domain != "" or len(node.attributes) != 1:
        return None
    name, attribute = next(iter(node.attributes.items()))
    if attribute.is_ref():
        return None
    if name == "value":
        return attribute.as_tensor()
    if name in ("value_string", "value_strings"):
        texts = [attribute.as_string()] if name == "value_string" else list(attribute.as_strings())
        held = np.array([text.encode() for text in texts], dtype=object)
        return ir.StringTensor(held.reshape(()) if name == "value_string" else held)
    kind = np.float32 if name.startswith("value_float") else np.int64
    return ir.Tensor(np.array(attribute.value, dtype=kind))


def array(value: ir.Value | None) -> np.ndarray | None:
    """Return the values of an initialiser as an array, or None for anything else."""
    tensor = constant(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def count_nonzero(tensor: ir.TensorProtocol) -> int:
    """Count the non-zero entries of a tensor; one in a data file is read in pieces and never stands in memory."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.itemsize < 1:
        return int(np.count_nonzero(np.asarray(tensor.numpy())))
    dtype, left, found = tensor.dtype.numpy(), int(tensor.size), 0
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        while left:
            piece = np.fromfile(file, dtype=dtype, count=min(left, _PIECE))
            if not len(piece):
                break
            found += int(np.count_nonzero(piece))
            left -= len(piece)
    return found


def release(tensor: ir.TensorProtocol | None) -> None:
    """Let go of a data file's mapping; it is mapped anew when the tensor is read again."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def set_array(value: ir.Value, data: np.ndarray) -> None:
    """Give an initialiser new values (any shape), kept in the element type that it had."""
    old = value.const_value
    assert old is not None
    kept = np.array(data, dtype=old.numpy().dtype, order="C")  # ascontiguousarray would give a scalar an axis
    value.const_value = ir.Tensor(kept, dtype=old.dtype, name=value.name)
    value.shape = ir.Shape(kept.shape)
    value.type = ir.TensorType(old.dtype)


def add_array(
    graph: ir.Graph, name: str, data: np.ndarray, dtype: ir.DataType, taken: set[str] | None = None
) -> ir.Value:
    """Register a new initialiser under ``name`` (made unique) and return it.

    ``taken`` holds the names in use, for callers that add many; it is kept up to date.
    """
    unique = free_name(name, value_names(graph) if taken is None else taken)
    return add_tensor(graph, unique, ir.Tensor(np.array(data, order="C"), dtype=dtype, name=unique))


def add_tensor(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a new initialiser under a name that is free, and return it."""
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def lift(model: ir.Model) -> None:
    """Turn every Constant node of the main graph into an initialiser, in place.

    Initialisers that are listed as inputs although no caller may feed them are taken off that list, see
    :func:`unlist_initializers`.
    """
    unlist_initializers(model)
    graph = model.graph
    for node in list(graph):
        tensor = _held(node)
        out = node.outputs[0] if tensor is not None else None
        if tensor is None or out is None or out.is_graph_output():
            continue
        value = add_tensor(graph, str(out.name), own_tensor(tensor, str(out.name)))
        value.metadata_props.update(out.metadata_props)
        value.meta.update(out.meta)
        out.replace_all_uses_with(value)
        graph.remove(node, safe=True)


def own_tensor(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Return a tensor that shares another one's data under a name of its own.

    Writing a model names its tensors after their values, so that one tensor under two names would take the second
    one in the model that it came from too.
    """
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), name=name)
    source = bare_tensor(tensor)
    return ir.LazyTensor(lambda: source, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def bare_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor whose data :func:`own_tensor` shares."""
    return tensor.raw() if isinstance(tensor, ir.LazyTensor) else tensor


def unlist_initializers(model: ir.Model) -> None:
    """Take initialisers off the list of inputs where the IR version lists all of them, in place.

    Before IR version 4 every initialiser had to be an input too, although no caller may feed it. So that they
    count as stored, they are off the list until :func:`list_initializers` restores it.
    """
    inputs = model.graph.inputs
    if model.ir_version < LISTED_BEFORE:
        model.meta.setdefault(INPUTS, [str(value.name) for value in inputs])
        for value in [value for value in inputs if value.is_initializer()]:
            inputs.remove(value)


def list_initializers(model: ir.Model) -> None:
    """List every initialiser as an input where the IR version asks for that, in the source's order, in place."""
    given = model.meta.pop(INPUTS, [])
    if model.ir_version >= LISTED_BEFORE:
        return
    inputs = model.graph.inputs
    values = {str(value.name): value for value in [*inputs, *model.graph.initializers.values()]}
    order = [name for name in given if name in values]
    inputs.clear()
    inputs.extend(values[name] for name in dict.fromkeys([*order, *values]))


def foldable(model: ir.Model) -> bool:
    """Return whether a node might be folded: one that reads constants alone, or the shape of something."""
    return any(
        node.op_type == "Shape" or (node.inputs and all(v is None or constant(v) is not None for v in node.inputs))
        for node in model.graph
    )


def fold(model: ir.Model, removable: Callable[[ir.Node], bool] = lambda node: True) -> int:
    """Replace nodes whose inputs are all constants by their result, in place; return how many were folded.

    ``removable`` is asked only of nodes that could be folded, and keeps those for which it returns False.
    """
    count = 0
    version, taken = model.opset_imports.get("", 1), value_names(model.graph)
    for node in list(model.graph):
        if any(out.is_graph_output() for out in node.outputs):
            continue
        results = _static_shape(node) or _evaluate(node, version)
        if results is None or not removable(node):
            continue
        for out, data in zip([out for out in node.outputs if out.name], results, strict=True):
            if out.uses():
                kind = ir.DataType.from_numpy(data.dtype)
                value = add_array(model.graph, f"{out.name}_folded", data, kind, taken)
                out.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def _evaluate(node: ir.Node, version: int) -> list[np.ndarray] | None:
    given = [value for value in node.inputs if value is not None]
    plain = node.domain == "" and node.op_type not in _NEVER_FOLDED
    # Most nodes end here: nothing is read before it is known that all of it is constant.
    if not plain or not given or any(constant(value) is None for value in given):
        return None
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    feeds = {str(v.name): data for v in given if (data := array(v)) is not None}
    results = compute(node, feeds, version)
    if results is None:
        return None  # an operator that the reference cannot run stays as it is
    size = sum(data.nbytes for data in feeds.values())
    if any(not isinstance(r, np.ndarray | np.generic) or r.dtype.kind in "OSU" for r in results):
        return None
    arrays = [np.asarray(r) for r in results]
    declared = [out.dtype for out in node.outputs if out.name]
    if any(t is not None and t != ir.DataType.from_numpy(a.dtype) for t, a in zip(declared, arrays, strict=True)):
        return None  # the reference computed in another type than the graph would
    return arrays if sum(a.nbytes for a in arrays) <= size + _GROWTH_LIMIT else None


def compute(node: ir.Node, feeds: dict[str, np.ndarray], version: int) -> list[Any] | None:
    """Return what a node gives for arrays by input name, or None where the reference cannot run it."""
    try:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(_single(node, feeds, version)).run(None, feeds))
    except _EVALUATION_ERRORS:
        return None


def _single(node: ir.Node, feeds: dict[str, np.ndarray], version: int) -> onnx.ModelProto:
    """Return a model of one node, fed with everything it reads."""
    proto = ir.serde.serialize_node(node)
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(data.dtype) for name, data in feeds.items()}
    graph = onnx.helper.make_graph(
        [proto],
        "fold",
        [onnx.helper.make_tensor_value_info(name, kinds[name], data.shape) for name, data in feeds.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])


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
