"""Shape inference: with concrete sizes for analysis and cost, with the model's own symbols for the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from onnxprune.graph import constants

Shapes = dict[str, tuple[int | None, ...]]
# Tensors above this size are declared, not stored, in the proto that inference sees: it reads values of small
# shape constants only, and serialising weights would be slow and stop at 2 GiB.
_VALUE_LIMIT = 1024


def true_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs a caller must feed: graph inputs that are not initialisers (as before IR version 4)."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _light(model: ir.Model) -> ir.Model:
    """Return a clone without large weights and without shapes of intermediate values.

    Inference knows nothing of an operator without a schema: what the model declares of its outputs stays.
    """
    light = model.clone()
    constants.unlist_initializers(light)
    light.ir_version = max(light.ir_version, constants.LISTED_BEFORE)
    graph = light.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        if tensor.nbytes > _VALUE_LIMIT:
            graph.initializers.pop(str(value.name))
            if not value.is_graph_input():
                graph.inputs.append(value)
    for node in graph.all_nodes():
        if node.op_type == "GroupNormalization" and node.domain == "":
            _stand_in(node)
        if is_foreign(light, node):
            continue
        for value in node.outputs:
            value.shape = None
    return light


def is_foreign(model: ir.Model, node: ir.Node) -> bool:
    """Return whether neither ONNX nor the model's own functions define a node's operator."""
    if node.domain == "" or node.op_identifier() in model.functions:
        return False
    return not onnx.defs.has(node.op_type, node.domain)


def _bind(light: ir.Model, inputs: Mapping[str, Sequence[int]]) -> None:
    """Write the sizes that the given inputs have for symbols into what foreign nodes declare, in place."""
    sizes = {
        symbol.value: size
        for value in light.graph.inputs
        for symbol, size in zip(value.shape or (), inputs.get(str(value.name), ()), strict=False)
        if isinstance(symbol, ir.SymbolicDim) and symbol.value is not None
    }
    for node in light.graph.all_nodes():
        for value in node.outputs if is_foreign(light, node) else ():
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else sizes.get(d.value or "") for d in value.shape])


def _stand_in(node: ir.Node) -> None:
    """Let an Identity stand for a GroupNormalization, of which inference in onnx knows nothing."""
    node.op_type, node.version = "Identity", None
    node.attributes.clear()
    node.resize_inputs(1)


def _infer(light: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(light)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return proto  # what cannot be inferred stays unknown, and is named as such by whoever needs it
    assert isinstance(inferred, onnx.ModelProto)
    return inferred


def concrete_shapes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> Shapes:
    """Return the shape of every value when the graph's inputs have the given concrete shapes.

    A size that inference cannot find is None; a value of unknown rank is absent.
    """
    light = _light(model)
    _bind(light, inputs)
    for value in light.graph.inputs:
        if value.name in inputs:
            value.shape = ir.Shape(list(inputs[str(value.name)]))
    for value in light.graph.outputs:
        if value.producer() is not None:
            value.shape = None
    inferred = _infer(light).graph
    found = _known(inferred)
    while _has_unknown(light, found):
        # Older exporters compute pads and shapes in the graph: fold what the sizes found so far make constant.
        _write_back(light, inferred)
        constants.lift(light)
        if not constants.fold(light):
            break
        inferred = _infer(light).graph
        found |= _known(inferred)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            found[str(value.name)] = tuple(value.const_value.shape.numpy())
    return found


def _known(graph: onnx.GraphProto) -> Shapes:
    found: Shapes = {}
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def _write_back(light: ir.Model, inferred: onnx.GraphProto) -> None:
    """Give the values of ``light`` the shapes and types that inference found."""
    kinds = {info.name: info.type.tensor_type.elem_type for info in [*inferred.value_info, *inferred.output]}
    found = _known(inferred)
    for node in light.graph:
        for value in node.outputs:
            name = str(value.name)
            if name in found and kinds.get(name):
                value.shape = ir.Shape(found[name])
                value.type = ir.TensorType(ir.DataType(kinds[name]))


def _has_unknown(light: ir.Model, found: Shapes) -> bool:
    return any(
        None in found.get(str(value.name), (None,)) for node in light.graph for value in node.outputs if value.name
    )


def refresh_shapes(model: ir.Model) -> None:
    """Infer the shapes of intermediate values anew, in place; graph inputs and outputs keep what they declare."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
            value.type = ir.TensorType(value.const_value.dtype)
    light = _light(model)
    for kept, cleared in zip(model.graph.outputs, light.graph.outputs, strict=True):
        cleared.shape = kept.shape
    inferred = _infer(light).graph
    infos = {info.name: info for info in [*inferred.input, *inferred.output, *inferred.value_info]}
    for node in model.graph:
        for value in node.outputs:
            if value.is_graph_output():
                continue
            info = infos.get(str(value.name))
            value.shape = None if info is None else ir.serde.deserialize_type_proto_for_shape(info.type)
            kind = None if info is None else ir.serde.deserialize_type_proto_for_type(info.type)
            if kind is not None:
                value.type = kind
