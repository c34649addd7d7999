"""Label rules of normalisations that look at several channels at once, and of depth rearrangements."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute, ints_attribute, string_attribute
from onnxprune.graph.labels import Labels, Rule, Tracer
from onnxprune.graph.rewrites import IntAttribute

_GROUP_NORM_PER_CHANNEL = 21


def instance_norm(tracer: Tracer, node: ir.Node) -> None:
    """InstanceNormalization treats every channel of axis 1 on its own; scale and bias are cut along."""
    labels = tracer.axes(node.inputs[0])
    channel = labels[1]
    for known in labels[2:]:
        tracer.hold(node, known, "InstanceNormalization over the channel axis mixes channels")
    if channel is not None:
        for value in node.inputs[1:3]:
            if value is None or not tracer.sliceable(value):
                return tracer.refuse(node, "its parameters are computed, shared with a body, or may be fed")
        for value in node.inputs[1:3]:
            assert value is not None
            tracer.tie(value, 0, channel)
    tracer.give(node.outputs[0], labels)
    return None


def group_norm(tracer: Tracer, node: ir.Node) -> None:
    """GroupNormalization is exact when whole groups go: the channels of a group are one."""
    labels = tracer.axes(node.inputs[0])
    channel = labels[1]
    for known in labels[2:]:
        tracer.hold(node, known, "GroupNormalization over an axis that carries channels mixes channels")
    if channel is None:
        tracer.give(node.outputs[0], labels)
        return None
    if not all(tracer.sliceable(value) for value in node.inputs[1:3]):
        return tracer.refuse(node, "its parameters are computed, shared with a body, or may be fed")
    groups = int_attribute(node, "num_groups", 1)
    first = channel.reshape(groups, -1)[:, 0]
    tracer.unite(channel, first.repeat(len(channel) // groups))
    for value in node.inputs[1:3]:
        assert value is not None
        size = (tracer.shape(value) or (0,))[0]
        tracer.tie(value, 0, channel if size == len(channel) and size != groups else first)
    tracer.rewrites.append(IntAttribute(node, "num_groups", first))
    tracer.give(node.outputs[0], labels)
    return None


def along_rest(tracer: Tracer, node: ir.Node) -> None:
    """LayerNormalization and RMSNormalization: free in front of their axis, mixing from it on."""
    labels = tracer.axes(node.inputs[0])
    axis = int_attribute(node, "axis", -1) % len(labels)
    for value in node.inputs[1:]:
        if any(known is not None for known in tracer.axes(value)):
            return tracer.refuse(node, "its parameters carry channels")
        if len(tracer.shape(value) or ()) > len(labels) - axis and any(known is not None for known in labels[:axis]):
            return tracer.refuse(node, "its parameters differ along axes in front of those it normalises")
    for known in labels[axis:]:
        tracer.hold(node, known, f"{node.op_type} over the channel axis mixes channels")
    for position, out in enumerate(node.outputs):
        if tracer.shape(out) is not None:
            # The second output on are statistics, of size 1 along the axes that were normalised.
            tracer.give(out, labels if position == 0 else [*labels[:axis], *[None] * (len(labels) - axis)])
    return None


def across_channels(tracer: Tracer, node: ir.Node) -> None:
    """LRN and LpNormalization mix channels of their axis."""
    labels = tracer.axes(node.inputs[0])
    axis = 1 if node.op_type == "LRN" else int_attribute(node, "axis", -1) % len(labels)
    tracer.hold(node, labels[axis], f"{node.op_type} over the channel axis mixes channels")
    tracer.give(node.outputs[0], labels)


def mean_variance(tracer: Tracer, node: ir.Node) -> None:
    """MeanVarianceNormalization mixes what lies along its axes, by default all but axis 1."""
    labels = tracer.axes(node.inputs[0])
    for axis in ints_attribute(node, "axes", [0, 2, 3]):
        tracer.hold(node, labels[axis], f"{node.op_type} over the channel axis mixes channels")
    tracer.give(node.outputs[0], labels)


def _hold_positions(tracer: Tracer, node: ir.Node, labels: list[Labels]) -> None:
    for known in labels[2:]:
        tracer.hold(node, known, f"{node.op_type} moves an axis that carries channels")


def depth_to_space(tracer: Tracer, node: ir.Node) -> None:
    """DepthToSpace: the channels that become one output channel are one."""
    labels = tracer.axes(node.inputs[0])
    known = labels[1]
    _hold_positions(tracer, node, labels)
    if known is not None:
        area = int_attribute(node, "blocksize", 1) ** 2
        crd = string_attribute(node, "mode", "DCR") == "CRD"
        grid = known.reshape(-1, area).T if crd else known.reshape(area, -1)
        tracer.unite(grid.ravel(), np.tile(grid[0], area))
        known = grid[0]
    tracer.give(node.outputs[0], [labels[0], known, *[None] * (len(labels) - 2)])


def space_to_depth(tracer: Tracer, node: ir.Node) -> None:
    """SpaceToDepth: every block position repeats the channels."""
    labels = tracer.axes(node.inputs[0])
    known = labels[1]
    _hold_positions(tracer, node, labels)
    repeated = None if known is None else np.tile(known, int_attribute(node, "blocksize", 1) ** 2)
    tracer.give(node.outputs[0], [labels[0], repeated, *[None] * (len(labels) - 2)])


RULES: dict[str, Rule] = {
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LayerNormalization": along_rest,
    "RMSNormalization": along_rest,
    "LRN": across_channels,
    "LpNormalization": across_channels,
    "MeanVarianceNormalization": mean_variance,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
