"""The way to onnx-graphsurgeon and back: what graphsurgeon drops is kept and attached again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph import constants
from onnxprune.graph.cleanup import annotated
from onnxprune.graph.names import value_names
from onnxprune.graph.source import first_line, use_plain_domain

# From this IR version on a model may hold functions.
_FUNCTIONS_FROM = 8
_EXPORT_ERRORS = (ValueError, TypeError, AttributeError, LookupError, NameError)


def to_gs(model: ir.Model) -> Any:
    """Return the model as an ``onnx_graphsurgeon.Graph``; weights are copied, the model stays as it is.

    Give the model to :func:`from_gs` on the way back: graphsurgeon keeps no metadata, doc strings, overloads,
    quantisation annotations or initialisers that are inputs too.
    """
    import onnx_graphsurgeon as gs

    # graphsurgeon would look for external data files in the working folder.
    loaded = ir.external_data.load_to_model(model.clone())
    with _quiet():
        return gs.import_onnx(ir.serde.serialize_model(loaded))


def from_gs(graph: Any, like: ir.Model | None = None) -> ir.Model:
    """Return a graphsurgeon graph as a model, with what ``like`` (the model it came from) had and graphsurgeon drops.

    Metadata, doc strings (of model, graph, nodes and values, by name), producer, IR version, overloads, quantisation
    annotations and initialisers that are listed as inputs come back for what is still there. Opsets, operator domains
    and local functions that the graph changed or added stay as the graph has them. The graph is not touched.

    Raises:
        ModelError: graphsurgeon cannot write the graph, or it is no graph at all.
    """
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise ModelError(f"an onnx_graphsurgeon.Graph is expected, not {type(graph).__name__}")
    domains = graph.import_domains
    try:
        # The export adds the domains that it finds to the graph's own list.
        graph.import_domains = None if domains is None else list(domains)
        with _quiet():
            proto = gs.export_onnx(graph)
    except (gs.util.exception.OnnxGraphSurgeonException, *_EXPORT_ERRORS) as error:
        raise ModelError(f"graphsurgeon cannot write the graph: {first_line(error)}") from error
    finally:
        graph.import_domains = domains
    source = onnx.ModelProto() if like is None else _without_weights(like)
    _set_opsets(proto, source, graph.opset)
    use_plain_domain(proto)
    if like is not None:
        _attach(proto, source)
    elif graph.ir_version is None:
        # onnx writes its newest IR version, which a runtime of the same day may not read yet.
        needed = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
        proto.ir_version = max(needed, _FUNCTIONS_FROM)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"graphsurgeon's graph cannot be read: {first_line(error)}") from error
    if like is not None:
        model.meta.update(like.meta)
        _list_inputs(model, like)
    return model


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """Return a model as a proto for all that it says beside its weights, which are heavy and stay away."""
    light = model.clone()
    for name, value in light.graph.initializers.items():
        value.const_value = ir.Tensor(np.zeros(0, dtype=np.float32), name=name)
    return ir.serde.serialize_model(light)


def _quiet() -> Any:
    """Keep graphsurgeon's remarks off standard output, which belongs to results."""
    from onnx_graphsurgeon.logger import G_LOGGER

    return G_LOGGER.suppress(G_LOGGER.CRITICAL + 1)


def _set_opsets(proto: onnx.ModelProto, source: onnx.ModelProto, opset: int) -> None:
    """Order the opsets as the source does, in place; a version set as ``graph.opset`` counts, and an added domain."""
    found = {entry.domain: entry.version for entry in proto.opset_import}
    given = {entry.domain: entry.version for entry in source.opset_import}
    if found.get("") == given.get("", found.get("")):
        found[""] = opset
    del proto.opset_import[:]
    for domain in dict.fromkeys([*given, *found]):
        proto.opset_import.add(domain=domain, version=found.get(domain, given.get(domain)))


def _attach(proto: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Copy onto ``proto``, in place, what graphsurgeon dropped of ``source``."""
    proto.ir_version = source.ir_version
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        setattr(proto, field, getattr(source, field))
    proto.model_version = source.model_version
    _copy(source.metadata_props, proto.metadata_props)
    _copy(_functions(proto, source), proto.functions)
    graph, given = proto.graph, source.graph
    graph.doc_string, graph.name = given.doc_string, given.name
    _copy(given.metadata_props, graph.metadata_props)
    nodes = {node.name: node for node in given.node if node.name}
    for node in graph.node:
        known = nodes.get(node.name)
        if known is not None and (known.op_type, known.domain) == (node.op_type, node.domain):
            node.doc_string, node.overload = known.doc_string, known.overload
            _copy(known.metadata_props, node.metadata_props)
    infos = {info.name: info for info in [*given.input, *given.output, *given.value_info]}
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.name in infos:
            info.doc_string = infos[info.name].doc_string
            _copy(infos[info.name].metadata_props, info.metadata_props)
    names = {info.name for info in [*graph.input, *graph.output, *graph.value_info]}
    names |= {tensor.name for tensor in graph.initializer} | {out for node in graph.node for out in node.output}
    _copy([a for a in given.quantization_annotation if a.tensor_name in names], graph.quantization_annotation)


def _copy(source: Any, target: Any) -> None:
    """Give a repeated field the messages of another one."""
    kept = list(source)
    del target[:]
    target.extend(kept)


def _functions(proto: onnx.ModelProto, source: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """Return the local functions: those of the source as it wrote them, unless the graph changed or dropped them."""
    import onnx_graphsurgeon as gs

    if not source.functions:
        return list(proto.functions)
    bare = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import, functions=source.functions)
    with _quiet():
        untouched = {(f.domain, f.name): f for f in gs.export_onnx(gs.import_onnx(bare)).functions}
    given: dict[tuple[str, str], list[onnx.FunctionProto]] = {}
    for function in source.functions:
        given.setdefault((function.domain, function.name), []).append(function)
    found = {(f.domain, f.name): f for f in proto.functions}
    # Overloads share a name, which is all that graphsurgeon knows of a function.
    kept = {
        key: given[key] if len(given.get(key, ())) > 1 or untouched.get(key) == f else [f] for key, f in found.items()
    }
    return [function for group in kept.values() for function in group]


def _list_inputs(model: ir.Model, like: ir.Model) -> None:
    """Bring back, in place, initialisers that no node needs to read: inputs with a default, and annotated scales."""
    graph = model.graph
    listed = [value for value in like.graph.inputs if value.is_initializer()]
    for name in dict.fromkeys([*(str(value.name) for value in listed), *sorted(annotated(graph))]):
        tensor = constants.stored(like.graph.initializers.get(name))
        if tensor is not None and name not in value_names(graph):
            constants.add_tensor(graph, name, constants.own_tensor(tensor, name))
    if not listed:
        return
    values = {str(value.name): value for value in [*graph.inputs, *graph.initializers.values()]}
    order = [str(value.name) for value in [*like.graph.inputs, *graph.inputs]]
    if model.ir_version < constants.LISTED_BEFORE:
        order += values
    for value in listed:
        if value.name in values:
            values[value.name].shape, values[value.name].doc_string = value.shape, value.doc_string
    graph.inputs.clear()
    graph.inputs.extend(values[name] for name in dict.fromkeys(order) if name in values)
