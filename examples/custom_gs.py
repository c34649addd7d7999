"""A rewrite in onnx_graphsurgeon: ``onnxprune apply "custom(examples/custom_gs.py:tidy_clips)" --in M --out P``.

Mobile networks are often exported with Clip(Relu(x), 0, 6), or with several Clips in a row, and with Dropout nodes
that do nothing any more. One Clip remains of every such chain.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs


def tidy_clips(graph: gs.Graph) -> None:
    """Merge chains of Relu and Clip into one Clip, and take Identity and inference-time Dropout out."""
    for node in graph.nodes:
        if node.op == "Identity" or (node.op == "Dropout" and len(node.inputs) < 3):
            _bypass(graph, node)
    for node in graph.nodes:
        while _merge(graph, node):
            pass
    graph.cleanup().toposort()


def _bypass(graph: gs.Graph, node: gs.Node) -> None:
    """Let the readers of a node read its input instead."""
    source, made = node.inputs[0], node.outputs[0]
    if made in graph.outputs or any(extra.outputs or extra in graph.outputs for extra in node.outputs[1:]):
        return
    for reader in list(made.outputs):
        for place, value in enumerate(reader.inputs):
            if value is made:
                reader.inputs[place] = source
    node.outputs.clear()


def _merge(graph: gs.Graph, node: gs.Node) -> bool:
    """Take the Relu or Clip in front of a Clip into it; tell whether there was one."""
    bounds = _bounds(node)
    if node.op != "Clip" or bounds is None or not node.inputs[0].inputs:
        return False
    before = node.inputs[0].inputs[0]
    inner = _bounds(before)
    alone = before.outputs and len(before.outputs[0].outputs) == 1 and before.outputs[0] not in graph.outputs
    if inner is None or not alone:
        return False
    low, high = (np.clip(bound, *inner) for bound in bounds)
    kind = next(value.values.dtype for value in node.inputs[1:] if isinstance(value, gs.Constant))
    names = (f"{node.name}_{word}" for word in ("low", "high"))
    # An outer bound moves into the inner range: clipping twice is clipping to the outer bounds, clipped.
    limits = [gs.Constant(name, np.array(bound, kind)) for name, bound in zip(names, (low, high), strict=True)]
    node.inputs = [before.inputs[0], *limits]
    before.outputs.clear()
    return True


def _bounds(node: gs.Node) -> tuple[float, float] | None:
    """Return the range of a Relu's or Clip's results, or None for other nodes and for computed bounds."""
    if node.op == "Relu":
        return 0.0, float("inf")
    if node.op != "Clip" or len(node.inputs) < 2:
        return None
    found = [-float("inf"), float("inf")]
    for place, value in enumerate(node.inputs[1:3]):
        if isinstance(value, gs.Constant):
            found[place] = value.values.item()
        elif not value.is_empty():
            return None
    return found[0], found[1]
