"""What a fresh torch export needs before it may leave the machine: no traces, readable names.

torch writes stack traces with local paths into the metadata of nodes and values, and names folded
biases and convolution outputs by internal counters.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["name_after_parameters", "strip_traces"]


def strip_traces(model: ir.Model) -> None:
    """Remove every metadata entry and doc string of the model in place; producer fields stay."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                _strip_value(value)


def name_after_parameters(model: ir.Model) -> None:
    """Give nodes with parameters their module's name, in place, as far as the names are free.

    A node that reads ``layer1.0.conv1.weight`` becomes ``layer1.0.conv1``, and so does its first output
    (graph outputs keep their names); the bias that folding BatchNorm made, ``conv1.weight_bias``, becomes
    ``conv1.bias``.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.endswith(".weight_bias"):
            wanted = value.name.removesuffix(".weight_bias") + ".bias"
            if wanted not in graph.initializers:
                value.name = wanted
    nodes = {node.name for node in graph}
    values = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    values |= {value.name for value in graph.inputs}
    for node in graph:
        owner = _owner(node)
        if owner is None or owner in nodes:
            continue
        node.name = owner
        nodes.add(owner)
        output = node.outputs[0]
        if not output.is_graph_output() and owner not in values:
            output.name = owner
            values.add(owner)


def _strip_value(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
    if value.const_value is not None:
        value.const_value.metadata_props.clear()
        value.const_value.doc_string = None


def _owner(node: ir.Node) -> str | None:
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer() and (value.name or "").endswith(".weight"):
            return (value.name or "").removesuffix(".weight")
    return None
