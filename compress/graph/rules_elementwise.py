"""Label rules of operators that treat every channel on its own: activations, pools, norms, broadcasts."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute, ints_attribute
from onnxprune.graph.constants import array
from onnxprune.graph.labels import Labels, Rule, Tracer
from onnxprune.graph.rewrites import Entry

# fmt: off
UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)
BROADCAST = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)
_REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
# fmt: on
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
# Before this opset an attribute, not the shapes, said how operands were broadcast.
_BROADCAST_BY_SHAPE = 7
# Before this opset BatchNormalization could have statistics for every position.
_SPATIAL_ONLY = 9


def pass_through(tracer: Tracer, node: ir.Node) -> None:
    """Hand labels on along every axis whose size stays; an axis that changes size must carry none."""
    value = node.inputs[0]
    before, after = tracer.shape(value) or (), tracer.shape(node.outputs[0]) or ()
    labels = tracer.axes(value)
    changed = [i for i, known in enumerate(labels) if known is not None and (i >= len(after) or before[i] != after[i])]
    if changed:
        return tracer.refuse(node, f"it changes the size of channel axis {changed[0]}")
    for out in node.outputs:
        shape = tracer.shape(out)
        if shape is not None and len(shape) == len(after):
            tracer.give(
                out,
                [known if known is not None and len(known) == shape[i] else None for i, known in enumerate(labels)],
            )
    return None


def pool(tracer: Tracer, node: ir.Node) -> None:
    """Pools treat every channel of axis 1 on its own and mix positions along the axes after it."""
    labels = tracer.axes(node.inputs[0])
    for known in labels[2:]:
        tracer.hold(node, known, "it slides over an axis that carries channels")
    for out in node.outputs:
        if tracer.shape(out) is not None:
            tracer.give(out, [*labels[:2], *[None] * (len(labels) - 2)])


def resize(tracer: Tracer, node: ir.Node) -> None:
    """Resize by scales leaves channels alone; stored sizes name the channel count, which a cut must rewrite."""
    target = node.inputs[3] if len(node.inputs) > 3 else None
    labels = tracer.axes(node.inputs[0])
    if target is None or all(known is None for known in labels):
        return pass_through(tracer, node)
    named = [axis % len(labels) for axis in ints_attribute(node, "axes", range(len(labels)))]
    listed = [axis for axis in named if labels[axis] is not None]
    if listed and not tracer.stored(target):
        return tracer.refuse(node, "its sizes are computed, read inside a body, or may be fed by the caller")
    pass_through(tracer, node)
    for axis in listed:
        known = tracer.axes(node.outputs[0])[axis]
        if known is not None:
            tracer.rewrites.append(Entry(target, named.index(axis), known))
    return None


def shape(tracer: Tracer, node: ir.Node) -> None:
    """Shape: channels whose count is really read stay; a reader may pick other sizes by stored indices."""
    value, out = node.inputs[0], node.outputs[0]
    labels = tracer.axes(value)
    read = set(range(len(labels))[int_attribute(node, "start", 0) : int_attribute(node, "end", len(labels))])
    offset = min(read, default=0)
    readers = [use.node for use in out.uses()]
    picks = [array(reader.inputs[1]) if reader.op_type == "Gather" else None for reader in readers]
    if not out.is_graph_output() and all(pick is not None for pick in picks):
        count = len(read)
        read = {offset + int(i) % count for pick in picks if pick is not None for i in pick.flat}
    for axis in sorted(read):
        tracer.hold(node, labels[axis], "the size of its channel axis is read")
    tracer.give(out, [None])


def batch_norm(tracer: Tracer, node: ir.Node) -> None:
    """BatchNormalization: scale, bias, mean and variance are cut with the channels of axis 1."""
    labels = tracer.axes(node.inputs[0])
    channel = labels[1] if len(labels) > 1 else None
    if not all(tracer.sliceable(value) for value in node.inputs[1:5]):
        return tracer.refuse(node, "its parameters are computed, shared with a body, or may be fed by the caller")
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return tracer.refuse(node, "it is in training form (its statistics are read)")
    if int_attribute(node, "training_mode", 0):
        return tracer.refuse(node, "it is in training form (training_mode = 1)")
    if tracer.version < _SPATIAL_ONLY and int_attribute(node, "spatial", 1) != 1:
        return tracer.refuse(node, "it normalises every position on its own (spatial = 0)")
    if channel is not None:
        for value in node.inputs[1:5]:
            assert value is not None
            tracer.tie(value, 0, channel)
    tracer.give(node.outputs[0], labels)
    return None


def broadcast(tracer: Tracer, node: ir.Node) -> None:
    """Element-wise operators with broadcasting: equal positions are one channel, stored operands are cut along."""
    out_shape = tracer.shape(node.outputs[0])
    assert out_shape is not None
    rank = len(out_shape)
    values = [value for value in node.inputs if value is not None]
    if tracer.version < _BROADCAST_BY_SHAPE:
        return tracer.refuse(node, "it broadcasts by attribute, as before opset 7")
    result: list[Labels] = []
    for axis in range(rank):
        labels = _merge(tracer, node, values, axis - rank, out_shape[axis])
        if isinstance(labels, str):
            return tracer.refuse(node, labels)
        result.append(labels)
    tracer.give(node.outputs[0], result)
    return None


def _merge(tracer: Tracer, node: ir.Node, values: list[ir.Value], axis: int, size: int | None) -> Labels | str:
    """Return the labels of one output axis (``axis`` counts from the right), or why there can be none."""
    spanning = [(v, s) for v in values if len(s := tracer.shape(v) or ()) >= -axis and s[axis] == size]
    labelled = [known for v, _ in spanning if (known := tracer.axes(v)[axis]) is not None]
    if not labelled or size == 1:
        return labelled[0] if labelled else None
    first = labelled[0]
    for other in labelled[1:]:
        tracer.unite(first, other)
    for value, shape in spanning:
        if tracer.axes(value)[axis] is not None:
            continue
        if not tracer.sliceable(value):
            return f"it combines channels with '{value.name}', whose channels cannot be cut"
        tracer.tie(value, len(shape) + axis, first)
    return first


def reduce(tracer: Tracer, node: ir.Node) -> None:
    """Reductions over axes that carry no channels; a reduction over channels mixes them."""
    value, out = node.inputs[0], node.outputs[0]
    labels = tracer.axes(value)
    axes = reduced_axes(node, len(labels))
    if axes is None:
        return tracer.refuse(node, "its axes are computed")
    for axis in axes:
        tracer.hold(node, labels[axis], f"{node.op_type} over the channel axis mixes channels")
    keep = int_attribute(node, "keepdims", 1)
    left = [None if i in axes else known for i, known in enumerate(labels)]
    tracer.give(out, [known for i, known in enumerate(left) if keep or i not in axes])
    return None


def reduced_axes(node: ir.Node, rank: int) -> set[int] | None:
    """Return the axes that a reduction runs over, or None where they are computed."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return {int(axis) % rank for axis in attribute.as_ints()}
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = array(node.inputs[1])
        if given is None or given.size:
            return None if given is None else {int(axis) % rank for axis in given.flat}
    return set() if int_attribute(node, "noop_with_empty_axes", 0) else set(range(rank))


def along_axis(tracer: Tracer, node: ir.Node) -> None:
    """Softmax and its kin: free along every axis but the one they normalise over."""
    labels = tracer.axes(node.inputs[0])
    if tracer.version >= 13:
        axes = {int_attribute(node, "axis", -1) % len(labels)}
    else:
        axes = set(range(int_attribute(node, "axis", 1) % len(labels), len(labels)))
    for axis in axes:
        tracer.hold(node, labels[axis], f"{node.op_type} over the channel axis mixes channels")
    tracer.give(node.outputs[0], labels)


RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, pass_through),
    **dict.fromkeys(_POOLS, pool),
    **dict.fromkeys(BROADCAST, broadcast),
    **{f"Reduce{kind}": reduce for kind in _REDUCTIONS},
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along_axis),
    "Shape": shape,
    "BatchNormalization": batch_norm,
    "Resize": resize,
    "Upsample": pass_through,
}
