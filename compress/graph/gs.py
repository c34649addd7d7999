"""The way to onnx-graphsurgeon and back: what graphsurgeon drops is kept and attached again."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError


def to_gs(model: ir.Model) -> Any:
    """Return the model as an ``onnx_graphsurgeon.Graph``; weights are copied, the model stays as it is.

    Give the model to :func:`from_gs` on the way back: graphsurgeon keeps no metadata, doc strings, quantisation
    annotations or local functions.
    """
    import onnx_graphsurgeon as gs

    # graphsurgeon would look for external data files in the working folder.
    loaded = ir.external_data.load_to_model(model.clone())
    return gs.import_onnx(ir.serde.serialize_model(loaded))


def from_gs(graph: Any, like: ir.Model) -> ir.Model:
    """Return a graphsurgeon graph as a model, with what ``like`` (the model it came from) had and graphsurgeon drops.

    Metadata, doc strings (of model, graph, nodes and values, by name), producer, IR version, opsets, local
    functions and quantisation annotations of tensors that are still there come back.

    Raises:
        ModelError: graphsurgeon cannot write the graph, or it is no graph at all.
    """
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise ModelError(f"an onnx_graphsurgeon.Graph is expected, not {type(graph).__name__}")
    try:
        proto = gs.export_onnx(graph)
    except (gs.util.exception.OnnxGraphSurgeonException, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(f"graphsurgeon cannot write the graph: {error}") from error
    _attach(proto, ir.serde.serialize_model(like))
    model = ir.serde.deserialize_model(proto)
    model.meta.update(like.meta)
    return model


def _attach(proto: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Copy onto ``proto``, in place, what graphsurgeon dropped of ``source``."""
    proto.ir_version = source.ir_version
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        setattr(proto, field, getattr(source, field))
    proto.model_version = source.model_version
    for repeated in ("opset_import", "metadata_props", "functions"):
        del getattr(proto, repeated)[:]
        getattr(proto, repeated).extend(getattr(source, repeated))
    graph, given = proto.graph, source.graph
    graph.doc_string, graph.name = given.doc_string, given.name
    del graph.metadata_props[:]
    graph.metadata_props.extend(given.metadata_props)
    nodes = {node.name: node for node in given.node if node.name}
    for node in graph.node:
        known = nodes.get(node.name)
        if known is not None and known.op_type == node.op_type:
            node.doc_string = known.doc_string
            del node.metadata_props[:]
            node.metadata_props.extend(known.metadata_props)
    infos = {info.name: info for info in [*given.input, *given.output, *given.value_info]}
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.name in infos:
            info.doc_string = infos[info.name].doc_string
    names = {info.name for info in [*graph.input, *graph.output, *graph.value_info]}
    names |= {tensor.name for tensor in graph.initializer} | {out for node in graph.node for out in node.output}
    del graph.quantization_annotation[:]
    graph.quantization_annotation.extend(a for a in given.quantization_annotation if a.tensor_name in names)
