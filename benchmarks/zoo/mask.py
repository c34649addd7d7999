"""The dense model that a cut must equal: dropped channels are zeroed wherever something sums over them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.spaces import Analysis


def mask_readers(dense: ir.Model, analysis: Analysis, kept: Mapping[str, np.ndarray]) -> None:
    """Zero the channels that ``kept`` drops in front of all that read them, in place.

    ``dense`` is a second copy of the model that ``analysis`` was made from, so that names tell what is what. A
    linear node's input is multiplied by zeros and ones, and so are both sides of a product of computed tensors; a
    recurrent node feeds its channels back to itself, so there the recurrence's columns are zeroed.
    """
    keep = analysis.keep_mask(kept)
    nodes = {str(node.name): node for node in dense.graph}
    tracer = analysis.tracer
    for consumer in tracer.consumers:
        labels = tracer.labels[consumer.value][consumer.axis]
        _multiply(
            dense, nodes[str(consumer.node.name)], str(consumer.value.name), consumer.axis, keep, analysis, labels
        )
    for node in analysis.model.graph:
        if str(node.name) in tracer.refused:
            continue
        if node.op_type in ("LSTM", "GRU", "RNN"):
            _stop_feedback(dense, str(node.inputs[2].name if node.inputs[2] else ""), analysis, keep, node)
        elif node.op_type in ("MatMul", "Gemm") and not any(tracer.sliceable(value) for value in node.inputs[:2]):
            for value, back, turns in zip(node.inputs, (1, 2), ("transA", "transB"), strict=False):
                assert value is not None
                axes = tracer.axes(value)
                if len(axes) >= 2:
                    axis = len(axes) - (3 - back if int_attribute(node, turns, 0) else back)
                    _multiply(dense, nodes[str(node.name)], str(value.name), axis, keep, analysis, axes[axis])


def _multiply(
    dense: ir.Model,
    node: ir.Node,
    name: str,
    axis: int,
    keep: np.ndarray,
    analysis: Analysis,
    labels: np.ndarray | None,
) -> None:
    """Put a Mul by zeros and ones in front of every input of ``node`` called ``name``."""
    if labels is None:
        return
    staying = keep[analysis.channels_of(labels)]
    if staying.all():
        return
    for position, value in enumerate(list(node.inputs)):
        if value is None or value.name != name:
            continue
        assert value.shape is not None and value.dtype is not None
        shape = [-1 if i == axis else 1 for i in range(len(value.shape))]
        factor = staying.reshape(shape).astype(value.dtype.numpy())
        stored = constants.add_array(dense.graph, f"{node.name}/mask{position}", factor, value.dtype)
        product = ir.Value(name=f"{node.name}/masked{position}", shape=value.shape, type=value.type)
        dense.graph.insert_before(
            node, ir.Node("", "Mul", [value, stored], outputs=[product], name=f"{node.name}/masking{position}")
        )
        node.replace_input_with(position, product)


def _stop_feedback(dense: ir.Model, name: str, analysis: Analysis, keep: np.ndarray, node: ir.Node) -> None:
    """Zero the columns of R[D, gates*H, H] by which dropped hidden units reach the others."""
    source = node.inputs[2]
    assert source is not None
    labels = analysis.tracer.axes(source)[2]
    recurrence = dense.graph.initializers[name]
    data = constants.array(recurrence)
    if labels is None or data is None:
        return
    constants.set_array(recurrence, np.where(keep[analysis.channels_of(labels)], data, np.zeros(1, data.dtype)))
