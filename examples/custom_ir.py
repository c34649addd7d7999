"""A rewrite in onnx_ir: ``onnxprune apply "custom(examples/custom_ir.py:fuse_hard_swish)" --in M --out P``.

Exporters write hard-swish as Mul(x, HardSigmoid(x)) with alpha 1/6 and beta 1/2; from opset 14 on there is one
operator for it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.contract import Context

_SINCE = 14


def fuse_hard_swish(model: ir.Model, context: Context) -> ir.Model:
    """Put HardSwish in the place of Mul(x, HardSigmoid(x))."""
    if model.opset_imports.get("", 1) < _SINCE:
        raise ValueError(f"HardSwish needs opset {_SINCE}, the model has {model.opset_imports.get('', 1)}")
    with context.progress("looking for hard-swish", len(model.graph)) as advance:
        for node in list(model.graph):
            _fuse(model.graph, node)
            advance(1)
    return model


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    if node.op_type != "Mul" or node.domain:
        return
    for value, gate in (node.inputs, node.inputs[::-1]):
        inner = None if gate is None else gate.producer()
        if inner is None or inner.op_type != "HardSigmoid" or inner.inputs[0] is not value:
            continue
        slope, start = (
            inner.attributes[name].as_float() if name in inner.attributes else default
            for name, default in (("alpha", 0.2), ("beta", 0.5))
        )
        if abs(slope - 1 / 6) > 1e-6 or abs(start - 0.5) > 1e-6 or len(list(gate.uses())) > 1 or gate.is_graph_output():
            continue
        out = node.outputs[0]
        fused = ir.Node("", "HardSwish", [value], name=node.name, doc_string=node.doc_string)
        fused.outputs[0].name, fused.outputs[0].shape, fused.outputs[0].type = f"{out.name}_fused", out.shape, out.type
        graph.insert_after(node, fused)
        if out.is_graph_output():
            name, out.name = out.name, None
            out.replace_all_uses_with(fused.outputs[0], replace_graph_outputs=True)
            fused.outputs[0].name = name
        else:
            out.replace_all_uses_with(fused.outputs[0])
        graph.remove([node, inner], safe=True)
        return
