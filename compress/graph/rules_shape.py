"""Label rules of operators that move axes about: reshapes, flattens, transposes, pads."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute, ints_attribute
from onnxprune.graph.constants import array
from onnxprune.graph.labels import Labels, Literal, Rule, Tracer

# An axis with more positions than this (a batch flattened into its channels) is not worth its labels.
_LONGEST = 1 << 24


def reshape(tracer: Tracer, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes that merge repeat the labels of the one that carries channels."""
    value, out = node.inputs[0], node.outputs[0]
    before, after = tracer.shape(value), tracer.shape(out)
    assert value is not None and after is not None
    labels = tracer.axes(value)
    if all(known is None for known in labels):
        return tracer.give(out, [None] * len(after))
    if node.op_type == "Squeeze" and len(node.inputs) < 2 and "axes" not in node.attributes:
        return tracer.refuse(node, "it names no axes, so it would drop a channel axis that is cut to one channel")
    groups = _groups(before, after)
    if groups is None:
        return tracer.refuse(node, "its sizes cannot be inferred")
    result: list[Labels] = [None] * len(after)
    for sources, targets in groups:
        reason = _map_group(labels, before or (), sources, after, targets, result)
        if reason is not None:
            return tracer.refuse(node, reason)
    reason = _literals(tracer, node, labels, result)
    if reason is not None:
        return tracer.refuse(node, reason)
    return tracer.give(out, result)


def _groups(
    before: tuple[int | None, ...] | None, after: tuple[int | None, ...]
) -> list[tuple[list[int], list[int]]] | None:
    """Split two shapes into the shortest runs of axes with equal products, as (source axes, target axes)."""
    if before is None or None in before or None in after:
        return None
    left, right = [int(s or 0) for s in before], [int(s or 0) for s in after]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(left) or j < len(right):
        sources, targets = ([i], []) if i < len(left) else ([], [j])
        i, j = (i + 1, j) if sources else (i, j + 1)
        if sources and j < len(right):
            targets, j = [j], j + 1
        while math.prod(left[s] for s in sources) != math.prod(right[t] for t in targets):
            smaller = math.prod(left[s] for s in sources) < math.prod(right[t] for t in targets)
            if smaller and i < len(left):
                sources.append(i)
                i += 1
            elif not smaller and j < len(right):
                targets.append(j)
                j += 1
            else:
                return None
        groups.append((sources, targets))
    return groups


def _map_group(
    labels: list[Labels],
    before: tuple[int | None, ...],
    sources: list[int],
    after: tuple[int | None, ...],
    targets: list[int],
    result: list[Labels],
) -> str | None:
    """Hand the labels of one run of source axes to its target axes; return why that is impossible."""
    carriers = [s for s in sources if labels[s] is not None]
    if not carriers:
        return None
    wide = [t for t in targets if after[t] != 1] or targets[:1]
    if len(carriers) > 1 or len(wide) != 1:
        return "it splits or joins channel axes"
    carrier = carriers[0]
    inner = math.prod(int(before[s] or 1) for s in sources if s > carrier)
    outer = math.prod(int(before[s] or 1) for s in sources if s < carrier)
    known = labels[carrier]
    assert known is not None
    if len(known) * inner * outer > _LONGEST:
        return f"it makes an axis of more than {_LONGEST:,} positions"
    result[wide[0]] = np.tile(known.repeat(inner), outer)
    return None


def _literals(tracer: Tracer, node: ir.Node, labels: list[Labels], result: list[Labels]) -> str | None:
    """Note the entries of a Reshape's target that a cut must rewrite; return why one cannot be."""
    target = node.inputs[1] if node.op_type == "Reshape" and len(node.inputs) > 1 else None
    if node.op_type != "Reshape":
        return None
    sizes = array(target)
    if target is None or sizes is None:
        return "its target shape is computed, or may be fed by the caller"
    found = []
    for axis, known in enumerate(result):
        copied = labels[axis] if sizes[axis] == 0 else None
        if known is None and copied is not None:
            return f"entry {axis} of its target shape copies the size of a channel axis that goes elsewhere"
        if known is None or sizes[axis] == -1 or (copied is not None and np.array_equal(copied, known)):
            continue
        if not tracer.stored(target):
            return "its target shape is read inside a body, or is a graph output too"
        found.append(Literal(target, axis, node.outputs[0], axis))
    tracer.literals.extend(found)
    return None


def transpose(tracer: Tracer, node: ir.Node) -> None:
    """Transpose: labels move with their axes."""
    labels = tracer.axes(node.inputs[0])
    order = ints_attribute(node, "perm", list(range(len(labels)))[::-1])
    tracer.give(node.outputs[0], [labels[axis] for axis in order])


def pad(tracer: Tracer, node: ir.Node) -> None:
    """Pad over axes that carry no channels."""
    labels = tracer.axes(node.inputs[0])
    amounts = _pad_amounts(node, len(labels))
    if amounts is None:
        return tracer.refuse(node, "its pads are computed")
    if any(known is not None and any(amounts[axis]) for axis, known in enumerate(labels)):
        return tracer.refuse(node, "it pads the channel axis")
    tracer.give(node.outputs[0], labels)
    return None


def _pad_amounts(node: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """Return (begin, end) per axis."""
    axes: list[int] = list(range(rank))
    if "pads" in node.attributes or "paddings" in node.attributes:
        flat = ints_attribute(node, "pads", ints_attribute(node, "paddings", []))
    else:
        given = array(node.inputs[1]) if len(node.inputs) > 1 else None
        if given is None:
            return None
        flat = [int(item) for item in given.flat]
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            chosen = array(node.inputs[3])
            if chosen is None:
                return None
            axes = [int(axis) % rank for axis in chosen.flat]
    amounts = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        amounts[axis] = (flat[position], flat[position + len(axes)])
    return amounts


def flatten(tracer: Tracer, node: ir.Node) -> None:
    """Flatten is a reshape whose target is never stored."""
    if int_attribute(node, "axis", 1) < 0 and tracer.version < 11:
        return tracer.refuse(node, "a negative axis needs opset 11")
    return reshape(tracer, node)


RULES: dict[str, Rule] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Transpose": transpose,
    "Pad": pad,
}
