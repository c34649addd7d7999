"""Label rules of convolutions, plain, grouped, depthwise and transposed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph import factors
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.labels import Consumer, Labels, Producer, Rule, Tracer
from onnxprune.graph.rewrites import IntAttribute

_SLIDES = "it slides over an axis that carries channels"
_NOT_OWN = "its weight or bias is computed, shared with a body, or may be fed by the caller"


def conv(tracer: Tracer, node: ir.Node) -> None:
    """Conv: W[O, I/g, k...]; group 1 ties inputs to axis 1, depthwise unites input and output channels."""
    _convolve(tracer, node, in_axis=1)


def conv_transpose(tracer: Tracer, node: ir.Node) -> None:
    """ConvTranspose: W[I, O/g, k...], so that inputs lie along axis 0."""
    _convolve(tracer, node, in_axis=0)


def _convolve(tracer: Tracer, node: ir.Node, in_axis: int) -> None:
    value, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert value is not None and weight is not None
    if not all(tracer.sliceable(item) for item in (weight, bias) if item is not None):
        return tracer.refuse(node, _NOT_OWN)
    shape, given = tracer.shape(weight), tracer.shape(value)
    assert shape is not None and shape[0] is not None and shape[1] is not None
    inputs = tracer.axes(value)
    for labels in inputs[2:]:
        tracer.hold(node, labels, _SLIDES)
    groups = int_attribute(node, "group", 1)
    channels = given[1] if given is not None else None
    reads = shape[0] if in_axis == 0 else groups * shape[1]
    if groups < 1 or shape[0] % groups or (channels is not None and channels != reads):
        return tracer.refuse(node, f"its {groups} groups do not fit the channels of its input and weight")
    each = shape[1] if in_axis == 0 else shape[0] // groups
    produced: Labels
    if groups == 1:
        tracer.consume(node, value, 1, weight, in_axis)
        produced = tracer.produce(node, weight, 1 - in_axis)
    elif reads == groups and (each == 1 or inputs[1] is not None):
        produced = _depthwise(tracer, node, inputs[1], weight, each)
    else:
        produced = _grouped(tracer, node, value, weight, in_axis, groups)
    if bias is not None and produced is not None:
        tracer.tie(bias, 0, produced)
    return tracer.give(node.outputs[0], [inputs[0], produced, *[None] * (len(inputs) - 2)])


def _depthwise(tracer: Tracer, node: ir.Node, labels: Labels, weight: ir.Value, each: int) -> Labels:
    """Every input channel makes ``each`` outputs of its own and goes with them."""
    if labels is None:
        return None
    repeated = labels.repeat(each)
    # Along axis 0 a transposed convolution's weight has inputs, a plain one's outputs.
    size = (tracer.shape(weight) or ())[0]
    tracer.tie(weight, 0, repeated if size == len(repeated) else labels)
    tracer.rewrites.append(IntAttribute(node, "group", labels))
    return repeated


def _grouped(tracer: Tracer, node: ir.Node, value: ir.Value, weight: ir.Value, in_axis: int, groups: int) -> np.ndarray:
    """A grouped convolution: channels are a grid of groups and places, both of inputs and of outputs.

    A group goes with its inputs and its outputs. One axis of the weight holds whole blocks, of outputs (of inputs
    when transposed); the other is read by all groups, so that a place goes in every group at once.
    """
    first, second = (size or 0 for size in (tracer.shape(weight) or ())[:2])
    reads, makes = (first // groups, second) if in_axis == 0 else (second, first // groups)
    labels = tracer.axes(value)[1]
    rows: Labels = None
    if labels is not None:
        rows, places = _blocks(tracer, node, labels, [groups, reads])
        along = labels if in_axis == 0 else places
        if along is not None:
            tracer.tie(weight, in_axis, along)
        if places is not None:
            tracer.read(Consumer(node, value, 1, weight, in_axis, groups))
        if rows is not None:
            tracer.rewrites.append(IntAttribute(node, "group", rows))
        tracer.grouped[str(node.name)] = [known for known in (rows, places) if known is not None]
    made = tracer.fresh(makes)
    # A group with a single output is that output.
    produced = factors.join(tracer, [rows, made if makes > 1 or rows is None else None], [groups, makes])
    assert produced is not None
    tracer.tie(weight, 1 - in_axis, made if in_axis == 0 else produced)
    tracer.producers.append(Producer(node, weight, 1 - in_axis))
    tracer.grouped.setdefault(str(node.name), []).append(made)
    return produced


def _blocks(tracer: Tracer, node: ir.Node, labels: np.ndarray, sizes: Sequence[int]) -> list[Labels]:
    """Return labels of the groups and of the places in them; only places where whole groups cannot go."""
    if node.name not in tracer.united:
        return factors.part(tracer, labels, sizes)
    blocks = labels.reshape(sizes)
    tracer.unite(blocks.ravel(), np.tile(blocks[0], sizes[0]))
    return [None, blocks[0]]


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose}
