"""Label rules of QuantizeLinear and DequantizeLinear: every channel on its own, with its scale and zero point."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph import origins
from onnxprune.graph.labels import Rule, Tracer


def quantise(tracer: Tracer, node: ir.Node) -> None:
    """Hand labels on; a scale and a zero point per channel are cut along, one for all stays as it is.

    A quantised weight carries no labels yet: its reader gives them, and they go back through this node.
    """
    labels = tracer.axes(node.inputs[0])
    for axis, known in enumerate(labels):
        if known is None:
            continue
        tied, reason = origins.sources(node, axis, tracer.shapes)
        if reason is not None:
            tracer.hold(node, known, reason)
        elif not all(tracer.sliceable(value) for value, _ in tied[1:]):
            tracer.hold(node, known, "its scales are computed, shared with a body, or may be fed by the caller")
        else:
            for value, along in tied[1:]:
                tracer.tie(value, along, known)
    tracer.give(node.outputs[0], labels)


RULES: dict[str, Rule] = dict.fromkeys(origins.QUANTISERS, quantise)
