"""Label rules of operators that join, part and pick channels: Concat, Split, Slice, Gather, Pad, Expand."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute, ints_attribute
from onnxprune.graph.constants import array
from onnxprune.graph.labels import Labels, Rule, Tracer
from onnxprune.graph.rewrites import Entry, Indices, IntsAttribute, SplitSizes, Steps

_SPLIT_AS_INPUT = 13
_PRIVATE = "is shared with a body, or may be fed by the caller"


def concat(tracer: Tracer, node: ir.Node) -> None:
    """Concat: along its axis the labels are joined, every input keeps its own; along others they are united."""
    out = node.outputs[0]
    shape = tracer.shape(out)
    assert shape is not None
    axis = int_attribute(node, "axis", 1) % len(shape)
    values = [value for value in node.inputs if value is not None]
    result: list[Labels] = []
    for position in range(len(shape)):
        known = [tracer.axes(value)[position] for value in values]
        if position == axis:
            result.append(_joined(tracer, node, values, known, axis))
            continue
        labelled = [labels for labels in known if labels is not None]
        for value, labels in zip(values, known, strict=True):
            if labelled and labels is None:
                if not tracer.sliceable(value):
                    return tracer.refuse(node, f"it joins them with '{value.name}', whose channels cannot be cut")
                tracer.tie(value, position, labelled[0])
        for other in labelled[1:]:
            tracer.unite(labelled[0], other)
        result.append(labelled[0] if labelled else None)
    tracer.give(out, result)
    return None


def _joined(tracer: Tracer, node: ir.Node, values: list[ir.Value], known: list[Labels], axis: int) -> Labels:
    """Return the labels of the joined axis; parts without labels get some of their own, which stay."""
    if all(labels is None for labels in known):
        return None
    parts = []
    for value, labels in zip(values, known, strict=True):
        if labels is not None:
            parts.append(labels)
            continue
        size = (tracer.shape(value) or ())[axis]
        if size is None:
            return None
        fixed = tracer.fresh(size)
        if tracer.sliceable(value):
            tracer.tie(value, axis, fixed)
        tracer.freeze(fixed, f"'{node.name}' joins '{value.name}', whose channels cannot be cut")
        parts.append(fixed)
    return np.concatenate(parts)


def split(tracer: Tracer, node: ir.Node) -> None:
    """Split: every output takes its stretch of the labels; stored sizes follow."""
    value = node.inputs[0]
    labels = tracer.axes(value)
    axis = int_attribute(node, "axis", 0) % len(labels)
    known = labels[axis]
    outputs = list(node.outputs)
    sizes = [(tracer.shape(out) or (None,) * len(labels))[axis] for out in outputs]
    if known is None or any(size is None for size in sizes):
        if known is not None:
            return tracer.refuse(node, "its sizes cannot be inferred")
        for out in outputs:
            tracer.give(out, labels)
        return None
    bounds = np.cumsum([0, *[int(size or 0) for size in sizes]])
    parts = tuple(known[a:b] for a, b in itertools.pairwise(bounds))
    reason = _split_sizes(tracer, node, parts)
    if reason is not None:
        return tracer.refuse(node, reason)
    for out, part in zip(outputs, parts, strict=True):
        tracer.give(out, [part if i == axis else other for i, other in enumerate(labels)])
    return None


def _split_sizes(tracer: Tracer, node: ir.Node, parts: tuple[np.ndarray, ...]) -> str | None:
    stored = node.inputs[1] if len(node.inputs) > 1 else None
    if stored is not None:
        if array(stored) is None or not tracer.stored(stored):
            return f"its sizes are computed, or their tensor {_PRIVATE}"
        tracer.rewrites.extend(Entry(stored, i, part) for i, part in enumerate(parts))
    elif "split" in node.attributes:
        tracer.rewrites.extend(IntsAttribute(node, "split", i, part) for i, part in enumerate(parts))
    else:
        as_input = tracer.version >= _SPLIT_AS_INPUT
        tracer.rewrites.append(SplitSizes(tracer.model.graph, node, parts, as_input))
    return None


def slice_(tracer: Tracer, node: ir.Node) -> None:
    """Slice: takes a stretch of a channel axis, or every so many, or all in reverse; the stored bounds follow.

    Bounds that span an axis span it after a cut too, for they are clamped.
    """
    labels = list(tracer.axes(node.inputs[0]))
    after = tracer.shape(node.outputs[0]) or ()
    found = _slice_bounds(tracer, node, len(labels))
    if isinstance(found, str):
        listed = array(node.inputs[3]) if len(node.inputs) > 3 else None
        named = range(len(labels)) if listed is None else [int(axis) % len(labels) for axis in listed.flat]
        if any(labels[axis] is not None for axis in named):
            return tracer.refuse(node, found)
        found = {}
    for axis, (position, start, end, step) in found.items():
        known = labels[axis]
        if known is None:
            continue
        first, last, _ = slice(start, end, step).indices(len(known))
        if (first, last, step) == (0, len(known), 1):
            continue
        taken = known[first : None if last < 0 else last : step]
        labels[axis] = taken
        if len(taken) != after[axis]:
            return tracer.refuse(node, "its bounds and the shape of its output do not agree")
        reason = _rewrite_bounds(tracer, node, position, axis, known, range(first, last, step))
        if reason is not None:
            return tracer.refuse(node, reason)
    tracer.give(node.outputs[0], labels)
    return None


def _slice_bounds(tracer: Tracer, node: ir.Node, rank: int) -> dict[int, tuple[int, int, int, int]] | str:
    """Return axis -> (position in the stored lists, start, end, step), or why that is not known."""
    if "starts" in node.attributes:
        starts, ends = ints_attribute(node, "starts", []), ints_attribute(node, "ends", [])
        axes, steps = ints_attribute(node, "axes", list(range(len(starts)))), [1] * len(starts)
    else:
        given = [array(value) for value in node.inputs[1:5]]
        if len(given) < 2 or given[0] is None or given[1] is None:
            return "its bounds are computed"
        named = [data if data is None else [int(i) for i in data.flat] for data in given] + [None, None]
        starts, ends = list(named[0] or []), list(named[1] or [])
        absent = [len(node.inputs) <= i or node.inputs[i] is None for i in (3, 4)]
        if any(named[i + 2] is None and not absent[i] for i in range(2)):
            return "its axes or steps are computed"
        axes = list(named[2] or range(len(starts)))
        steps = list(named[3] or [1] * len(starts))
    return {
        axis % rank: (i, start, end, step)
        for i, (axis, start, end, step) in enumerate(zip(axes, starts, ends, steps, strict=True))
    }


def _rewrite_bounds(
    tracer: Tracer, node: ir.Node, position: int, axis: int, known: np.ndarray, taken: range
) -> str | None:
    """Note that a start counts the channels before it and an end those until it; steps are worked out anew."""
    until = known[: max(taken.start, taken.stop)]
    if "starts" in node.attributes:
        tracer.rewrites.append(IntsAttribute(node, "starts", position, known[: taken.start]))
        tracer.rewrites.append(IntsAttribute(node, "ends", position, until))
        return None
    bounds = [node.inputs[i] for i in ((1, 2) if taken.step == 1 else (1, 2, 4))]
    if not all(tracer.stored(value) for value in bounds):
        return f"its tensor of bounds {_PRIVATE}"
    assert bounds[0] is not None and bounds[1] is not None
    if taken.step == 1:
        tracer.rewrites.append(Entry(bounds[0], position, known[: taken.start]))
        tracer.rewrites.append(Entry(bounds[1], position, until))
    else:
        tracer.rewrites.append(Steps(tracer.model.graph, node, position, axis, known, taken))
    return None


def gather(tracer: Tracer, node: ir.Node) -> None:
    """Gather: picks labels with stored indices; from a stored table (an embedding) its other axes are channels."""
    data, indices = node.inputs[0], node.inputs[1]
    shape, picked = tracer.shape(data), tracer.shape(indices)
    assert data is not None and shape is not None and picked is not None
    axis = int_attribute(node, "axis", 0) % len(shape)
    if any(known is not None for known in tracer.axes(indices)):
        return tracer.refuse(node, "its indices carry channels")
    labels = list(tracer.axes(data))
    if tracer.sliceable(data) and len(shape) == 2:
        other = 1 - axis
        labels[other] = tracer.produce(node, data, other)
    known = labels[axis]
    inside: list[Labels] = [None] * len(picked)
    stored = array(indices)
    if known is not None and (stored is None or stored.ndim != 1 or not tracer.stored(indices)):
        # One of the three parts of a fused attention input is picked so: its heads may still be cut.
        tracer.hold(node, known, "it picks channels by indices that are not a stored list of its own")
    elif known is not None and stored is not None and indices is not None:
        chosen = known[stored % len(known)]
        inside = [chosen]
        tracer.rewrites.append(Indices(indices, known, chosen))
    tracer.give(node.outputs[0], [*labels[:axis], *inside, *labels[axis + 1 :]])
    return None


def pad(tracer: Tracer, node: ir.Node) -> None:
    """Pad: channels that a constant pad adds are channels like others, and the stored amounts follow."""
    labels = list(tracer.axes(node.inputs[0]))
    found = _pad_amounts(node, len(labels))
    if found is None:
        return tracer.refuse(node, "its pads are computed")
    amounts, places = found
    mode = node.attributes.get("mode")
    for axis, known in enumerate(labels):
        begin, end = amounts[axis]
        if known is None or (begin, end) == (0, 0):
            continue
        if begin < 0 or end < 0 or (mode is not None and mode.as_string() != "constant"):
            return tracer.refuse(node, "it pads the channel axis with other channels, or crops it")
        first, last = tracer.fresh(begin), tracer.fresh(end)
        labels[axis] = np.concatenate([first, known, last])
        reason = _rewrite_pads(tracer, node, places[axis], first, last)
        if reason is not None:
            return tracer.refuse(node, reason)
    tracer.give(node.outputs[0], labels)
    return None


def _pad_amounts(node: ir.Node, rank: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
    """Return (begin, end) per axis, and where in the stored list they stand."""
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
    amounts, places = [(0, 0)] * rank, [(-1, -1)] * rank
    for position, axis in enumerate(axes):
        places[axis] = (position, position + len(axes))
        amounts[axis] = (flat[position], flat[position + len(axes)])
    return amounts, places


def _rewrite_pads(
    tracer: Tracer, node: ir.Node, place: tuple[int, int], first: np.ndarray, last: np.ndarray
) -> str | None:
    name = next((name for name in ("pads", "paddings") if name in node.attributes), None)
    stored = node.inputs[1] if name is None else None
    if name is None and (stored is None or not tracer.stored(stored)):
        return f"its tensor of pads {_PRIVATE}"
    for position, labels in zip(place, (first, last), strict=True):
        if name is not None:
            tracer.rewrites.append(IntsAttribute(node, name, position, labels))
        elif stored is not None:
            tracer.rewrites.append(Entry(stored, position, labels))
    return None


def expand(tracer: Tracer, node: ir.Node) -> None:
    """Expand: channel axes go through; a stored target that names their size follows."""
    value, target = node.inputs[0], node.inputs[1]
    shape = tracer.shape(node.outputs[0])
    assert shape is not None
    labels = tracer.axes(value)
    grown: list[Labels] = [*[None] * (len(shape) - len(labels)), *labels]
    sizes = array(target)
    for axis, known in enumerate(grown):
        if known is None:
            continue
        if len(known) != shape[axis]:
            grown[axis] = None if len(known) == 1 else known
            if len(known) == 1:
                tracer.freeze(known, f"'{node.name}' repeats a single channel")
            continue
        place = axis - (len(shape) - (0 if sizes is None else sizes.size))
        if sizes is None:
            return tracer.refuse(node, "its target shape is computed")
        if place >= 0 and int(sizes[place]) == len(known) and len(known) > 1:
            if target is None or not tracer.stored(target):
                return tracer.refuse(node, f"its target shape {_PRIVATE}")
            tracer.rewrites.append(Entry(target, place, known))
    tracer.give(node.outputs[0], grown)
    return None


RULES: dict[str, Rule] = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
}
