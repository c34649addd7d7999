"""What is known of a model's tensors whatever it is fed: channels that are zero, or hold one constant everywhere.

A filter of zeros leaves its bias, and what follows turns that into another constant. Here every node is run on the
constants alone: entries that depend on the input are marked, and axes along which nothing changes have size 1, so
that a whole map is a number per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants, origins
from onnxprune.graph.attributes import float_attribute, int_attribute, ints_attribute, string_attribute
from onnxprune.graph.fold_bn import affine
from onnxprune.graph.rules_elementwise import BROADCAST, UNARY, reduced_axes
from onnxprune.graph.shapes import Shapes

_MOVES = ("DepthToSpace", "Expand", "Gather", "Pad", "Slice", "SpaceToDepth", "Split", "Tile")
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
# Pools and reductions of equal numbers: these give the number again, the others zero for zeros at least.
_AVERAGES = ("GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor's entries: ``values`` holds for every input where ``sure``; a size of 1 stands for a whole axis."""

    values: np.ndarray
    sure: np.ndarray

    @property
    def zero(self) -> np.ndarray:
        """Where the tensor is certainly zero."""
        return np.asarray(self.sure & (self.values == 0))

    def along(self, axis: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, per position of an axis of ``size``, the number that all its entries have and whether they do."""
        held = np.moveaxis(self.values, axis, 0).reshape(self.values.shape[axis], -1)
        sure = np.moveaxis(self.sure, axis, 0).reshape(len(held), -1).all(axis=1) & (held == held[:, :1]).all(axis=1)
        return np.broadcast_to(held[:, 0], size), np.broadcast_to(sure, size)


def of_axis(values: np.ndarray, sure: np.ndarray, rank: int, axis: int) -> Known | None:
    """Return a tensor that holds one number per position of ``axis``, None where nothing of it is sure."""
    shape = [-1 if i == axis else 1 for i in range(rank)]
    return Known(np.where(sure, values, 0).reshape(shape), sure.reshape(shape)) if sure.any() else None


@dataclass(eq=False)
class Knowledge:
    """What is known of every value of a prepared model, under concrete shapes.

    Weights of at most ``tolerance`` count as zero.
    """

    model: ir.Model
    shapes: Shapes
    tolerance: float = 0.0
    found: dict[ir.Value, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.version = self.model.opset_imports.get("", 1)
        for node in self.model.graph:
            rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None or not node.outputs or origins.shows_stored(node.outputs[0]):
                continue
            with np.errstate(all="ignore"):
                results = rule(self, node)
            for out, known in zip(node.outputs, results if isinstance(results, list) else [results], strict=False):
                if known is not None and known.sure.any() and known.values.ndim == len(self.shape(out)):
                    self.found[out] = _narrowed(known)

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Return the shape of a value, -1 for sizes that are not known."""
        known = () if value is None else self.shapes.get(str(value.name), ())
        return tuple(-1 if size is None else size for size in known)

    def of(self, value: ir.Value | None) -> Known | None:
        """Return what is known of a value, stored tensors included."""
        if value is None or value in self.found:
            return None if value is None else self.found[value]
        data = self.weight(value)
        return None if data is None else Known(data, np.ones(data.shape, dtype=bool))

    def weight(self, value: ir.Value | None) -> np.ndarray | None:
        """Return a stored tensor, also one that the graph dequantises or converts, None for anything computed."""
        if value is None or not (value.is_initializer() or origins.shows_stored(value)):
            return None
        return origins.values(value)

    def null(self, weight: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
        """Return where all of a weight's entries along ``axis`` count as zero."""
        return np.asarray(np.abs(weight).max(axis=axis, initial=0) <= self.tolerance)

    def nothing_known(self, node: ir.Node) -> bool:
        """Return whether no input that the node computes with is known, stored tensors aside."""
        return not any(value in self.found for value in node.inputs if value is not None)


Result = Known | None | list[Known | None]
_Rule = Callable[[Knowledge, ir.Node], Result]


def _narrowed(known: Known) -> Known:
    """Return the same with size 1 along every axis on which nothing changes."""
    values, sure = np.where(known.sure, known.values, np.zeros(1, known.values.dtype)), known.sure
    for axis in range(values.ndim):
        first = [np.take(item, [0], axis=axis) for item in (values, sure)]
        if values.shape[axis] > 1 and (values == first[0]).all() and (sure == first[1]).all():
            values, sure = first
    return Known(values, sure)


def _elementwise(known: Knowledge, node: ir.Node) -> Result:
    given = {str(value.name): known.of(value) for value in node.inputs if value is not None}
    there = {name: item for name, item in given.items() if item is not None}
    sure = np.array(False)
    for item in there.values() if node.op_type in ("Mul", "And") else ():
        sure = sure | item.zero
    if len(there) == len(given) and not known.nothing_known(node):
        results = constants.compute(node, {name: item.values for name, item in there.items()}, known.version)
        if results is None:
            return None
        values, everywhere = np.asarray(results[0]), np.array(True)
        for item in there.values():
            everywhere = everywhere & item.sure
        return Known(values, np.broadcast_to((everywhere & np.isfinite(values)) | sure, values.shape))
    rank = len(known.shape(node.outputs[0]))
    if not sure.any() or rank < sure.ndim:
        return None
    sure = sure.reshape([1] * (rank - sure.ndim) + list(sure.shape))
    return Known(np.zeros(sure.shape, next(iter(there.values())).values.dtype), sure)


def _dropout(known: Knowledge, node: ir.Node) -> Result:
    mode = known.weight(node.inputs[2]) if len(node.inputs) > 2 else np.array(False)
    # Before opset 7 an attribute said whether anything is dropped.
    rests = known.version >= 7 or int_attribute(node, "is_test", 0)
    return known.of(node.inputs[0]) if rests and mode is not None and not mode.any() else None


def _scaled(known: Knowledge, node: ir.Node) -> Result:
    """QuantizeLinear and DequantizeLinear between layers, with one scale for all."""
    scale = known.weight(node.inputs[1])
    return _elementwise(known, node) if scale is not None and scale.size == 1 else None


def _batch_norm(known: Knowledge, node: ir.Node) -> Result:
    mapped = affine(node, known.version)
    shape = known.shape(node.inputs[0])
    if isinstance(mapped, str) or len(shape) < 2:
        return None
    column = [-1 if axis == 1 else 1 for axis in range(len(shape))]
    scale, shift = mapped.scale.reshape(column), mapped.shift.reshape(column)
    given = known.found.get(node.inputs[0]) if node.inputs[0] is not None else None
    kind = _kind(known, node.inputs[1])
    if given is None:
        return Known(shift.astype(kind), scale == 0)
    return Known((given.values * scale + shift).astype(kind), given.sure | (scale == 0))


def _kind(known: Knowledge, value: ir.Value | None) -> np.dtype[np.generic]:
    data = known.weight(value)
    return np.dtype(np.float32) if data is None else data.dtype


def padded(node: ir.Node) -> bool:
    """Return whether a convolution or pool reads beyond the border of its input."""
    return any(ints_attribute(node, "pads", ())) or string_attribute(node, "auto_pad", "NOTSET").startswith("SAME")


def _conv(known: Knowledge, node: ir.Node) -> Result:
    """A filter's output is its bias where every weight is zero or meets a zero; a constant where nothing is padded."""
    weight, rank = known.weight(node.inputs[1]), len(known.shape(node.outputs[0]))
    if weight is None or rank < 3:
        return None
    groups, kernel = int_attribute(node, "group", 1), tuple(range(2, weight.ndim))
    null = known.null(weight, kernel)
    if node.op_type == "ConvTranspose":
        split = null.reshape(groups, len(null) // groups, -1).transpose(0, 2, 1)
        null = split.reshape(-1, split.shape[2])
        sums = None
    else:
        plain = padded(node) or known.nothing_known(node)
        sums = None if plain else weight.sum(axis=kernel, dtype=np.float64)
    return _linear(known, node, null, sums, groups, 1, rank)


def _linear(
    known: Knowledge, node: ir.Node, null: np.ndarray, sums: np.ndarray | None, groups: int, axis: int, rank: int
) -> Known | None:
    """Return the outputs of a linear node: ``null`` and ``sums`` are [outputs, inputs of a group]."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shift = known.weight(bias) if bias is not None else np.zeros((), null.dtype)
    if shift is None or shift.size not in (1, len(null)):
        return None
    values = np.broadcast_to(shift.astype(np.float64).ravel() if shift.size > 1 else shift.reshape(()), len(null))
    if node.op_type == "Gemm":
        values = values * float_attribute(node, "beta", 1.0)
    given = known.found.get(node.inputs[0]) if node.inputs[0] is not None else None
    settled = null
    if given is not None:
        held, sure = given.along(axis, null.shape[1] * groups)
        dead = sure & (held == 0)
        fine = sure if sums is not None else dead
        settled = null | fine.reshape(groups, 1, -1).repeat(len(null) // groups, axis=1).reshape(null.shape)
        if sums is not None and (sure & ~dead).any():
            reach = np.where(sure, held, 0).astype(np.float64).reshape(groups, 1, -1)
            parts = np.where(null, 0, sums).reshape(groups, -1, null.shape[1]) * reach
            values = values + parts.sum(axis=2).ravel()
    kind = _kind(known, node.inputs[1])
    return of_axis(values.astype(kind), np.asarray(settled.all(axis=1)), rank, axis)


def _gemm(known: Knowledge, node: ir.Node) -> Result:
    weight = known.weight(node.inputs[1])
    if weight is None or int_attribute(node, "transA", 0):
        return None
    rows = weight if int_attribute(node, "transB", 0) else weight.T
    scaled = rows * np.float64(float_attribute(node, "alpha", 1.0)) if not known.nothing_known(node) else None
    return _linear(known, node, np.abs(rows) <= known.tolerance, scaled, 1, 1, 2)


def _matmul(known: Knowledge, node: ir.Node) -> Result:
    left, right = node.inputs[:2]
    rank, weight = len(known.shape(node.outputs[0])), known.weight(right)
    if weight is not None and weight.ndim == 2 and known.weight(left) is None and rank >= 2:
        rows = weight.T
        return _linear(known, node, np.abs(rows) <= known.tolerance, rows, 1, rank - 1, rank)
    # Zeros all along what is summed over, on one side: columns on the right, rows on the left.
    sure = np.array(False)
    kind = np.dtype(np.float32)
    for value, axis in ((left, -1), (right, -2)):
        item = known.found.get(value) if value is not None else None
        if item is not None and item.values.ndim >= 2:
            sure, kind = sure | item.zero.all(axis=axis, keepdims=True), item.values.dtype
    if not sure.any() or rank < sure.ndim:
        return None
    sure = sure.reshape([1] * (rank - sure.ndim) + list(sure.shape))
    return Known(np.zeros(sure.shape, kind), sure)


def _flat(item: Known, axes: Sequence[int], *, same: bool) -> Known:
    """Return what an average over ``axes`` gives (``same``), or any pool that leaves zeros zero."""
    values, sure = item.values, item.sure if same else item.zero
    for axis in axes:
        first = np.take(values, [0], axis=axis)
        sure = (sure & (values == first)).all(axis=axis, keepdims=True)
        values = first
    return Known(values, sure)


def _pool(known: Knowledge, node: ir.Node) -> Result:
    item = known.found.get(node.inputs[0]) if node.inputs[0] is not None else None
    if item is None:
        return None
    counted = padded(node) or int_attribute(node, "ceil_mode", 0)
    average = node.op_type == "AveragePool" and not (int_attribute(node, "count_include_pad", 0) and counted)
    return _flat(item, range(2, item.values.ndim), same=average or node.op_type in _AVERAGES)


def _reduce(known: Knowledge, node: ir.Node) -> Result:
    item = known.found.get(node.inputs[0]) if node.inputs[0] is not None else None
    axes = None if item is None else reduced_axes(node, item.values.ndim)
    if item is None or axes is None:
        return None
    flat = _flat(item, sorted(axes), same=node.op_type in _AVERAGES)
    if int_attribute(node, "keepdims", 1):
        return flat
    return Known(flat.values.squeeze(tuple(axes)), flat.sure.squeeze(tuple(axes)))


def _instance_norm(known: Knowledge, node: ir.Node) -> Result:
    item, bias = known.of(node.inputs[0]), known.weight(node.inputs[2])
    if item is None or bias is None:
        return None
    _, sure = item.along(1, len(bias))
    return of_axis(bias, sure, item.values.ndim, 1)


def _resize(known: Knowledge, node: ir.Node) -> Result:
    item, value = known.of(node.inputs[0]), node.inputs[0]
    before, after = known.shape(value), known.shape(node.outputs[0])
    if item is None or string_attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    changed = [axis for axis, sizes in enumerate(zip(before, after, strict=True)) if len(set(sizes)) > 1]
    return _flat(item, changed, same=True)


def _transpose(known: Knowledge, node: ir.Node) -> Result:
    item = known.of(node.inputs[0])
    if item is None:
        return None
    order = ints_attribute(node, "perm", range(item.values.ndim)[::-1])
    return Known(item.values.transpose(order), item.sure.transpose(order))


def _concat(known: Knowledge, node: ir.Node) -> Result:
    shapes = [known.shape(value) for value in node.inputs]
    if known.nothing_known(node) or any(-1 in shape or not shape for shape in shapes):
        return None
    axis = int_attribute(node, "axis", 1) % len(shapes[0])
    items = [known.of(value) for value in node.inputs]
    kind = next(item for item in items if item is not None).values.dtype
    unknown = Known(np.zeros([1] * len(shapes[0]), kind), np.zeros([1] * len(shapes[0]), dtype=bool))
    parts = [item or unknown for item in items]
    wide = [max(part.values.shape[i] for part in parts) for i in range(len(shapes[0]))]
    sizes = [[*wide[:axis], shape[axis], *wide[axis + 1 :]] for shape in shapes]
    values = [np.broadcast_to(part.values, size) for part, size in zip(parts, sizes, strict=True)]
    sure = [np.broadcast_to(part.sure, size) for part, size in zip(parts, sizes, strict=True)]
    return Known(np.concatenate(values, axis), np.concatenate(sure, axis))


def _reshape(known: Knowledge, node: ir.Node) -> Result:
    value, after = node.inputs[0], known.shape(node.outputs[0])
    item = known.found.get(value) if value is not None else None
    before = known.shape(value)
    if item is None or -1 in before or -1 in after:
        return None
    return Known(*(np.broadcast_to(part, before).reshape(after) for part in (item.values, item.sure)))


def _move(known: Knowledge, node: ir.Node) -> Result:
    """Run a node that only moves entries on the numbers and on what is not sure of them."""
    value = node.inputs[0]
    item, shape = (known.found.get(value) if value is not None else None), known.shape(value)
    if item is None or value is None or -1 in shape or float_attribute(node, "value", 0.0):
        return None
    others = [other for other in node.inputs[1:] if other is not None]
    feeds = {str(other.name): data for other in others if (data := known.weight(other)) is not None}
    if len(feeds) < len({str(other.name) for other in others}):
        return None
    values = constants.compute(node, {**feeds, str(value.name): np.broadcast_to(item.values, shape)}, known.version)
    pad = node.inputs[2] if node.op_type == "Pad" and len(node.inputs) > 2 else None
    if pad is not None:
        feeds[str(pad.name)] = np.zeros_like(feeds[str(pad.name)])
    doubt = np.broadcast_to(~item.sure, shape).astype(item.values.dtype)
    unsure = constants.compute(node, {**feeds, str(value.name): doubt}, known.version)
    if values is None or unsure is None:
        return None
    return [Known(np.asarray(a), np.asarray(b) == 0) for a, b in zip(values, unsure, strict=True)]


_RULES: dict[str, _Rule] = {
    **dict.fromkeys((*UNARY, *BROADCAST), _elementwise),
    **dict.fromkeys(origins.QUANTISERS, _scaled),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_MOVES, _move),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_norm,
    "MatMul": _matmul,
    "Transpose": _transpose,
}
