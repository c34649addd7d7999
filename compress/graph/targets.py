"""Targets of Reshape and Expand that a graph computes from shapes, written out where only the batch is unknown.

Exporters with a dynamic batch compute ``[x.shape[0], 12, 64]`` node by node. Such a vector is followed symbolically:
every entry is a number or a size that is not known. One unknown entry of a Reshape is what ``-1`` means, and an
entry that repeats the size of the same axis of the input is what ``0`` means.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.names import value_names

Entry = int | str
Vector = list[Entry]
# A longer vector is data, not a shape.
_LONGEST = 32


def write_out(model: ir.Model) -> int:
    """Store targets of Reshape and Expand, and sizes that are static, where that is exact, in place.

    Returns how many tensors were stored. Shapes of the model's values must be inferred.
    """
    known: dict[ir.Value, Vector | None] = {}
    count, taken = 0, value_names(model.graph)
    for node in model.graph:
        if node.outputs and node.domain == "" and _is_vector(node.outputs[0]):
            known[node.outputs[0]] = _vector(node, known)
        count += _store_static(model, node, known, taken)
        if node.domain != "" or node.op_type not in ("Reshape", "Expand") or len(node.inputs) < 2:
            continue
        target = node.inputs[1]
        if target is None or constants.constant(target) is not None:
            continue
        entries = known.get(target)
        stored = None if entries is None else _stored(node, entries)
        if stored is not None:
            data = np.array(stored, dtype=np.int64)
            name = f"{target.name}_stored"
            node.replace_input_with(1, constants.add_array(model.graph, name, data, ir.DataType.INT64, taken))
            count += 1
    return count


def _store_static(model: ir.Model, node: ir.Node, known: dict[ir.Value, Vector | None], taken: set[str]) -> int:
    """Replace a result that holds nothing but static sizes (a head's size read off a shape) by a stored tensor."""
    if node.op_type in ("Concat", "Shape") or not node.outputs:
        return 0  # their readers are what matters, and Shape may have others
    out = node.outputs[0]
    entries, shape = known.get(out), out.shape
    if entries is None or shape is None or out.dtype is None or out.is_graph_output() or not out.uses():
        return 0
    if not all(isinstance(entry, int) for entry in entries) or list(shape) not in ([], [len(entries)]):
        return 0
    data = np.array(entries, dtype=out.dtype.numpy()).reshape([len(entries)] * len(shape))
    value = constants.add_array(model.graph, f"{out.name}_stored", data, out.dtype, taken)
    known[value] = entries
    out.replace_all_uses_with(value)
    return 1


def _stored(node: ir.Node, entries: Vector) -> list[int] | None:
    """Return a target without unknown entries that means the same, or None."""
    given = _sizes(node.inputs[0])
    if node.op_type == "Expand":
        # A size of one lets an unknown size of the input through.
        tail = None if given is None else given[max(0, len(given) - len(entries)) :]
        if tail is None or len(tail) != len(entries):
            return None
        if any(not isinstance(e, int) and e != t for e, t in zip(entries, tail, strict=True)):
            return None
        return [e if isinstance(e, int) else 1 for e in entries]
    open_places = [i for i, entry in enumerate(entries) if not isinstance(entry, int)]
    free = all(entry != -1 for entry in entries)
    result: list[int] = []
    for place, entry in enumerate(entries):
        if isinstance(entry, int):
            result.append(entry)
        elif len(open_places) == 1 and free:
            result.append(-1)
        elif (
            given is not None
            and place < len(given)
            and given[place] == entry
            and not int_attribute(node, "allowzero", 0)
        ):
            result.append(0)
        else:
            return None
    return result


def _is_vector(value: ir.Value) -> bool:
    """Return whether a value is known to be a vector or a single number: entries of a table have no one order."""
    return value.shape is not None and len(value.shape) <= 1


def _sizes(value: ir.Value | None) -> Vector | None:
    """Return the sizes of a value: numbers, and names for the sizes that are not known."""
    if value is None or value.shape is None:
        return None
    sizes: Vector = []
    for axis, size in enumerate(value.shape):
        name = None if isinstance(size, int) else getattr(size, "value", None)
        sizes.append(size if isinstance(size, int) else str(name) if name else f"{value.name}:{axis}")
    return sizes


def _vector(node: ir.Node, known: dict[ir.Value, Vector | None]) -> Vector | None:
    """Return the entries of a node's result where it is a vector (or a single number) made of sizes."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    inputs = [_entries(value, known) for value in node.inputs]
    return rule(node, inputs)


def _entries(value: ir.Value | None, known: dict[ir.Value, Vector | None]) -> Vector | None:
    data = constants.array(value)
    if data is None:
        return None if value is None else known.get(value)
    if data.dtype.kind not in "iu" or data.ndim > 1 or data.size > _LONGEST:
        return None
    return [int(item) for item in data.flat]


def _shape(node: ir.Node, inputs: list[Vector | None]) -> Vector | None:
    sizes = _sizes(node.inputs[0])
    if sizes is None:
        return None
    return sizes[int_attribute(node, "start", 0) : int_attribute(node, "end", len(sizes))]


def _gather(node: ir.Node, inputs: list[Vector | None]) -> Vector | None:
    data, indices = inputs[:2]
    if data is None or indices is None or not all(isinstance(i, int) and -len(data) <= i < len(data) for i in indices):
        return None
    return [data[i] for i in indices if isinstance(i, int)]


def _slice(node: ir.Node, inputs: list[Vector | None]) -> Vector | None:
    padded = [*inputs, None, None, None, None]
    data, start, end, _, step = padded[:5]
    if data is None or start is None or end is None:
        return None
    bounds = [*start, *end, *(step or [1])]
    if len(bounds) != 3 or bounds[2] == 0 or not all(isinstance(bound, int) for bound in bounds):
        return None
    first, last, by = (int(bound) for bound in bounds)
    return data[first:last:by]


def _same(node: ir.Node, inputs: list[Vector | None]) -> Vector | None:
    return inputs[0]


def _concat(node: ir.Node, inputs: list[Vector | None]) -> Vector | None:
    parts = [part for part in inputs if part is not None]
    joined = [entry for part in parts for entry in part]
    return joined if len(parts) == len(inputs) and len(joined) <= _LONGEST else None


def _arithmetic(node: ir.Node, inputs: list[Vector | None]) -> Vector | None:
    """Arithmetic on unknown sizes gives a size that is not known either, under a name of its own."""
    if any(part is None or len(part) != 1 for part in inputs):
        return None
    (a,), (b,) = (part for part in inputs if part is not None)
    if not isinstance(a, int) or not isinstance(b, int):
        return [f"{node.outputs[0].name}:computed"]
    if node.op_type == "Div":
        return [a // b] if b and a >= 0 and b > 0 else None
    return [{"Add": a + b, "Sub": a - b, "Mul": a * b}[node.op_type]]


_RULES: dict[str, Callable[[ir.Node, list[Vector | None]], Vector | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
}
