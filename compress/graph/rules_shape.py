"""Label rules of operators that move axes about: reshapes, flattens, transposes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute, ints_attribute
from onnxprune.graph.constants import array
from onnxprune.graph.factors import join, part
from onnxprune.graph.labels import Labels, Rule, Tracer
from onnxprune.graph.rewrites import Entry

# An axis with more positions than this (a batch flattened into its channels) is not worth its labels.
_LONGEST = 1 << 24


def reshape(tracer: Tracer, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes are parted into common pieces and joined anew."""
    value, out = node.inputs[0], node.outputs[0]
    before, after = tracer.shape(value), tracer.shape(out)
    assert value is not None and after is not None
    labels = tracer.axes(value)
    if all(known is None for known in labels):
        return tracer.give(out, [None] * len(after))
    if node.op_type == "Squeeze" and len(node.inputs) < 2 and "axes" not in node.attributes:
        return tracer.refuse(node, "it names no axes, so it would drop a channel axis that is cut to one channel")
    atoms = _atoms(before, after)
    if atoms is None:
        return tracer.refuse(node, "its sizes cannot be inferred, or cross the axes that it parts")
    pieces = [
        piece
        for known, sizes in zip(labels, atoms[0], strict=True)
        for piece in ([None] * len(sizes) if known is None else part(tracer, known, sizes))
    ]
    result: list[Labels] = []
    for sizes in atoms[1]:
        taken, pieces = pieces[: len(sizes)], pieces[len(sizes) :]
        if math.prod(sizes) > _LONGEST and any(known is not None for known in taken):
            return tracer.refuse(node, f"it makes an axis of more than {_LONGEST:,} positions")
        result.append(join(tracer, taken, sizes))
    reason = _literals(tracer, node, labels, result)
    if reason is not None:
        return tracer.refuse(node, reason)
    return tracer.give(out, result)


def _atoms(
    before: tuple[int | None, ...] | None, after: tuple[int | None, ...]
) -> tuple[list[list[int]], list[list[int]]] | None:
    """Part the axes of both shapes into their common pieces; return the pieces per axis of either.

    Row-major order means that [8, 6] to [4, 12] is [4, 2, 6] read in two ways. None where sizes are unknown or no
    common pieces exist.
    """
    if before is None or None in before or None in after:
        return None
    left, right = [int(size or 0) for size in before], [int(size or 0) for size in after]
    if 0 in left or math.prod(left) != math.prod(right):
        return None
    ends = [list(np.cumprod([1, *sizes], dtype=object)) for sizes in (left, right)]
    cuts = sorted(set(ends[0]) | set(ends[1]))
    if any(second % first for first, second in itertools.pairwise(cuts)):
        return None
    found = []
    for edges in ends:
        pieces = []
        for first, last in itertools.pairwise(edges):
            inside = [cut for cut in cuts if first <= cut <= last]
            pieces.append([int(b // a) for a, b in itertools.pairwise(inside)])
        found.append(pieces)
    return found[0], found[1]


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
        found.append(Entry(target, axis, known))
    tracer.rewrites.extend(found)
    return None


def transpose(tracer: Tracer, node: ir.Node) -> None:
    """Transpose: labels move with their axes."""
    labels = tracer.axes(node.inputs[0])
    order = ints_attribute(node, "perm", list(range(len(labels)))[::-1])
    tracer.give(node.outputs[0], [labels[axis] for axis in order])


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
}
