"""Label rules of the operators that sum over channels: convolutions and matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.labels import Consumer, Labels, Producer, Rule, Tracer
from onnxprune.graph.rewrites import IntAttribute

_SLIDES = "it slides over an axis that carries channels"


def _bias_ok(tracer: Tracer, bias: ir.Value | None) -> bool:
    return bias is None or tracer.stored(bias)


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _consume(tracer: Tracer, node: ir.Node, value: ir.Value, axis: int, weight: ir.Value, weight_axis: int) -> None:
    labels = tracer.axes(value)[axis]
    if labels is not None:
        tracer.tie(weight, weight_axis, labels)
        tracer.consumers.append(Consumer(node, value, axis, weight, weight_axis))


def _produce(tracer: Tracer, node: ir.Node, weight: ir.Value, axis: int) -> Labels:
    shape = tracer.shape(weight)
    assert shape is not None
    size = shape[axis]
    assert size is not None
    labels = tracer.fresh(size)
    tracer.tie(weight, axis, labels)
    tracer.producers.append(Producer(node, weight, axis))
    return labels


def conv(tracer: Tracer, node: ir.Node) -> None:
    """Conv: W[O, I/g, k...]; group 1 ties inputs to axis 1, depthwise unites input and output channels."""
    value, weight, bias = node.inputs[0], node.inputs[1], _input(node, 2)
    assert value is not None and weight is not None
    if not tracer.stored(weight) or not _bias_ok(tracer, bias):
        return tracer.refuse(node, "its weight or bias is computed, shared with a body, or may be fed by the caller")
    shape, given = tracer.shape(weight), tracer.shape(value)
    assert shape is not None
    for labels in tracer.axes(value)[2:]:
        tracer.hold(node, labels, _SLIDES)
    groups = int_attribute(node, "group", 1)
    channels = given[1] if given is not None else None
    if groups < 1 or (shape[0] or 0) % groups or (channels is not None and channels != groups * (shape[1] or 0)):
        return tracer.refuse(node, f"its {groups} groups do not fit the channels of its input and weight")
    inputs = tracer.axes(value)
    if groups == 1:
        _consume(tracer, node, value, 1, weight, 1)
        produced = _produce(tracer, node, weight, 0)
    elif shape[1] == 1 and channels == groups:
        produced = _depthwise(tracer, node, value, weight, groups)
    else:
        produced = _grouped(tracer, node, value, weight, groups)
    if bias is not None and produced is not None:
        tracer.tie(bias, 0, produced)
    tracer.give(node.outputs[0], [inputs[0], produced, *[None] * (len(inputs) - 2)])
    return None


def _depthwise(tracer: Tracer, node: ir.Node, value: ir.Value, weight: ir.Value, groups: int) -> Labels:
    labels = tracer.axes(value)[1]
    shape = tracer.shape(weight)
    assert shape is not None and shape[0] is not None
    if labels is None:
        return None
    repeated = labels.repeat(shape[0] // groups)
    tracer.tie(weight, 0, repeated)
    tracer.rewrites.append(IntAttribute(node, "group", labels))
    return repeated


def _grouped(tracer: Tracer, node: ir.Node, value: ir.Value, weight: ir.Value, groups: int) -> Labels:
    """A grouped convolution: W[O, I/g, k...]; every group loses the same places, on both sides.

    The weight's axis 1 is read by all groups, so place j of every input block is one channel; equal blocks of
    outputs follow from uniting place j of every output block.
    """
    labels = tracer.axes(value)[1]
    if labels is not None:
        blocks = labels.reshape(groups, -1)
        tracer.unite(blocks.ravel(), np.tile(blocks[0], groups))
        tracer.tie(weight, 1, blocks[0])
        tracer.consumers.append(Consumer(node, value, 1, weight, 1, groups))
    produced = _produce(tracer, node, weight, 0)
    assert produced is not None
    blocks = produced.reshape(groups, -1)
    tracer.unite(blocks.ravel(), np.tile(blocks[0], groups))
    return produced


def conv_transpose(tracer: Tracer, node: ir.Node) -> None:
    """ConvTranspose with one group: W[I, O, k...]."""
    value, weight, bias = node.inputs[0], node.inputs[1], _input(node, 2)
    assert value is not None and weight is not None
    if not tracer.stored(weight) or not _bias_ok(tracer, bias):
        return tracer.refuse(node, "its weight or bias is computed, shared with a body, or may be fed by the caller")
    inputs = tracer.axes(value)
    for known in inputs[2:]:
        tracer.hold(node, known, _SLIDES)
    if int_attribute(node, "group", 1) != 1:
        return tracer.refuse(node, "grouped transposed convolution")
    _consume(tracer, node, value, 1, weight, 0)
    labels = _produce(tracer, node, weight, 1)
    if bias is not None and labels is not None:
        tracer.tie(bias, 0, labels)
    tracer.give(node.outputs[0], [inputs[0], labels, *[None] * (len(inputs) - 2)])
    return None


def gemm(tracer: Tracer, node: ir.Node) -> None:
    """Gemm: A[M, K] times B[K, N] (or B[N, K] with transB), plus C broadcast to [M, N]."""
    value, weight, bias = node.inputs[0], node.inputs[1], _input(node, 2)
    assert value is not None and weight is not None
    if not tracer.stored(weight) or not _bias_ok(tracer, bias):
        return tracer.refuse(node, "its weight or bias is computed, shared with a body, or may be fed by the caller")
    if int_attribute(node, "transA", 0):
        return tracer.refuse(node, "its input is transposed (transA)")
    if tracer.axes(value)[0] is not None:
        return tracer.refuse(node, "the rows of its input carry channels")
    out_axis, in_axis = (0, 1) if int_attribute(node, "transB", 0) else (1, 0)
    _consume(tracer, node, value, 1, weight, in_axis)
    labels = _produce(tracer, node, weight, out_axis)
    shape = tracer.shape(bias) if bias is not None else None
    if bias is not None and shape and labels is not None and shape[-1] == len(labels):
        tracer.tie(bias, len(shape) - 1, labels)
    tracer.give(node.outputs[0], [None, labels])
    return None


def matmul(tracer: Tracer, node: ir.Node) -> None:
    """MatMul with one stored matrix, on either side: X[..., K] W[K, N] or W[M, K] X[..., K, N]."""
    left, right = node.inputs
    assert left is not None and right is not None
    weight, value = (right, left) if tracer.stored(right) else (left, right)
    shape, given = tracer.shape(weight), tracer.shape(value)
    if tracer.stored(weight) and tracer.stored(value):
        return tracer.refuse(node, "both operands are stored")
    if not tracer.stored(weight):
        return _product(tracer, node, left, right)
    if shape is None or given is None or len(shape) != 2 or len(given) < 2:
        return tracer.refuse(node, "its operands are not a stored matrix and a tensor of two axes or more")
    labels = list(tracer.axes(value))
    if weight is right:
        _consume(tracer, node, value, len(given) - 1, weight, 0)
        labels[-1] = _produce(tracer, node, weight, 1)
    else:
        _consume(tracer, node, value, len(given) - 2, weight, 1)
        labels[-2] = _produce(tracer, node, weight, 0)
    tracer.give(node.outputs[0], labels)
    return None


def _product(tracer: Tracer, node: ir.Node, left: ir.Value, right: ir.Value) -> None:
    """MatMul of two computed tensors (attention): what is summed over is cut on both sides, the rest goes through."""
    shapes = [tracer.shape(left) or (), tracer.shape(right) or ()]
    if min(len(shape) for shape in shapes) < 2:
        return tracer.refuse(node, "an operand is a vector")
    a, b = list(tracer.axes(left)), list(tracer.axes(right))
    if (a[-1] is None) != (b[-2] is None):
        return tracer.refuse(node, "it sums over channels of which one operand's cannot be cut")
    if a[-1] is not None and b[-2] is not None:
        tracer.unite(a[-1], b[-2])
        tracer.mark_opaque(a[-1], f"'{node.name}' multiplies them with other computed channels")
    rank = max(len(shape) for shape in shapes)
    batch: list[Labels] = []
    for axis in range(-rank, -2):
        known = []
        for labels, shape in zip((a, b), shapes, strict=True):
            if len(shape) >= -axis and shape[axis] != 1:
                known.append(labels[axis])
        labelled = [labels for labels in known if labels is not None]
        if labelled and len(labelled) < len(known):
            return tracer.refuse(node, "a batch axis carries channels of which one operand's cannot be cut")
        for other in labelled[1:]:
            tracer.unite(labelled[0], other)
        batch.append(labelled[0] if labelled else None)
    tracer.give(node.outputs[0], [*batch, a[-2], b[-1]])
    return None


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
